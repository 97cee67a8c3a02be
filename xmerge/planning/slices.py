"""Which layers of which models meet in each layer of the output."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from xmerge.architecture import ResolvedArchitecture
from xmerge.config import InputModel, MergeConfig, ModelReference, OutputSlice, Parameters
from xmerge.config.source import Path
from xmerge.errors import PlanError
from xmerge.methods import MergeMethod
from xmerge.planning.layer_map import map_layers

Levels = tuple[tuple[Path, Parameters], ...]
"""Parameters and where they stand in the configuration, the nearest first."""


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
    levels: Levels
    """Parameters for all models."""
    missing: tuple[int, ...] = ()
    """Models that take part in other layers and have none that meets here."""
    overrides: Levels = ()
    """Parameters that come before those of any model: `globals`, outside the layers."""
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
        PlanError: A range runs past a model's end, a slice lacks the base, or nothing says how the layers of models of
            different depth meet.
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
    _refuse_moved_end(config, architecture, len(body), (*path, "slices"))
    first, last = pieces[0], pieces[-1]
    overrides = ((("globals",), config.globals),)
    before = first.lay_out_outside(overrides, module_levels, after=False)
    after = last.lay_out_outside(overrides, module_levels, after=True)
    return (before, *body, after)


def _refuse_moved_end(config: MergeConfig, architecture: ResolvedArchitecture, layers: int, path: Path) -> None:
    """Layers that only predict further tokens are numbered on from the last, which must stay where it is."""
    target = architecture.target
    if layers != target.layers and target.has_further_layers:
        raise PlanError(
            f"the output would have {layers} layers, and {target.label} holds layers behind its {target.layers} that "
            "predict further tokens.",
            where=config.source.locate(*path),
            why="those layers are numbered on from the last.",
            remedy=f"keep {target.layers} layers, or merge checkpoints without what lies behind them.",
        )


@dataclass(frozen=True)
class _Piece:
    """A slice, or the whole-model merge as one slice: for each of its layers the layers that meet."""

    path: Path
    models: tuple[int, ...]
    rows: tuple[tuple[int | None, ...], ...]
    """For each output layer, each model's layer; None: the model takes no part there."""
    parameters: Levels
    """Each model's own parameters."""
    levels: Levels
    base_model: ModelReference | None
    """What the configuration names as the base here, whether it meets here or not."""
    base: int | None
    """Which of the models is the base."""

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
        named = each.base_model or config.base_model
        base = _find_base(named, architecture, models)
        return cls(path, models, rows, own, (((*path, "parameters"), each.parameters),), named, base)

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
        columns = [map_layers(config, architecture, model) for model in listed]
        rows = tuple(zip(*columns, strict=True))
        return cls((*path, "models"), tuple(listed), rows, tuple(own), (), config.base_model, base)

    def check(self, config: MergeConfig, architecture: ResolvedArchitecture, method: MergeMethod) -> None:
        """Refuse a wrong number of models, and a missing base."""
        self._check_number(config, architecture, method)
        where = config.source.locate(*self.path)
        labels = ", ".join(architecture.models[model].label for model in self.models)
        named = self.base_model
        if method.base == "optional" and named is not None and self.base is None:
            raise PlanError(
                f"{method.name} cannot measure from a base that does not meet here.",
                where=where,
                why=f"the base model {named} is not among: {labels}.",
                remedy=f"add {named} to the sources, or leave out 'base_model' to merge the models themselves.",
            )
        if method.base == "required" and self.base is None:
            raise PlanError(
                f"{method.name} needs a base to measure from.",
                where=where,
                why=f"the base model {named} is not among: {labels}." if named else "there is no 'base_model'.",
                remedy=f"add {named} to the sources, or set this slice's own 'base_model'."
                if named
                else "set 'base_model' to one of the models that meet here.",
            )

    def _check_number(self, config: MergeConfig, architecture: ResolvedArchitecture, method: MergeMethod) -> None:
        fewest, most = method.inputs
        labels = [architecture.models[model].label for model in self.models]
        apart = labels.pop(self.base) if method.base == "optional" and self.base is not None else None
        if fewest <= len(labels) and (most is None or len(labels) <= most):
            return
        wanted = f"exactly {fewest}" if fewest == most else f"{fewest} or more"
        with_base = " with the base" if method.base == "required" else " beside the base" if apart else ""
        added = not apart and any(own_path == ("base_model",) for own_path, _ in self.parameters)
        told = "'base_model' is one of them, though 'models' does not list it." if added else None
        raise PlanError(
            f"{method.name} takes {wanted} model{'s' if (fewest, most) != (1, 1) else ''}{with_base}, and "
            f"{len(labels)} meet here: {', '.join(labels) or 'none'}.",
            where=config.source.locate(*self.path),
            why=f"{apart} is the base, and not counted." if apart else told,
            remedy=_tell_way_out(method, wanted, added=added),
        )

    def lay_out(self, start: int, architecture: ResolvedArchitecture, module_levels: Levels) -> list[OutputLayer]:
        """The piece's layers, counted from `start` in the output."""
        length = len(self.rows)
        layers = []
        for number, row in enumerate(self.rows):
            position = number / (length - 1) if length > 1 else 1.0
            template = self._template_layer(row, architecture)
            levels = (*self.levels, *module_levels)
            inputs, base = self._inputs(row), self._base_among(row)
            missing = tuple(model for model, layer in zip(self.models, row, strict=True) if layer is None)
            layers.append(OutputLayer(start + number, False, template, position, inputs, base, levels, missing))
        return layers

    def lay_out_outside(self, overrides: Levels, module_levels: Levels, *, after: bool) -> OutputLayer:
        """The tensors before or after the layers; gradients are read at their first number, as mergekit does."""
        inputs = tuple(
            Input(model, None, parameters, path)
            for model, (path, parameters) in zip(self.models, self.parameters, strict=True)
        )
        return OutputLayer(
            None, after, None, 0.0, inputs, self.base, (*self.levels, *module_levels), overrides=overrides
        )

    def _base_among(self, row: tuple[int | None, ...]) -> int | None:
        """The base's place among the models that take part in a row."""
        if self.base is None or row[self.base] is None:
            return None
        return sum(layer is not None for layer in row[: self.base])

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


