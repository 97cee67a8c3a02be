"""Whose architecture the output has, and what every tensor of every model does.

It is that of `architecture`, else of `base_model`, else of the first model named, and never depends on chance.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, cached_property
from typing import Any

from xmerge import garbage
from xmerge.architecture.family import Family, TensorTemplate, Unfit, find_family, find_unfit, list_families
from xmerge.architecture.layout import Loop
from xmerge.architecture.quantization import PackedWeight, find_packed, find_replaced, tell_method
from xmerge.architecture.rules import refuse_said, show
from xmerge.architecture.traits import Traits
from xmerge.checkpoints import Checkpoint, StoredTensor
from xmerge.config import MergeConfig, ModelReference, list_mentions, locate_mention
from xmerge.errors import CheckpointError, PlanError, XmergeError, nearest
from xmerge.source_cards import Origin, SourceCard
from xmerge.sources import Location, locate_model, read_model

MOST_LAYERS = 10_000
MOST_EXPERTS = 10_000
MOST_HEADS = 10_000
MOST_IN_ALL = 200_000
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

    @property
    def filter(self) -> str:
        """The part of its name that chooses it in every layer, its bias with it."""
        tail = self.line.rpartition("{layer}.")[2].partition("{")[0].rstrip(".")
        return tail.removesuffix(".weight")

    def name_in(self, layer: int) -> str:
        """What it is called in a layer; a stranger's name may hold other braces."""
        return self.template.replace("{layer}", str(layer))


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
    foreseen: ForeseenModel | None = None
    """Set where an earlier stage of the recipe is going to make it."""

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
        """The way its weights are packed, None for plain weights."""
        packed = next(iter(self.packed.values()), None)
        return packed.packing.name if packed else tell_method(self.checkpoint.config)

    @property
    def config(self) -> Mapping[str, Any]:
        """The part of config.json that describes the language model."""
        config = self.checkpoint.config
        return self.family.language_config(config) if self.family else config

    @property
    def unfit(self) -> Unfit | None:
        """What of its config.json keeps it from a family file for its `model_type`; None: nothing, or there is none."""
        return None if self.family else find_unfit(self.checkpoint.config)

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
    def has_further_layers(self) -> bool:
        """Whether layers that only predict further tokens lie behind the last."""
        return any(spec.layer is None and "{layer}" in spec.line for spec in self.tensors)

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
        return held[0][0].filter

    @cached_property
    def by_template(self) -> Mapping[tuple[int | None, str], TensorSpec]:
        """(layer, name with `{layer}`) -> tensor; one without a role by every name that checkpoints hold it under."""
        found = {(spec.layer, spec.template): spec for spec in self.tensors}
        family = self.family
        for spec in self.tensors if family else ():
            for name in family.list_names(spec.template) if family and spec.role is None else ():
                found.setdefault((spec.layer, name), spec)
        return found

    @cached_property
    def by_layer(self) -> Mapping[int | None, tuple[TensorSpec, ...]]:
        """Each layer's tensors, by name; None: those outside the layers."""
        grouped: dict[int | None, list[TensorSpec]] = {}
        for spec in self.tensors:
            grouped.setdefault(spec.layer, []).append(spec)
        return {layer: tuple(specs) for layer, specs in grouped.items()}


@dataclass(frozen=True)
class ForeseenModel:
    """A model that an earlier stage of the recipe is going to make, as its plan says."""

    location: Location
    checkpoint: Checkpoint
    card: SourceCard
    origins: tuple[Origin, ...]
    """The models that it is made of, those that other stages make taken apart."""


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


def resolve(config: MergeConfig, foreseen: Mapping[str, ForeseenModel] | None = None) -> ResolvedArchitecture:
    """Find every model of a configuration and decide whose architecture the output has.

    Args:
        config: The configuration.
        foreseen: Models that earlier stages are going to make, by name; such a name goes before a folder's.

    Raises:
        CheckpointError: A model is missing, damaged, or contradicts itself.
        PlanError: `architecture` names a model that the configuration does not use.
    """
    references = tuple(dict.fromkeys(list_references(config)))
    target = _choose_target(config, references)
    known = foreseen or {}
    locations = label_apart([_locate(config, reference, known) for reference in references])
    with garbage.left_alone():
        models = tuple(
            describe_model(location, reference.override_architecture, known.get(reference.model.path))
            for location, reference in zip(locations, references, strict=True)
        )
    return ResolvedArchitecture(models, references, references.index(target))


