"""Which layers of which models meet in each layer of the output."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from xmerge.architecture import ResolvedArchitecture
from xmerge.config import InputModel, MergeConfig, ModelReference, OutputSlice, Parameters
from xmerge.config.source import Path
from xmerge.errors import PlanError
from xmerge.methods import MergeMethod


@dataclass(frozen=True)
class Input:
    """One model's share in a layer of the output."""

    model: int
    """Index among the resolved models."""
    layer: int | None
    """The model's layer; None outside the layers."""
    parameters: Parameters
    path: Path
    """Where its parameters stand in the configuration."""


@dataclass(frozen=True)
class OutputLayer:
    """One layer of the output, or the tensors before or after the layers, and what meets there."""

    index: int | None
    after_layers: bool
    template_layer: int | None
    """The target's layer whose set of tensors this one has."""
    position: float
    """Where it stands in its slice, 0 to 1: where gradients are read."""
    inputs: tuple[Input, ...]
    base: int | None
    """Which input is the base; None: none of them."""
    levels: tuple[tuple[Path, Parameters], ...]
    """Parameters for all models, the nearest first."""
    merged: bool = True
    """False: a layer of the base that no slice lists and that stays in place."""

    @property
    def label(self) -> str:
        """What people call it."""
        if self.index is not None:
            return f"layer {self.index}"
        return "after the layers" if self.after_layers else "before the layers"


def lay_out(config: MergeConfig, architecture: ResolvedArchitecture, method: MergeMethod) -> tuple[OutputLayer, ...]:
    """Every layer of the output in order, with the tensors before and after the layers at the ends.

    Raises:
        PlanError: A range runs past a model's end, a slice lacks the base, or depths differ and no map says how they meet.
    """
    path, models, slices, module_levels = _choose_module(config)
    if slices:
        pieces = [
            _Piece.from_slice(config, architecture, each, (*path, "slices", index)) for index, each in enumerate(slices)
        ]
    else:
        pieces = [_Piece.from_models(config, architecture, models, path)]
    for piece in pieces:
        piece.check(config, architecture, method)
    if slices and config.unlisted_layers == "base":
        body = _fill_unlisted(config, architecture, pieces, module_levels)
    else:
        body = []
        for piece in pieces:
            body += piece.lay_out(len(body), architecture, module_levels)
    first, last = pieces[0], pieces[-1]
    outside_levels = ((("globals",), config.globals),)
    before = first.lay_out_globals(outside_levels, module_levels, after=False)
    after = last.lay_out_globals(outside_levels, module_levels, after=True)
    return (before, *body, after)


Levels = tuple[tuple[Path, Parameters], ...]


