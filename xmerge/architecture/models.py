"""Whose architecture the output has, and what every tensor of every model does.

It is that of `architecture`, else of `base_model`, else of the first model named, and never depends on chance.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property
from typing import Any

from xmerge.architecture.family import Family, TensorTemplate, find_family, list_families
from xmerge.architecture.layout import Block, Loop
from xmerge.architecture.quantization import PackedWeight, find_packed, find_replaced, tell_method
from xmerge.architecture.traits import Traits
from xmerge.checkpoints import Checkpoint, StoredTensor
from xmerge.config import MergeConfig, ModelReference, ModuleDefinition
from xmerge.errors import CheckpointError, PlanError, nearest
from xmerge.sources import Location, locate_model, read_model

MOST_LAYERS = 10_000
MOST_EXPERTS = 10_000
MOST_HEADS = 10_000
"""More than any model has, and few enough to be compared with the headers one by one."""

_LAYER_IN_NAME = re.compile(r"(?:^|\.)(?:layers|h|blocks|block)\.(0|[1-9]\d{0,8})\.")


@dataclass(frozen=True, slots=True)
class RolePart:
    """Where one role's numbers lie in a tensor of one model."""

    role: str
    offset: int
    """The first one's place, in elements."""
    loops: tuple[Loop, ...]
    """The axes by name: equal shapes with other heads are not equal here."""
    shape: tuple[int, ...]
    expert: int | None = None
    """Which expert's they are, where every expert has a tensor of its own."""
    along: str = "experts"
    """The axis that `expert` counts: the norms of heads may be tensors of their own too."""


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """A tensor of one model, and what it does."""

    name: str
    role: str | None
    """None: no family file says what it does; it is matched by name, or carried from the base."""
    layer: int | None
    """None: outside the layers."""
    after_layers: bool
    stored: StoredTensor
    parts: tuple[RolePart, ...]
    template: str
    """The name with `{layer}` in place of the layer's number."""
    line: str
    """The name as the family file has it; the template where there is none."""
    packed: PackedWeight | None = None
    """The packed weight that it holds a part of; it then has no role."""

    @property
    def shape(self) -> tuple[int, ...]:
        """As the header says."""
        return self.stored.shape

    @property
    def dtype(self) -> str:
        """As the header writes it: `BF16`."""
        return self.stored.dtype


@dataclass(frozen=True)
class ResolvedModel:
    """A model of the configuration, with its family and what its tensors do."""

    location: Location
    checkpoint: Checkpoint
    family: Family | None
    axes: Mapping[str, int]
    layers: int
    tied: bool
    tensors: tuple[TensorSpec, ...]
    packed: Mapping[tuple[int | None, str], PackedWeight] = field(default_factory=dict)
    """(layer, role, or name with `{layer}`) -> what it holds packed."""

    @property
    def label(self) -> str:
        """What people call it."""
        return self.checkpoint.label

    @property
    def model_type(self) -> str:
        """As config.json says."""
        return str(self.checkpoint.config.get("model_type", "unknown"))

    @property
    def kind(self) -> str:
        """The family's name, or the model type where no family file exists."""
        return self.family.family if self.family else self.model_type

    @property
    def quantization(self) -> str | None:
        """The method its weights are packed by, None for plain weights."""
        return tell_method(self.checkpoint.config)

    @property
    def config(self) -> Mapping[str, Any]:
        """The part of config.json that describes the language model."""
        config = self.checkpoint.config
        return self.family.language_config(config) if self.family else config

    @cached_property
    def traits(self) -> Traits | None:
        """What no shape shows; None where no family file says how to read it."""
        return Traits(self.family, self.config, self.axes, self.label) if self.family else None

    @cached_property
    def by_role(self) -> Mapping[tuple[int | None, str], tuple[tuple[TensorSpec, RolePart], ...]]:
        """(layer, role) -> the tensors that hold it, and where: one, or one for each expert."""
        found: dict[tuple[int | None, str], list[tuple[TensorSpec, RolePart]]] = {}
        for spec in self.tensors:
            for part in spec.parts:
                found.setdefault((spec.layer, part.role), []).append((spec, part))
        return {key: tuple(each) for key, each in found.items()}

    @cached_property
    def roles(self) -> frozenset[str]:
        """Everything that some tensor of it does."""
        return frozenset(role for _, role in self.by_role)

    def filter_of(self, role: str) -> str | None:
        """The part of a name that chooses a role's tensors in every layer, its biases with it; None: none does.

        A tensor that holds other roles too cannot be chosen for one of them.
        """
        held = next((held for (_, each), held in self.by_role.items() if each == role), None)
        if held is None or len(held[0][0].parts) > 1:
            return None
        tail = held[0][0].line.rpartition("{layer}.")[2].partition("{")[0].rstrip(".")
        return tail.removesuffix(".weight")

    @cached_property
    def by_template(self) -> Mapping[tuple[int | None, str], TensorSpec]:
        """(layer, name with `{layer}`) -> tensor."""
        return {(spec.layer, spec.template): spec for spec in self.tensors}

    @cached_property
    def by_layer(self) -> Mapping[int | None, tuple[TensorSpec, ...]]:
        """Each layer's tensors, by name; None: those outside the layers."""
        grouped: dict[int | None, list[TensorSpec]] = {}
        for spec in self.tensors:
            grouped.setdefault(spec.layer, []).append(spec)
        return {layer: tuple(specs) for layer, specs in grouped.items()}


