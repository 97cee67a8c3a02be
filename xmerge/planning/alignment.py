"""Make a donor's tensor fit a slot of the target: where its numbers lie, what is done to them, and how well it fits."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field, replace

from xmerge.architecture import (
    Class,
    Difference,
    ResolvedArchitecture,
    ResolvedModel,
    RolePart,
    TensorSpec,
    find_differences,
    worst_class,
)
from xmerge.architecture.differences import (
    INPUT_NORM,
    READS_INPUT,
    RESIDUAL_SCALE,
    ROTATED,
    SOFTMAX_SCALE,
    WRITES_OUTPUT,
    find_input_norm,
    is_undone,
)
from xmerge.architecture.layout import Loop
from xmerge.architecture.quantization import PackedWeight
from xmerge.checkpoints import StoredTensor
from xmerge.checkpoints.headers import DTYPE_BITS
from xmerge.planning.conversion import Piece, Turn, pair
from xmerge.planning.plan import Gain, LostBias, Segment, Source
from xmerge.planning.slices import Input
from xmerge.planning.unknown import find_divided, tell_heads, tell_unknown

SIDE_ROLES = ("_bias", "_norm", "_sinks", "_scale")
"""What a model can do without; everything else is a part of how it works."""


ROWS_MEET_ROWS = Difference(
    grade="C", reason="its heads have other sizes, so rows of one head meet rows of another, as the recipe allows"
)
OTHER_HEADS = (
    "equal shapes and heads of other sizes, so that rows of one head would meet rows of another; "
    "'on_different_heads: merge' lets them"
)


@dataclass(frozen=True)
class Absent:
    """The donor has no tensor that does this, and the target's can stay without harm."""

    reason: str


@dataclass(frozen=True)
class Misfit:
    """The donor's tensor does not fit, or the donor does in another way what the target's does."""

    reason: str
    grade: Class = "D"
    packed: PackedWeight | None = None
    """The packed weight that is in the way, which nothing in the configuration makes up for."""


Fit = Source | Absent | Misfit
Held = tuple[TensorSpec, RolePart]


@dataclass(frozen=True, slots=True)
class Offer:
    """What one input has for a tensor of the output."""

    input: Input
    label: str
    fit: Fit