@dataclass(frozen=True)
class _Piece:
    """A slice, or the whole-model merge as one slice: for each of its layers the layers that meet."""

    path: Path
    models: tuple[int, ...]
    rows: tuple[tuple[int | None, ...], ...]
    """For each output layer, each model's layer; None: the model takes no part there."""
    parameters: tuple[tuple[Path, Parameters], ...]
    """Each model's own parameters."""
    levels: Levels
    base: int | None

    @classmethod
    def from_slice(
        cls, config: MergeConfig, architecture: ResolvedArchitecture, each: OutputSlice, path: Path
    ) -> _Piece:
        models = tuple(architecture.index_of(source.model) for source in each.sources)
        for number, source in enumerate(each.sources):
            _check_range(config, architecture, source.model, source.layer_range.end, (*path, "sources", number))
        ranges = [range(source.layer_range.start, source.layer_range.end) for source in each.sources]
        rows = tuple(zip(*ranges, strict=True))
        own = tuple(((*path, "sources", n, "parameters"), s.parameters) for n, s in enumerate(each.sources))
        base = _find_base(each.base_model or config.base_model, architecture, models)
        return cls(path, models, rows, own, (((*path, "parameters"), each.parameters),), base)

    @classmethod
    def from_models(
        cls,
        config: MergeConfig,
        architecture: ResolvedArchitecture,
        models: Sequence[InputModel],
        path: Path,
    ) -> _Piece:
        listed = [architecture.index_of(each.model) for each in models]
        own = [((*path, "models", index, "parameters"), each.parameters) for index, each in enumerate(models)]
        if config.base_model is not None and architecture.index_of(config.base_model) not in listed:
            listed.insert(0, architecture.index_of(config.base_model))
            own.insert(0, (("base_model",), {}))
        base = _find_base(config.base_model, architecture, listed)
        anchor = listed[base] if base is not None else architecture.target_index
        columns = [_map_layers(config, architecture, anchor, model) for model in listed]
        rows = tuple(zip(*columns, strict=True))
        return cls((*path, "models"), tuple(listed), rows, tuple(own), (), base)

    def check(self, config: MergeConfig, architecture: ResolvedArchitecture, method: MergeMethod) -> None:
        """Refuse a wrong number of models, and a missing base."""
        where = config.source.locate(*self.path)
        labels = ", ".join(architecture.models[model].label for model in self.models)
        fewest, most = method.inputs
        if len(self.models) < fewest or (most is not None and len(self.models) > most):
            wanted = f"exactly {fewest}" if fewest == most else f"{fewest} or more"
            raise PlanError(
                f"{method.name} takes {wanted} model{'s' if fewest != 1 or most != 1 else ''}"
                f"{' with the base' if method.base == 'required' else ''}, and {len(self.models)} meet here: {labels}.",
                where=where,
            )
        if method.base == "required" and self.base is None:
            named = config.base_model
            why = f"the base model {named} is not among: {labels}." if named else "there is no 'base_model'."
            raise PlanError(
                f"{method.name} needs a base to measure from.",
                where=where,
                why=why,
                remedy="set 'base_model' to one of the models that meet here."
                if not named
                else f"add {named} to the sources, or set this slice's own 'base_model'.",
            )

    def lay_out(self, start: int, architecture: ResolvedArchitecture, module_levels: Levels) -> list[OutputLayer]:
        """The piece's layers, counted from `start` in the output."""
        length = len(self.rows)
        layers = []
        for number, row in enumerate(self.rows):
            position = number / (length - 1) if length > 1 else 1.0
            inputs = self._inputs(row)
            template = self._template_layer(row, architecture)
            base = next(
                (
                    i
                    for i, each in enumerate(inputs)
                    if self.base is not None and each.path == self.parameters[self.base][0]
                ),
                None,
            )
            layers.append(
                OutputLayer(start + number, False, template, position, inputs, base, (*self.levels, *module_levels))
            )
        return layers

    def lay_out_globals(self, outside: Levels, module_levels: Levels, *, after: bool) -> OutputLayer:
        """The tensors before or after the layers; gradients are read at their first number, as mergekit does."""
        inputs = tuple(
            Input(model, None, parameters, path)
            for model, (path, parameters) in zip(self.models, self.parameters, strict=True)
        )
        return OutputLayer(None, after, None, 0.0, inputs, self.base, (*outside, *self.levels, *module_levels))

    def _inputs(self, row: tuple[int | None, ...]) -> tuple[Input, ...]:
        joined = zip(self.models, row, self.parameters, strict=True)
        return tuple(Input(model, layer, own, path) for model, layer, (path, own) in joined if layer is not None)

    def _template_layer(self, row: tuple[int | None, ...], architecture: ResolvedArchitecture) -> int:
        """The target's own layer where it meets here, else its layer of the first model's number, or its last."""
        for model, layer in zip(self.models, row, strict=True):
            if model == architecture.target_index and layer is not None:
                return layer
        first = next(layer for layer in row if layer is not None)
        return min(first, architecture.target.layers - 1)


def _choose_module(config: MergeConfig) -> tuple[Path, Sequence[InputModel], Sequence[OutputSlice], Levels]:
    """The models or slices, where they stand, and the levels of parameters above them."""
    top: Levels = ((("parameters",), config.parameters),)
    if not config.modules:
        return (), config.models, config.slices, top
    name, module = next(iter(config.modules.items()))
    unknown = [each for each in config.modules if each != "default"]
    if unknown:
        raise PlanError(
            f"the architecture has no module '{unknown[0]}'.",
            where=config.source.locate("modules", unknown[0]),
            remedy="a language model has the one module 'default'.",
        )
    return ("modules", name), module.models, module.slices, ((("modules", name, "parameters"), module.parameters), *top)