@dataclass(frozen=True)
class ResolvedArchitecture:
    """All models of a configuration, in the order in which it names them, and which of them is the target."""

    models: tuple[ResolvedModel, ...]
    references: tuple[ModelReference, ...]
    target_index: int

    @property
    def target(self) -> ResolvedModel:
        """The model whose architecture, config.json, tokenizer and dtype the output has."""
        return self.models[self.target_index]

    def index_of(self, reference: ModelReference) -> int:
        """The place of a model among `models`."""
        return self.references.index(reference)


def resolve(config: MergeConfig) -> ResolvedArchitecture:
    """Find every model of a configuration and decide whose architecture the output has.

    Raises:
        CheckpointError: A model is missing, damaged, or contradicts itself.
        PlanError: `architecture` names a model that the configuration does not use.
    """
    references = tuple(dict.fromkeys(list_references(config)))
    target = _choose_target(config, references)
    locations = _label_apart([locate_model(reference, config.source.folder) for reference in references])
    models = tuple(
        describe_model(location, reference.override_architecture)
        for location, reference in zip(locations, references, strict=True)
    )
    return ResolvedArchitecture(models, references, references.index(target))


def list_references(config: MergeConfig) -> Iterator[ModelReference]:
    """The models of a configuration in a fixed order: the base, then as written."""
    if config.base_model is not None:
        yield config.base_model
    parts: list[MergeConfig | ModuleDefinition] = [config, *config.modules.values()]
    for part in parts:
        yield from (each.model for each in part.models)
        for piece in part.slices:
            yield from (source.model for source in piece.sources)
            if piece.base_model is not None:
                yield piece.base_model


def describe_model(location: Location, override: str | None = None) -> ResolvedModel:
    """Read a model's config and headers, and say what each of its tensors does.

    Raises:
        CheckpointError: Something is missing, damaged, or config.json and headers contradict each other.
        PlanError: No family has the class `override`.
    """
    checkpoint = read_model(location)
    family = find_family(checkpoint.config, override)
    if family is None and override is not None:
        names = [name for each in list_families() for name in each.architectures]
        raise PlanError(
            f"no family has the architecture '{override}', which 'override_architecture' asks for.",
            where=location.label,
            remedy=nearest(override, names),
        )
    if family is None:
        return _describe_unknown(location, checkpoint)
    try:
        return describe_checkpoint(location, checkpoint, family)
    except CheckpointError as error:
        method = tell_method(checkpoint.config)
        if method is None:
            raise
        raise CheckpointError(
            f"{checkpoint.label} is quantised ({method}), and what it holds are not a {family.family}'s own tensors.",
            why=error.what,
            remedy="merge a checkpoint in bfloat16, float16 or float32, and quantise the result.",
        ) from None


def describe_checkpoint(location: Location, checkpoint: Checkpoint, found: Family) -> ResolvedModel:
    """What each tensor of a checkpoint does, by the file of its family.

    Raises:
        CheckpointError: config.json and headers contradict each other.
    """
    family = found.spelled_like(checkpoint.tensors)
    config = family.language_config(checkpoint.config)
    axes = family.read_axes(config, checkpoint.label)
    tied = family.is_tied(config, checkpoint.tensors)
    _refuse_impossible_size(axes, checkpoint)
    known = expect_tensors(family, axes)
    blocks = {template.name: template.blocks(axes) for template in family.templates}
    specs = [_specify(stored, family, known, axes, blocks, checkpoint.label) for stored in checkpoint.tensors.values()]
    _check_layer_count(specs, axes["layers"], checkpoint.label)
    _check_nothing_missing(known, checkpoint, config, tied=tied)
    return ResolvedModel(location, checkpoint, family, axes, axes["layers"], tied, tuple(specs))


def _choose_target(config: MergeConfig, references: tuple[ModelReference, ...]) -> ModelReference:
    if config.architecture == "base":
        return references[0]
    if config.architecture not in references:
        raise PlanError(
            f"'architecture' names {config.architecture}, which is no model of this configuration.",
            where=config.source.locate("architecture"),
            remedy=f"name one of: {', '.join(str(each) for each in references)}.",
        )
    return config.architecture


def _label_apart(locations: list[Location]) -> list[Location]:
    """Number the labels of different models that would read alike."""
    seen: dict[str, int] = {}
    apart = []
    for location in locations:
        seen[location.label] = seen.get(location.label, 0) + 1
        number = seen[location.label]
        label = location.label if number == 1 else f"{location.label}#{number}"
        apart.append(location.model_copy(update={"label": label}))
    return apart