def list_references(config: MergeConfig) -> Iterator[ModelReference]:
    """The models of a configuration in a fixed order: the base, then as written."""
    yield from (reference for _, reference in list_mentions(config))


def _locate(config: MergeConfig, reference: ModelReference, foreseen: Mapping[str, ForeseenModel]) -> Location:
    """Find a model; an error says where the configuration names it."""
    if reference.model.path in foreseen:
        return foreseen[reference.model.path].location
    try:
        return locate_model(reference, config.source.folder)
    except XmergeError as error:
        where = "; ".join(filter(None, (locate_mention(config, reference), error.where)))
        raise type(error)(error.what, where=where, why=error.why, remedy=error.remedy) from None


def describe_model(
    location: Location, override: str | None = None, foreseen: ForeseenModel | None = None
) -> ResolvedModel:
    """Read a model's config and headers, and say what each of its tensors does.

    Args:
        location: Where it is.
        override: The class name that takes the place of the one in its config.json.
        foreseen: What its config and headers are going to say, where an earlier stage makes it.

    Raises:
        CheckpointError: Something is missing, damaged, or config.json and headers contradict each other.
        PlanError: No family has the class `override`.
    """
    if foreseen is not None:
        described = _describe(location, replace(foreseen.checkpoint, label=location.label), override)
        return replace(described, foreseen=foreseen)
    return _describe(location, read_model(location), override)


def _describe(location: Location, checkpoint: Checkpoint, override: str | None) -> ResolvedModel:
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
    _check_config(checkpoint, found)
    family = found.spelled_like(checkpoint.tensors)
    config = family.language_config(checkpoint.config)
    axes = family.read_axes(config, checkpoint.label)
    tied = family.is_tied(config, checkpoint.tensors)
    _refuse_impossible_size(axes, checkpoint)
    known = expect_tensors(family, axes)
    packed = _find_packed(checkpoint, config, known, tied=tied)
    specs = [
        _specify_packed(stored, packed[stored.name], known, family.layer_beginnings)
        if stored.name in packed
        else _specify(stored, family, known, checkpoint.label)
        for stored in checkpoint.tensors.values()
    ]
    further = family.count_further_layers(config, axes)
    specs = [_set_apart(spec, axes["layers"], further) for spec in specs]
    _check_layer_count(specs, axes["layers"], checkpoint.label)
    places = _place_packed(packed, known, family.layer_beginnings)
    return ResolvedModel(location, checkpoint, family, axes, axes["layers"], tied, tuple(specs), places)


def _check_config(checkpoint: Checkpoint, family: Family) -> None:
    """Refuse what config.json says in the place of the language model's part, or of yes and no to ties."""
    said = checkpoint.config
    nested = said.get(family.config) if family.config else None
    if nested is not None and not isinstance(nested, Mapping):
        raise refuse_said(checkpoint.label, f"{family.config} = {show(nested)}", "no mapping")
    tied = family.language_config(said).get("tie_word_embeddings")
    if tied is not None and not isinstance(tied, bool):
        raise refuse_said(checkpoint.label, f"tie_word_embeddings = {show(tied)}", "neither true nor false")


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


def label_apart(locations: list[Location]) -> list[Location]:
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
    layers = axes["layers"]
    for axis, count, most in (
        ("layers", layers, MOST_LAYERS),
        ("experts", axes.get("experts", 0), MOST_EXPERTS),
        ("heads", axes.get("heads", 0), MOST_HEADS),
        ("key and value heads", axes.get("kv_heads", 0), MOST_HEADS),
        ("experts in all its layers", layers * axes.get("experts", 0), MOST_IN_ALL),
        ("heads in all its layers", layers * axes.get("heads", 0), MOST_IN_ALL),
        ("key and value heads in all its layers", layers * axes.get("kv_heads", 0), MOST_IN_ALL),
    ):
        if count > most and count > len(checkpoint.tensors):
            raise CheckpointError(
                f"{checkpoint.label} contradicts itself: its config.json says {count} {axis}, and it holds "
                f"{len(checkpoint.tensors)} tensors.",
                remedy="fetch config.json and weights of one and the same revision.",
            )


