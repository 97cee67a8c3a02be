"""What the schema cannot see: that the method exists, and that every parameter is one of its own and in range."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from xmerge.config.schema import InputModel, MergeConfig, ModelReference, OutputSlice, PublishTarget
from xmerge.config.settings import Parameters
from xmerge.config.source import Path
from xmerge.config.strict import show
from xmerge.errors import ConfigError, nearest
from xmerge.methods import MergeMethod, find_method
from xmerge.methods.contract import Parameter

Level = tuple[Path, Parameters, ModelReference | None]
"""Where parameters stand, what they are, and the model that they belong to, if it is one."""

Fault = tuple[Path, str]
"""Where something is wrong, and what."""


def find_faults(config: MergeConfig) -> Iterator[Fault]:
    """An unknown method, unknown and misplaced parameters, values out of range, and a place to publish that is none."""
    if config.publish is not None:
        # Now, because a merge may take hours before it is needed.
        yield from _check_place(config.publish)
    try:
        method = find_method(config.merge_method)
    except ConfigError as error:
        yield ("merge_method",), error.what
        return
    for path, parameters, model in list_levels(config):
        for name in parameters:
            yield from _check_parameter(method, (*path, name), parameters, model)


def _check_place(target: PublishTarget) -> Iterator[Fault]:
    from xmerge.hub.names import is_ref_name, is_repo_id

    if not is_repo_id(target.repo):
        yield ("publish", "repo"), f"{show(target.repo)} is no name of a repository on the Hub (org/name)"
    if target.branch is not None and not is_ref_name(target.branch):
        yield ("publish", "branch"), f"{show(target.branch)} is no name of a branch"


def list_levels(config: MergeConfig) -> Iterator[Level]:
    """Every place of a configuration where parameters can stand."""
    yield ("parameters",), config.parameters, None
    yield ("globals",), config.globals, None
    yield from _levels_below((), config.models, config.slices)
    for name, module in config.modules.items():
        yield ("modules", name, "parameters"), module.parameters, None
        yield from _levels_below(("modules", name), module.models, module.slices)


def _levels_below(path: Path, models: Sequence[InputModel], slices: Sequence[OutputSlice]) -> Iterator[Level]:
    for index, model in enumerate(models):
        yield (*path, "models", index, "parameters"), model.parameters, model.model
    for index, each in enumerate(slices):
        yield (*path, "slices", index, "parameters"), each.parameters, None
        for number, source in enumerate(each.sources):
            yield (*path, "slices", index, "sources", number, "parameters"), source.parameters, source.model


def _check_parameter(
    method: MergeMethod, path: Path, parameters: Parameters, model: ModelReference | None
) -> Iterator[Fault]:
    name = str(path[-1])
    parameter = method.parameter(name)
    if parameter is None:
        known = nearest(name, [each.name for each in method.parameters])
        yield path, f"{method.name} has no parameter '{name}'; {known}"
        return
    if model is not None and not parameter.per_model:
        remedy = "move it to the configuration's or the slice's 'parameters'"
        yield path, f"'{name}' is one value for all models and cannot stand under one of them; {remedy}"
    for entry in parameters[name].entries:
        for value in entry.value:
            yield from _check_value(parameter, value, path, "" if model is None else f" for {model}")


def _check_value(parameter: Parameter, value: float, path: Path, told: str) -> Iterator[Fault]:
    if parameter.is_switch and value not in (0.0, 1.0):
        yield path, f"'{parameter.name}' is true or false, not {value:g}"
    elif value not in parameter.range:
        yield path, f"'{parameter.name}' is {value:g}{told}; it must be {parameter.range}"