def _refuse_impossible_size(axes: Mapping[str, int], checkpoint: Checkpoint) -> None:
    """Names are made for every layer and expert, so a config.json must not be able to ask for names without end."""
    for axis, most in (("layers", MOST_LAYERS), ("experts", MOST_EXPERTS), ("heads", MOST_HEADS)):
        count = axes.get(axis, 0)
        if count > most and count > len(checkpoint.tensors):
            raise CheckpointError(
                f"{checkpoint.label} contradicts itself: its config.json says {count} {axis}, and it holds "
                f"{len(checkpoint.tensors)} tensors.",
                remedy="fetch config.json and weights of one and the same revision.",
            )


@dataclass(frozen=True, slots=True)
class Place:
    """Which line of the family file a name comes from, and for which layer and expert."""

    template: TensorTemplate
    layer: int | None
    after: bool = False
    expert: int | None = None


Expected = dict[str, Place]


def expect_tensors(family: Family, axes: Mapping[str, int]) -> Expected:
    """Every name the family can have, in the order of the model."""
    known: Expected = {template.name: Place(template, None) for template in family.before}
    for layer in range(axes["layers"]):
        for template in family.layer:
            for number in range(axes[template.numbered]) if template.numbered else (None,):
                known[template.name_of(layer, number)] = Place(template, layer, expert=number)
    return known | {template.name: Place(template, None, after=True) for template in family.after}


def _specify(
    stored: StoredTensor,
    family: Family,
    known: Expected,
    axes: Mapping[str, int],
    blocks: Mapping[str, Sequence[Block]],
    label: str,
) -> TensorSpec:
    place = known.get(stored.name)
    if place is None:
        return _specify_by_name(stored, family.layer_beginnings)
    template = place.template
    if template.shape(axes) != stored.shape:
        raise CheckpointError(
            f"{label} contradicts itself: {stored.name} has shape {list(stored.shape)}, and its config.json asks for "
            f"{list(template.shape(axes))}.",
            remedy="fetch config.json and weights of one and the same revision.",
        )
    parts = tuple(
        RolePart(role, block.offset, block.loops, block.shape, place.expert, template.numbered or "experts")
        for role, block in zip(template.roles, blocks[template.name], strict=True)
    )
    written = template.name_of(None, place.expert)
    return TensorSpec(stored.name, template.role, place.layer, place.after, stored, parts, written, template.name)


def _specify_by_name(stored: StoredTensor, beginnings: tuple[str, ...] = ("",)) -> TensorSpec:
    """A tensor that no line of a family file names; its layer is a number behind one of these beginnings.

    The towers of a multimodal model have layers too, and they are none of the language model's.
    """
    match = _LAYER_IN_NAME.search(stored.name) if stored.name.startswith(beginnings) else None
    if match is None:
        after = stored.name in _list_names_after_layers()
        return TensorSpec(stored.name, None, None, after, stored, (), stored.name, stored.name)
    template = f"{stored.name[: match.start(1)]}{{layer}}{stored.name[match.end(1) :]}"
    return TensorSpec(stored.name, None, int(match[1]), False, stored, (), template, template)


@cache
def _list_names_after_layers() -> frozenset[str]:
    """What stands behind the layers in any known family does so in an unknown one."""
    return frozenset(
        template.name
        for family in list_families()
        for spelling in family.spellings
        for template in family.spell(spelling).after
    )


def _describe_unknown(location: Location, checkpoint: Checkpoint) -> ResolvedModel:
    specs = tuple(_specify_by_name(stored) for stored in checkpoint.tensors.values())
    told = [checkpoint.config.get(key) for key in ("num_hidden_layers", "n_layer", "num_layers")]
    counted = 1 + max((spec.layer for spec in specs if spec.layer is not None), default=-1)
    layers = next((number for number in told if type(number) is int and number > 0), counted)
    _refuse_impossible_size({"layers": layers}, checkpoint)
    tied = bool(checkpoint.config.get("tie_word_embeddings", False))
    return ResolvedModel(location, checkpoint, None, {}, layers, tied, specs)


def _check_layer_count(specs: list[TensorSpec], layers: int, label: str) -> None:
    beyond = next((spec for spec in specs if spec.layer is not None and spec.layer >= layers), None)
    if beyond is not None:
        raise CheckpointError(
            f"{label} contradicts itself: it holds {beyond.name}, and its config.json says {layers} layers.",
            remedy="fetch config.json and weights of one and the same revision.",
        )


def _check_nothing_missing(known: Expected, checkpoint: Checkpoint, config: Mapping[str, Any], *, tied: bool) -> None:
    missing = [
        name
        for name, place in known.items()
        if name not in checkpoint.tensors and place.template.exists(config, tied=tied)
    ]
    if missing:
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        raise CheckpointError(
            f"{checkpoint.label} lacks {', '.join(missing[:3])}{more}.",
            why=f"its config.json describes a {checkpoint.config.get('model_type')} that has them.",
            remedy="fetch the whole model again.",
        )


def config_dtype(config: Mapping[str, Any]) -> str | None:
    """The dtype that a config.json claims, in either of transformers' spellings."""
    for key in ("dtype", "torch_dtype"):
        if isinstance(config.get(key), str):
            return str(config[key]).removeprefix("torch.")
    return None