def _tell_way_out(method: MergeMethod, wanted: str, *, added: bool) -> str:
    if added and method.base == "as_input":
        return "leave out 'base_model'."
    other = "or take another method (`xmerge methods` lists them)."
    spare = added and method.inputs[1] is not None
    return f"name one of those listed in 'base_model', {other}" if spare else f"list {wanted} here, {other}"


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
                label = architecture.target.label
                raise PlanError(
                    f"this slice has no layers of {label}."
                    if place is None
                    else f"layer {place} of {label} stands in two slices.",
                    where=config.source.locate(*piece.path),
                    why=f"'unlisted_layers: base' puts each slice at its layers of {label}.",
                    remedy=f"give every slice a source of {label}, each of its layers once.",
                )
            listed[place] = replace(layer, index=place)
    return [listed.get(place) or _keep_layer(place, target) for place in range(architecture.target.layers)]


def _keep_layer(place: int, target: int) -> OutputLayer:
    return OutputLayer(place, False, place, 0.0, (Input(target, place, {}, ()),), 0, (), merged=False)


def walk_paths(layers: Sequence[OutputLayer]) -> Iterator[tuple[Path, Parameters]]:
    """Every place in the configuration whose parameters reach one of these layers, once."""
    seen: dict[Path, Parameters] = {}
    for layer in layers:
        for path, parameters in (
            *layer.overrides,
            *((each.path, each.parameters) for each in layer.inputs),
            *layer.levels,
        ):
            seen.setdefault(path, parameters)
    yield from seen.items()