@dataclass(frozen=True)
class Aligner:
    """Aligns the tensors of one target with those of its donors."""

    architecture: ResolvedArchitecture
    folds: Collection[str] = ()
    """What of a donor's config.json and norms goes into its weights."""
    ignore_heads: bool = False
    """Whether equal shapes are enough where heads are divided otherwise."""
    _differences: dict[tuple[int, str, int | None, int | None], tuple[Difference, ...]] = field(default_factory=dict)
    _alike: dict[int, bool] = field(default_factory=dict)
    _divided: dict[int, frozenset[str]] = field(default_factory=dict)

    @property
    def target(self) -> ResolvedModel:
        """The model that receives."""
        return self.architecture.target

    def align(self, spec: TensorSpec, index: int, layer: int | None) -> Fit:
        """What a donor's layer gives to a tensor of the target.

        Args:
            spec: The target's tensor.
            index: The donor's place among the models.
            layer: The donor's layer; None outside the layers.
        """
        donor = self.architecture.models[index]
        packed = self._find_packed(spec, donor, layer)
        if packed is not None:
            return packed
        if not spec.parts or donor.family is None:
            if donor.model_type == self.target.model_type:
                return self._align_by_name(spec, index, layer)
            return Absent(f"{donor.label} ({donor.kind}) has no tensor known to do what {spec.template} does")
        twin = self._find_twin(spec, donor, index, layer)
        differences: list[Difference] = []
        for part in spec.parts:
            differences += self._compare(part.role, spec, index, layer)
        if twin is not None:
            return self._source(donor, index, [_whole(twin.stored)], differences)
        return self._convert(spec, donor, index, layer, differences)

    def _align_by_name(self, spec: TensorSpec, index: int, layer: int | None) -> Fit:
        """Equal names of one model type are equal things, unless shapes, heads or family files say otherwise."""
        target, donor = self.target, self.architecture.models[index]
        theirs = donor.by_template.get((layer, spec.template))
        if theirs is None:
            return Absent(f"{donor.label} has no {spec.template}")
        if (target.family is None) != (donor.family is None) and donor.checkpoint.config != target.checkpoint.config:
            told = tell_unknown(target if target.family is None else donor)
            return Misfit(f"{spec.template}: {told}, so equal names need not mean the same", "E")
        if theirs.shape != spec.shape:
            shapes = f"{target.label} has {list(spec.shape)}, {donor.label} has {list(theirs.shape)}"
            return Misfit(f"{spec.template}: {shapes}")
        differences = [ROWS_MEET_ROWS] if spec.template in self._find_divided(index) else []
        if differences and not self.ignore_heads:
            heads = [f"{a.label} has {tell_heads(a, b)}" for a, b in ((target, donor), (donor, target))]
            return Misfit(f"{spec.template}: {', '.join(heads)}: {OTHER_HEADS}", "E")
        return self._source(donor, index, [_whole(theirs.stored)], differences)

    def _find_divided(self, index: int) -> frozenset[str]:
        """The target's tensors that a donor divides into other heads, where no family file says which hold heads."""
        if index not in self._divided:
            donor = self.architecture.models[index]
            unknown = self.target.family is None and donor is not self.target
            self._divided[index] = find_divided(self.target, donor) if unknown else frozenset()
        return self._divided[index]

    def _find_twin(self, spec: TensorSpec, donor: ResolvedModel, index: int, layer: int | None) -> TensorSpec | None:
        """The donor's tensor that needs no conversion, because the two models lay out theirs alike."""
        if not self._is_alike(index) or self.folds or (donor.tied and spec.role == "output"):
            return None
        return donor.by_template.get((layer, spec.template))

    def _find_packed(self, spec: TensorSpec, donor: ResolvedModel, layer: int | None) -> Misfit | None:
        """The packed weight that a tensor is a part of, or that a donor has for it; a model's own stays as it is."""
        if donor is self.target and layer == spec.layer:
            return None
        if spec.packed is not None:
            told = f"{self.target.label} holds {spec.template} packed ({spec.packed.packing.name})"
            return Misfit(told, "E", spec.packed)
        roles = ["token_embd" if part.role == "output" and donor.tied else part.role for part in spec.parts]
        for key in roles if spec.parts and donor.family else [*roles, spec.template]:
            weight = donor.packed.get((layer, key))
            if weight is not None:
                told = f"{donor.label} holds {spec.role or spec.template} packed ({weight.packing.name})"
                return Misfit(told, "E", weight)
        return None

    def _convert(
        self, spec: TensorSpec, donor: ResolvedModel, index: int, layer: int | None, differences: Sequence[Difference]
    ) -> Fit:
        segments: list[Segment] = []
        steps: list[str] = []
        folded: list[str] = []
        for part in spec.parts:
            held = _find_parts(donor, layer, part)
            if not held:
                return _tell_absent(part, self.target, donor, layer)
            turn = self._turn(part.role, donor)
            pieces = pair(part, [each for _, each in held], turn)
            if pieces is None:
                by_rows = self._pair_rows(part, held, donor)
                if isinstance(by_rows, Misfit):
                    return by_rows
                turn, pieces = None, by_rows
                differences = [*differences, ROWS_MEET_ROWS]
            fold, scale = self._scale(part.role, donor)
            for piece in pieces:
                segments = _append(segments, _cut(piece, held[piece.number][0], scale))
            steps += _tell_steps(spec, part, held, turn)
            if scale != 1.0:
                steps.append(f"times {scale:.6g}")
                folded.append(fold)
        gain = self._fold_gain(spec, donor, layer)
        if isinstance(gain, Misfit):
            return gain
        shift = self._norm_shift(spec, donor)
        if shift and donor.family and self.target.family:
            steps.append(f"norm gain {donor.family.norm_gain} -> {self.target.family.norm_gain}")
        if gain is not None:
            steps.append("gain of its input norm folded in")
            folded.append(INPUT_NORM)
        source = self._source(donor, index, segments, differences, steps, shift, gain)
        return source.model_copy(update={"folds": tuple(folded)}) if isinstance(source, Source) else source

    def _source(
        self,
        donor: ResolvedModel,
        index: int,
        segments: Sequence[Segment],
        differences: Sequence[Difference],
        steps: Sequence[str] = (),
        shift: float = 0.0,
        gain: Gain | None = None,
    ) -> Source | Misfit:
        refused = next((each for each in differences if each.grade == "E"), None)
        if refused is not None:
            return Misfit(refused.reason, "E")
        converted: list[Class] = ["B" for step in steps if not step.startswith("named ")]
        return Source(
            model=index,
            pin=donor.checkpoint.pin,
            segments=tuple(segments),
            shift=shift,
            gain=gain,
            steps=tuple(dict.fromkeys(steps)),
            fit=worst_class([*converted, *(each.grade for each in differences)]),
            notes=tuple(dict.fromkeys(each.reason for each in differences)),
        )

    def _pair_rows(self, part: RolePart, held: Sequence[Held], donor: ResolvedModel) -> list[Piece] | Misfit:
        """Rows with rows, where heads are of other sizes and the configuration allows it."""
        theirs = [each for _, each in held]
        told = f"{part.role}: {self.target.label} has {_tell_part(part)}, {donor.label} has {_tell_part(theirs[0])}"
        by_rows = pair(part, theirs, None, ignore_heads=True)
        if by_rows is None:
            return Misfit(told)
        if self.ignore_heads:
            return by_rows
        return Misfit(f"{told}: {OTHER_HEADS}", "E")

    def _is_alike(self, index: int) -> bool:
        """Whether a donor lays out its tensors as the target does, so that nothing has to be worked out."""
        if index not in self._alike:
            donor = self.architecture.models[index]
            self._alike[index] = donor.family == self.target.family and donor.axes == self.target.axes
        return self._alike[index]

    def _compare(self, role: str, spec: TensorSpec, index: int, layer: int | None) -> tuple[Difference, ...]:
        key = (index, role, spec.layer, layer)
        if key not in self._differences:
            layers = None if spec.layer is None or layer is None else (spec.layer, layer)
            donor = self.architecture.models[index]
            self._differences[key] = find_differences(self.target, donor, role, layers, self.folds)
        return self._differences[key]

    def _turn(self, role: str, donor: ResolvedModel) -> Turn | None:
        """How the rows of heads must be reordered, where the two models rotate other pairs of rows."""
        families, models = (self.target.family, donor.family), (self.target, donor)
        ours, theirs = (family.rope if family else "none" for family in families)
        if not role.startswith(ROTATED) or ours == theirs or "none" in (ours, theirs):
            return None
        interleaved = models[(ours, theirs).index("interleaved")]
        assert interleaved.traits is not None
        return Turn(ours, theirs, interleaved.traits.rotary)

    def _scale(self, role: str, donor: ResolvedModel) -> tuple[str, float]:
        """What a donor's numbers are multiplied by to make up for a scale of its config.json, and the fold's name."""
        weight = role.removesuffix("_bias").removesuffix("_exps").removesuffix("_shexp")
        fold = SOFTMAX_SCALE if weight == "attn_q" else RESIDUAL_SCALE if weight in WRITES_OUTPUT else ""
        if fold not in self.folds or donor is self.target or not donor.traits or not self.target.traits:
            return fold, 1.0
        if is_undone(self.target, fold):
            return fold, 1.0
        return fold, float(donor.traits.tell(fold)) / float(self.target.traits.tell(fold))

    def find_lost_biases(self, spec: TensorSpec, source: int, each: Input) -> LostBias | None:
        """The biases that belong to a donor's weight and that the target has no place for, scaled as the weight is.

        Args:
            spec: The target's weight.
            source: The weight's place among the sources of the tensor.
            each: The donor's share in the layer.
        """
        donor = self.architecture.models[each.model]
        roles: list[str] = []
        biases: list[Segment] = []
        for part in spec.parts:
            bias = replace(part, role=f"{part.role}_bias")
            if bias.role not in self.target.roles and (each.layer, bias.role) in donor.by_role:
                roles.append(bias.role)
                for held, theirs in _find_parts(donor, each.layer, bias):
                    _, scale = self._scale(bias.role, donor)
                    biases += [_cut(piece, held, scale) for piece in _as_read(theirs, part.expert)]
        return LostBias(model=each.model, source=source, roles=tuple(roles), biases=tuple(biases)) if roles else None

    def _fold_gain(self, spec: TensorSpec, donor: ResolvedModel, layer: int | None) -> Gain | Misfit | None:
        """The gains of the norms that a matrix reads from, where `input_norm` is folded."""
        kind = spec.parts[0].role.removesuffix("_exps").removesuffix("_shexp")
        if INPUT_NORM not in self.folds or donor is self.target or kind not in READS_INPUT:
            return None
        models, layers = (self.target, donor), (spec.layer, layer)
        roles = [find_input_norm(model, kind) for model in models]
        norms = [
            model.by_role[number, role][0][0] if role and (number, role) in model.by_role else None
            for model, number, role in zip(models, layers, roles, strict=True)
        ]
        if not any(norms):
            return None
        inexact = _why_inexact(models, layers, roles, norms)
        if inexact:
            return Misfit(f"{spec.parts[0].role}: 'folds: [input_norm]' cannot be exact here: {inexact}", "E")
        ours, theirs = (_whole(norm.stored) for norm in norms if norm)
        length, stride = next((count, step) for axis, count, step in spec.parts[0].loops if axis == "hidden")
        shifts = [1.0 if model.family and model.family.norm_gain == "1+w" else 0.0 for model in models]
        return Gain(
            donor=theirs,
            base=ours,
            base_model=self.architecture.target_index,
            base_pin=self.target.checkpoint.pin,
            donor_shift=shifts[1],
            base_shift=shifts[0],
            length=length,
            stride=stride,
        )

    def _norm_shift(self, spec: TensorSpec, donor: ResolvedModel) -> float:
        """What to add to a donor's norm weight so that base and donor multiply by the same thing."""
        assert self.target.family is not None and donor.family is not None
        ours, theirs = self.target.family.norm_gain, donor.family.norm_gain
        if spec.role is None or not spec.role.endswith("_norm") or ours == theirs:
            return 0.0
        return -1.0 if ours == "1+w" else 1.0