@dataclass(frozen=True, slots=True)
class Line:
    """A line of a family file in one model, for one expert where every expert has a tensor: what all layers share."""

    template: TensorTemplate
    name: str
    """With `{layer}` in place of the layer's number."""
    shape: tuple[int, ...]
    role: str
    parts: tuple[RolePart, ...]


@dataclass(frozen=True, slots=True)
class Place:
    """Which line a tensor's name comes from, and for which layer."""

    line: Line
    layer: int | None
    after: bool = False

    @property
    def template(self) -> TensorTemplate:
        """The line as the family file has it."""
        return self.line.template


Expected = dict[str, Place]


def expect_tensors(family: Family, axes: Mapping[str, int]) -> Expected:
    """Every name the family can have, in the order of the model."""
    sections = [
        [line for template in section for line in _number_lines(template, axes)]
        for section in (family.before, family.layer, family.after)
    ]
    before, layer_lines, after = sections
    known: Expected = {line.name: Place(line, None) for line in before}
    for layer in range(axes["layers"]):
        known |= {line.name.replace("{layer}", str(layer)): Place(line, layer) for line in layer_lines}
    return known | {line.name: Place(line, None, after=True) for line in after}


def _number_lines(template: TensorTemplate, axes: Mapping[str, int]) -> Iterator[Line]:
    numbers = range(axes[template.numbered]) if template.numbered else (None,)
    blocks, shape = template.blocks(axes), template.shape(axes)
    for number in numbers:
        parts = tuple(
            RolePart(role, block.offset, block.loops, block.shape, number, template.numbered or "experts")
            for role, block in zip(template.roles, blocks, strict=True)
        )
        yield Line(template, template.name_of(None, number), shape, template.role, parts)


def _specify(stored: StoredTensor, family: Family, known: Expected, label: str) -> TensorSpec:
    place = known.get(stored.name)
    if place is None:
        return _specify_by_name(stored, family.layer_beginnings)
    line = place.line
    if line.shape != stored.shape:
        raise CheckpointError(
            f"{label} contradicts itself: {stored.name} has shape {list(stored.shape)}, and its config.json asks for "
            f"{list(line.shape)}.",
            remedy="fetch config.json and weights of one and the same revision.",
        )
    return TensorSpec(
        stored.name, line.role, place.layer, place.after, stored, line.parts, line.name, line.template.name
    )


def _specify_by_name(stored: StoredTensor, beginnings: tuple[str, ...] = ("",)) -> TensorSpec:
    """A tensor that no line of a family file names; its layer is a number behind one of these beginnings.

    The towers of a multimodal model have layers too, and they are none of the language model's.
    """
    layer, template = _find_layer(stored.name, beginnings)
    after = layer is None and stored.name in _list_names_after_layers()
    return TensorSpec(stored.name, None, layer, after, stored, (), template, template)


def _specify_packed(
    stored: StoredTensor, weight: PackedWeight, known: Expected, beginnings: tuple[str, ...] = ("",)
) -> TensorSpec:
    """A part of a packed weight: it lies where the weight would, and is carried by its name."""
    spec, place = _specify_by_name(stored, beginnings), known.get(weight.name)
    after = place.after if place else weight.name in _list_names_after_layers()
    return replace(spec, packed=weight, after_layers=spec.layer is None and after)


def _find_layer(name: str, beginnings: tuple[str, ...]) -> tuple[int | None, str]:
    """The layer in a name, and the name with `{layer}` in its place."""
    match = _LAYER_IN_NAME.search(name) if name.startswith(beginnings) else None
    if match is None:
        return None, name
    return int(match[1]), f"{name[: match.start(1)]}{{layer}}{name[match.end(1) :]}"


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
    packed = find_packed(checkpoint.config, checkpoint.tensors, checkpoint.label)
    specs = tuple(
        _specify_packed(stored, packed[stored.name], {}) if stored.name in packed else _specify_by_name(stored)
        for stored in checkpoint.tensors.values()
    )
    told = [checkpoint.config.get(key) for key in ("num_hidden_layers", "n_layer", "num_layers")]
    counted = 1 + max((spec.layer for spec in specs if spec.layer is not None), default=-1)
    layers = next((number for number in told if type(number) is int and number > 0), counted)
    specs = tuple(_leave_towers(specs, layers))
    _refuse_impossible_size({"layers": layers}, checkpoint)
    tied = bool(checkpoint.config.get("tie_word_embeddings", False))
    return ResolvedModel(location, checkpoint, None, {}, layers, tied, specs, _place_packed(packed, {}))