def _find_base(
    reference: ModelReference | None, architecture: ResolvedArchitecture, models: Sequence[int]
) -> int | None:
    if reference is None:
        return None
    index = architecture.index_of(reference)
    return models.index(index) if index in models else None


def _check_range(
    config: MergeConfig, architecture: ResolvedArchitecture, reference: ModelReference, end: int, path: Path
) -> None:
    model = architecture.models[architecture.index_of(reference)]
    if end > model.layers:
        raise PlanError(
            f"the layer range ends at {end}, and {model.label} has {model.layers} layers.",
            where=config.source.locate(*path, "layer_range"),
            remedy=f"ranges are half-open: [0, {model.layers}] is the whole model.",
        )


def _map_layers(config: MergeConfig, architecture: ResolvedArchitecture, anchor: int, model: int) -> list[int | None]:
    """For each layer of the anchor (the base), the layer of a model that meets it."""
    base, donor = architecture.models[anchor], architecture.models[model]
    depth = base.layers
    if model == anchor:
        return list(range(depth))
    if isinstance(config.layer_map, tuple):
        return _map_by_pairs(config, architecture, anchor, model)
    if depth == donor.layers:
        return list(range(depth))
    if config.layer_map == "proportional":
        last = max(depth - 1, 1)
        return [(2 * layer * (donor.layers - 1) + last) // (2 * last) for layer in range(depth)]
    raise PlanError(
        f"{base.label} has {depth} layers and {donor.label} has {donor.layers}.",
        where=config.source.locate("layer_map"),
        why="'layer_map: exact' lets layers of the same number meet.",
        remedy="set 'layer_map: proportional', or list pairs [base layer, donor layer].",
    )


def _map_by_pairs(config: MergeConfig, architecture: ResolvedArchitecture, anchor: int, model: int) -> list[int | None]:
    base, donor = architecture.models[anchor], architecture.models[model]
    column: list[int | None] = [None] * base.layers
    assert isinstance(config.layer_map, tuple)
    for index, (at, layer) in enumerate(config.layer_map):
        for owner, number in ((base, at), (donor, layer)):
            if number >= owner.layers:
                raise PlanError(
                    f"the pair [{at}, {layer}] names layer {number}, and {owner.label} has {owner.layers} layers.",
                    where=config.source.locate("layer_map", index),
                    remedy=f"layers of {owner.label} count from 0 to {owner.layers - 1}.",
                )
        column[at] = layer
    return column


def _fill_unlisted(
    config: MergeConfig, architecture: ResolvedArchitecture, pieces: list[_Piece], module_levels: Levels
) -> list[OutputLayer]:
    """The slices' layers at the target's own places, and its other layers as they are."""
    target = architecture.target_index
    listed: dict[int, OutputLayer] = {}
    for piece in pieces:
        for layer, row in zip(piece.lay_out(0, architecture, module_levels), piece.rows, strict=True):
            place = next((n for m, n in zip(piece.models, row, strict=True) if m == target and n is not None), None)
            if place is None or place in listed:
                fault = "is listed twice" if place is not None else "lists no layer of it"
                raise PlanError(
                    f"'unlisted_layers: base' puts each slice at its layers of {architecture.target.label}, and this one "
                    f"{fault}.",
                    where=config.source.locate(*piece.path),
                    remedy=f"give every slice a source of {architecture.target.label}, each of its layers once.",
                )
            listed[place] = OutputLayer(
                place, False, layer.template_layer, layer.position, layer.inputs, layer.base, layer.levels
            )
    return [listed.get(place) or _keep_layer(place, target) for place in range(architecture.target.layers)]


def _keep_layer(place: int, target: int) -> OutputLayer:
    inputs = (Input(target, place, {}, ()),)
    return OutputLayer(place, False, place, 0.0, inputs, 0, (), merged=False)


def walk_paths(layers: Sequence[OutputLayer]) -> Iterator[tuple[Path, Parameters]]:
    """Every place in the configuration whose parameters reach one of these layers, once."""
    seen: dict[Path, Parameters] = {}
    for layer in layers:
        for path, parameters in (*((each.path, each.parameters) for each in layer.inputs), *layer.levels):
            seen.setdefault(path, parameters)
    yield from seen.items()