def _as_read(part: RolePart, expert: int | None) -> Iterator[Piece]:
    """A part in its own order; of one that holds all experts only what is the expert's, if one is given."""
    one = expert is not None and part.expert is None
    loops = [loop for loop in part.loops if not (one and loop[0] == part.along)]
    plain = replace(part, offset=0, loops=_contiguous(loops), expert=expert if one else part.expert)
    yield from pair(plain, [part], None) or ()


def _contiguous(loops: Sequence[Loop]) -> tuple[Loop, ...]:
    placed, stride = [], 1
    for axis, count, _ in reversed(loops):
        placed.append((axis, count, stride))
        stride *= count
    return tuple(reversed(placed))


def _why_inexact(
    models: Sequence[ResolvedModel],
    layers: Sequence[int | None],
    roles: Sequence[str | None],
    norms: Sequence[TensorSpec | None],
) -> str | None:
    # A gain is folded from norm to norm: what one of them divides by depends on the token, and is in no weight.
    without = next((model for model, norm in zip(models, norms, strict=True) if norm is None), None)
    if without is not None:
        return f"{without.label} norms nothing that it reads"
    if len({model.family.norm for model in models if model.family}) > 1:
        return "one of the two norms also takes away the mean"
    for model, layer, role in zip(models, layers, roles, strict=True):
        if (layer, f"{role}_bias") in model.by_role:
            return f"the norm of {model.label} has a bias"
    return None