def _leave_towers(specs: Sequence[TensorSpec], layers: int) -> Iterator[TensorSpec]:
    """The tensors of an unknown model, where only those count as layers that are as many as config.json says.

    Other numbered blocks, such as those of a vision tower, are carried as they are.
    """
    depths: dict[str, int] = {}
    for spec in specs:
        if spec.layer is not None:
            beginning = spec.template.partition("{layer}")[0]
            depths[beginning] = max(depths.get(beginning, 0), spec.layer + 1)
    fitting = {beginning for beginning, depth in depths.items() if depth == layers} or set(depths)
    for spec in specs:
        if spec.layer is None or spec.template.partition("{layer}")[0] in fitting:
            yield spec
        else:
            yield replace(spec, layer=None, template=spec.name, line=spec.name)


def _set_apart(spec: TensorSpec, layers: int, further: int) -> TensorSpec:
    """A tensor of a layer that only predicts further tokens stands behind the layers."""
    if spec.layer is None or not layers <= spec.layer < layers + further:
        return spec
    return replace(spec, layer=None, after_layers=True, template=spec.name)


def _check_layer_count(specs: list[TensorSpec], layers: int, label: str) -> None:
    beyond = next((spec for spec in specs if spec.layer is not None and spec.layer >= layers), None)
    if beyond is not None:
        raise CheckpointError(
            f"{label} contradicts itself: it holds {beyond.name}, and its config.json says {layers} layers.",
            remedy="fetch config.json and weights of one and the same revision.",
        )


def _find_packed(
    checkpoint: Checkpoint, config: Mapping[str, Any], known: Expected, *, tied: bool
) -> dict[str, PackedWeight]:
    """The packed weights of a model of a known family, by the names of all tensors that belong to them.

    Raises:
        CheckpointError: It lacks weights, and nothing lies in their places.
    """
    label, said = checkpoint.label, {**config, **checkpoint.config}
    packed = find_packed(said, checkpoint.tensors, label)
    there = {*checkpoint.tensors, *(weight.name for weight in packed.values())}
    missing = [name for name, place in known.items() if name not in there and place.template.exists(config, tied=tied)]
    if missing:
        free = [name for name in checkpoint.tensors if name not in known and name not in packed]
        for weight in find_replaced(said, missing, free, label):
            missing.remove(weight.name)
            packed |= dict.fromkeys(weight.stored, weight)
    if missing:
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        raise CheckpointError(
            f"{label} lacks {', '.join(missing[:3])}{more}.",
            why=f"its config.json describes a {checkpoint.config.get('model_type')} that has them.",
            remedy="fetch the whole model again.",
        )
    return packed


def _place_packed(
    packed: Mapping[str, PackedWeight], known: Expected, beginnings: tuple[str, ...] = ("",)
) -> dict[tuple[int | None, str], PackedWeight]:
    """(layer, role, or name with `{layer}`) -> the packed weight that is there; one of them, for experts."""
    found: dict[tuple[int | None, str], PackedWeight] = {}
    for weight in {weight.name: weight for weight in packed.values()}.values():
        place = known.get(weight.name)
        if place is not None:
            for role in place.template.roles:
                found.setdefault((place.layer, role), weight)
        found[_find_layer(weight.name, beginnings)] = weight
    return found


def config_dtype(config: Mapping[str, Any]) -> str | None:
    """The dtype that a config.json claims, in either of transformers' spellings."""
    for key in ("dtype", "torch_dtype"):
        if isinstance(config.get(key), str):
            return str(config[key]).removeprefix("torch.")
    return None
