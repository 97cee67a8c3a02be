"""What each parameter is worth for each tensor, with mergekit's precedence; and which filters ever matched."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from xmerge.architecture import ResolvedArchitecture
from xmerge.config import FilteredValue, MergeConfig, Setting
from xmerge.config.source import Path
from xmerge.errors import ConfigError, PlanError
from xmerge.methods import MergeMethod
from xmerge.methods.contract import Parameter
from xmerge.planning.alignment import Offer
from xmerge.planning.plan import Source, TensorPlan
from xmerge.planning.slices import Levels, OutputLayer
from xmerge.planning.slots import Slot


@dataclass(frozen=True)
class Values:
    """Every parameter of the method for one tensor; None where the configuration gives no value."""

    shared: dict[str, float | None]
    per_input: dict[str, list[float | None]]
    """For each parameter that models have one by one, its value for each input."""

    @property
    def missing(self) -> str | None:
        """A parameter shared by all models that has no value."""
        return next((name for name, value in self.shared.items() if value is None), None)

    def missing_for(self, number: int) -> str | None:
        """A parameter that has no value for an input."""
        return next((name for name, column in self.per_input.items() if column[number] is None), None)

    def choose(self, inputs: Sequence[int]) -> dict[str, float | tuple[float, ...]]:
        """What the method is called with when only these inputs take part."""
        chosen = {name: tuple(_known(column[number]) for number in inputs) for name, column in self.per_input.items()}
        return {**{name: _known(value) for name, value in self.shared.items()}, **chosen}


@dataclass
class ParameterReader:
    """Reads settings, and remembers which entries matched a tensor and which models had a value.

    Precedence: for tensors outside the layers `globals`; a model's own parameters; the slice's; the module's; the
    configuration's; the method's default.
    """

    method: MergeMethod
    _unmatched: dict[tuple[Path, str], list[tuple[int, FilteredValue]]] = field(default_factory=dict)
    """For each setting that was read, by its place, the filters that have matched no tensor yet."""
    _heard: set[Path] = field(default_factory=set)
    """The inputs, by the place of their parameters, for which some tensor had a value of what all must have."""

    def read(self, slot: Slot, offers: Sequence[Offer]) -> Values:
        """Every parameter's value for a slot and what its inputs offer."""
        shared: dict[str, float | None] = {}
        per_input: dict[str, list[float | None]] = {}
        for parameter in self.method.parameters:
            if parameter.per_model:
                per_input[parameter.name] = [
                    self._read_for_input(parameter, slot, number, offer) for number, offer in enumerate(offers)
                ]
            else:
                levels = (*slot.layer.overrides, *slot.layer.levels)
                shared[parameter.name] = self._read(parameter, levels, [slot.name], slot.layer.position)
        return Values(shared, per_input)

    def refuse_silent_models(
        self, config: MergeConfig, architecture: ResolvedArchitecture, layout: Iterable[OutputLayer]
    ) -> None:
        """Refuse a required per-model parameter that some model has nowhere where it meets others.

        Raises:
            PlanError: Names the parameter and the model.
        """
        needed = next((each.name for each in self.method.parameters if each.per_model and each.default is None), None)
        if needed is None:
            return
        for layer in layout:
            for number, each in enumerate(layer.inputs):
                if layer.merged and each.path not in self._heard and not self._is_measured_from(layer, number):
                    label = architecture.models[each.model].label
                    added = each.path == ("base_model",)
                    raise PlanError(
                        f"{self.method.name} needs '{needed}' for every model, and {label} has none.",
                        where=config.source.locate(*each.path),
                        why="'base_model' is one of the models, though 'models' does not list it." if added else None,
                        remedy=f"list it under 'models' with its '{needed}' (0: it gives the architecture only), or "
                        "leave out 'base_model'."
                        if added
                        else f"write '{needed}' under its 'parameters', or in 'parameters' for all models.",
                    )

    def refuse_unmatched(self, config: MergeConfig, tensors: Iterable[TensorPlan]) -> None:
        """Refuse a filter that matched no tensor of the output.

        Raises:
            ConfigError: Names the filter and its place.
        """
        for (path, name), entries in self._unmatched.items():
            for index, entry in entries:
                raise ConfigError(
                    f"the filter '{entry.filter}' matches no tensor.",
                    where=config.source.locate(*path, name, index, "filter"),
                    why="a filter is a case-sensitive part of a tensor's name, as in 'self_attn.q_proj'.",
                    remedy=_suggest(str(entry.filter), tensors),
                )

    def _is_measured_from(self, layer: OutputLayer, number: int) -> bool:
        """Whether an input is the base of a method whose per-model parameters are the donors' only."""
        return self.method.base != "as_input" and number == layer.base

    def _read_for_input(self, parameter: Parameter, slot: Slot, number: int, offer: Offer) -> float | None:
        if self._is_measured_from(slot.layer, number):
            return 0.0
        each = offer.input
        levels = (*slot.layer.overrides, (each.path, each.parameters), *slot.layer.levels)
        found = {
            name: self._read(parameter, levels, names, slot.layer.position)
            for name, names in _list_names(slot, offer).items()
        }
        values = list(dict.fromkeys(found.values()))
        if len(values) > 1:
            told = ", ".join(
                f"{'no value' if value is None else f'{value:g}'} for {name}" for name, value in found.items()
            )
            raise PlanError(
                f"'{parameter.name}' differs within {slot.name}, which {offer.label} has in several tensors.",
                where=slot.layer.label,
                why=f"it is {told}.",
                remedy=f"give them one value, or filter by a part of '{slot.name}'.",
            )
        if values[0] is not None and parameter.default is None:
            self._heard.add(each.path)
        return values[0]

    def _read(self, parameter: Parameter, levels: Levels, names: Sequence[str], position: float) -> float | None:
        found: float | None = None
        for path, parameters in levels:
            setting = parameters.get(parameter.name)
            if setting is None:
                continue
            self._note_matches((path, parameter.name), setting, names)
            if found is None:
                found = setting.evaluate(names, position)
        return parameter.default if found is None else found

    def _note_matches(self, place: tuple[Path, str], setting: Setting, names: Sequence[str]) -> None:
        waiting = self._unmatched.get(place)
        if waiting is None:
            waiting = [(index, entry) for index, entry in enumerate(setting.entries) if entry.filter is not None]
        if waiting or place not in self._unmatched:
            self._unmatched[place] = [(index, entry) for index, entry in waiting if not entry.matches(names)]


def _known(value: float | None) -> float:
    assert value is not None
    return value


def _list_names(slot: Slot, offer: Offer) -> dict[str, list[str]]:
    """For each tensor that an input gives to a slot, the names that filters know it by.

    That is its own name; and the output's too where the two families name the same thing differently.
    """
    layer = offer.input.layer
    own = slot.name if layer is None else slot.spec.name_in(layer)
    if not isinstance(offer.fit, Source):
        return {own: [own]}
    given = dict.fromkeys(segment.tensor for segment in offer.fit.segments)
    return {name: [name] if name == own else [name, slot.name] for name in given}


def _suggest(unmatched: str, tensors: Iterable[TensorPlan]) -> str:
    names = {tensor.name for tensor in tensors}
    names |= {segment.tensor for tensor in tensors for source in tensor.sources for segment in source.segments}
    words = sorted({word for name in names for word in name.split(".") if not word.isdigit()})
    near = difflib.get_close_matches(unmatched.rsplit(".", 1)[-1], words, n=1, cutoff=0.5)
    return f"did you mean '{near[0]}'?" if near else f"names are made of: {', '.join(words)}."