def _find_parts(donor: ResolvedModel, layer: int | None, part: RolePart) -> Sequence[Held]:
    """What a donor has for a part; one that ties its output to its embedding gives the embedding for the output."""
    role = "token_embd" if part.role == "output" and donor.tied else part.role
    held = donor.by_role.get((layer, role), ())
    if part.expert is None or len(held) == 1:
        return held
    return [each for each in held if each[1].expert == part.expert]


def _tell_absent(part: RolePart, target: ResolvedModel, donor: ResolvedModel, layer: int | None) -> Absent | Misfit:
    role, others = part.role, donor.by_role.get((layer, part.role), ())
    if others:
        told = f"{target.label} has {target.axes[part.along]} {part.along}, {donor.label} has {len(others)}"
        return Misfit(f"{role}: {told}")
    told = f"{donor.label} ({donor.kind}) has no {role}"
    if role.endswith(SIDE_ROLES):
        return Absent(told)
    prefix = f"{role.partition('_')[0]}_"
    instead = sorted(
        other
        for at, other in donor.by_role
        if at == layer and other.startswith(prefix) and not other.endswith(SIDE_ROLES)
    )
    where = f" in its layer {layer}" if role in donor.roles else ""
    return Misfit(f"{told}{where}; it works with {', '.join(instead)}" if instead else f"{told}{where}", "E")


