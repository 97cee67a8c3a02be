"""What the schema cannot see: that the method exists, and that every parameter is one of its own and in range."""

from __future__ import annotations

from collections.abc import Iterator

from xmerge.config.schema import MergeConfig
from xmerge.config.settings import Parameters
from xmerge.config.source import Path
from xmerge.errors import ConfigError, nearest
from xmerge.methods import MergeMethod, find_method
from xmerge.methods.contract import Parameter

Level = tuple[Path, Parameters, bool]
"""Where parameters stand, what they are, and whether they belong to one model."""


def check_meaning(config: MergeConfig) -> None:
    """Refuse an unknown method, an unknown or misplaced parameter, and a value out of its range.

    Raises:
        ConfigError: Names the place in the file and the nearest valid name or the valid range.
    """
    try:
        method = find_method(config.merge_method)
    except ConfigError as error:
        raise ConfigError(error.what, where=config.source.locate("merge_method")) from None
    for path, parameters, of_one_model in list_levels(config):
        for name in parameters:
            _check_parameter(config, method, (*path, name), parameters, of_one_model)


def list_levels(config: MergeConfig) -> Iterator[Level]:
    """Every place of a configuration where parameters can stand."""
    yield ("parameters",), config.parameters, False
    yield ("globals",), config.globals, False
    yield from _levels_below((), config.models, config.slices)
    for name, module in config.modules.items():
        yield ("modules", name, "parameters"), module.parameters, False
        yield from _levels_below(("modules", name), module.models, module.slices)


def _levels_below(path: Path, models: tuple, slices: tuple) -> Iterator[Level]:  # type: ignore[type-arg]
    for index, model in enumerate(models):
        yield (*path, "models", index, "parameters"), model.parameters, True
    for index, each in enumerate(slices):
        yield (*path, "slices", index, "parameters"), each.parameters, False
        for number, source in enumerate(each.sources):
            yield (*path, "slices", index, "sources", number, "parameters"), source.parameters, True


def _check_parameter(
    config: MergeConfig, method: MergeMethod, path: Path, parameters: Parameters, of_one_model: bool
) -> None:
    name = str(path[-1])
    where = config.source.locate(*path)
    parameter = method.parameter(name)
    if parameter is None:
        remedy = nearest(name, [each.name for each in method.parameters])
        raise ConfigError(f"{method.name} has no parameter '{name}'; {remedy}", where=where)
    if of_one_model and not parameter.per_model:
        raise ConfigError(
            f"'{name}' is one value for all models and cannot stand under one of them.",
            where=where,
            remedy="move it to the configuration's or the slice's 'parameters'.",
        )
    for entry in parameters[name].entries:
        for value in entry.value:
            _check_value(parameter, value, where)


def _check_value(parameter: Parameter, value: float, where: str) -> None:
    if parameter.is_switch and value not in (0.0, 1.0):
        raise ConfigError(f"'{parameter.name}' is true or false, not {value:g}.", where=where)
    if value not in parameter.range:
        raise ConfigError(f"'{parameter.name}' is {value:g}; it must be {parameter.range}.", where=where)