def _whole(stored: StoredTensor) -> Segment:
    return Segment(
        tensor=stored.name,
        file=stored.file,
        dtype=stored.dtype,
        offset=stored.offset,
        elements=math.prod(stored.shape),
    )


def _cut(piece: Piece, spec: TensorSpec, scale: float) -> Segment:
    """A piece of a stored tensor as a place in its file."""
    count = math.prod(loop[0] for loop in piece.order)
    plain = len(piece.order) == 1 and (piece.order[0][1:] == (1, 1) or count == 1)
    return Segment(
        tensor=spec.name,
        file=spec.stored.file,
        dtype=spec.dtype,
        offset=spec.stored.offset + piece.first * DTYPE_BITS[spec.dtype] // 8,
        elements=count,
        at=piece.at,
        order=() if plain else piece.order,
        scale=scale,
    )


def _append(segments: list[Segment], segment: Segment) -> list[Segment]:
    """Join a segment to the one before it where they touch on both sides."""
    last = segments[-1] if segments else None
    if (
        last is not None
        and not last.order
        and not segment.order
        and (last.tensor, last.scale) == (segment.tensor, segment.scale)
        and last.offset + last.nbytes == segment.offset
        and last.at + last.elements == segment.at
    ):
        return [*segments[:-1], last.model_copy(update={"elements": last.elements + segment.elements})]
    return [*segments, segment]


def _tell_steps(spec: TensorSpec, part: RolePart, held: Sequence[Held], turn: Turn | None) -> Iterator[str]:
    """What is done to a donor's part, each step by its name."""
    theirs, their_part = held[0]
    if len(theirs.parts) > 1 and [each.role for each in theirs.parts] != [each.role for each in spec.parts]:
        yield f"{part.role} taken out of {theirs.line}"
    elif theirs.line != spec.line and len(spec.parts) == 1:
        yield f"named {theirs.line}"
    elif len(spec.parts) > 1 and (part.offset, part.loops) != (their_part.offset, their_part.loops):
        yield f"{part.role} rearranged from {theirs.line}"
    if len(spec.parts) > 1 and len(theirs.parts) == 1:
        yield f"joined with {theirs.line}"
    if (part.expert is None) != (their_part.expert is None):
        yield f"{part.along} joined" if part.expert is None else f"one of its {part.along} taken out"
    ours, other = (_list_order(each) for each in (part, their_part))
    if ours != other and set(ours) == set(other):
        yield "transposed"
    if turn is not None:
        yield f"rotated rows {turn.theirs} -> {turn.ours}"


def _list_order(part: RolePart) -> list[str]:
    return [axis for axis, count, _ in part.loops if axis != "experts" and count > 1]


def _tell_part(part: RolePart) -> str:
    return f"{list(part.shape)} ({', '.join(f'{axis} {count}' for axis, count, _ in part.loops)})"
