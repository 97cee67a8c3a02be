"""A merge as fields of a form, for a person who writes no YAML: base, donors, method and parameters."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import yaml

from xmerge.config.loading import make_config
from xmerge.config.source import ConfigSource, Path, show_path
from xmerge.config.strict import show
from xmerge.errors import ConfigError, nearest
from xmerge.methods import find_method
from xmerge.values import Value

DEFAULT_METHOD = "slerp"
FORM = "the form"
OWN_FIELDS = {"merge_method": "method", "base_model": "base", "models": "donors", "parameters": "parameters"}
"""Keys of a recipe -> the fields of the form that say them."""


class MergeForm(Value):
    """What a person has filled in: a recipe, or the fields that describe a merge of whole models."""

    recipe: str = ""
    """The path of a recipe, or its text."""
    base: str = ""
    donors: tuple[str, ...] = ()
    method: str = DEFAULT_METHOD
    parameters: dict[str, Any] = {}
    """Parameter -> a value as a recipe has it, or {model: value}."""
    settings: dict[str, Any] = {}
    """Further keys of a recipe."""


def take_recipe(form: MergeForm) -> str:
    """The recipe that a form holds, or the one that its other fields describe.

    Raises:
        ConfigError: It holds both or neither, or its fields mean nothing; told by the fields' names.
    """
    filled = sorted(form.model_fields_set - {"recipe"}, key=list(MergeForm.model_fields).index)
    filled = [name for name in filled if getattr(form, name) != MergeForm.model_fields[name].default]
    if form.recipe.strip():
        if filled:
            raise ConfigError(
                f"the form has a recipe, and beside it {', '.join(filled)}.",
                where=f"{FORM}: recipe",
                why="a recipe says all of a merge.",
                remedy=f"empty the recipe, or {', '.join(filled)}.",
            )
        return form.recipe
    if not form.base.strip():
        raise ConfigError(
            "the form names no base." if filled else "the form says nothing to merge.",
            where=f"{FORM}: base",
            remedy="name the model whose architecture the output is to have, and the donors; or give a recipe.",
        )
    return _write_recipe(form)


def _write_recipe(form: MergeForm) -> str:
    models = [name.strip() for name in (form.base, *form.donors)]
    shared, own = _share_out(form.parameters, models)
    entries = [{"model": name, **({"parameters": own[name]} if own[name] else {})} for name in models]
    config = {"merge_method": form.method, "base_model": models[0], "models": entries, "parameters": shared}
    for key in form.settings:
        if key in OWN_FIELDS:
            raise ConfigError(
                f"'{key}' has a field of its own in the form.",
                where=f"{FORM}: settings.{key}",
                remedy=f"say it in '{OWN_FIELDS[key]}'.",
            )
    config |= form.settings
    # All in one line: a fault of the base, which a recipe names twice, is told once.
    make_config(config, _FormSource(FORM, lines=dict.fromkeys(_walk(config, ()), 1), models=tuple(models)))
    _refuse_missing(form)
    return yaml.safe_dump(config, sort_keys=False, allow_unicode=True, width=1000)


def _share_out(parameters: Mapping[str, Any], models: list[str]) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """Parameters for all models, and for each model those that are given for it by name."""
    shared, own = dict[str, Any](), {name: dict[str, Any]() for name in models}
    for name, value in parameters.items():
        if not isinstance(value, dict):
            shared[name] = value
            continue
        for model, each in value.items():
            if model.strip() not in own:
                raise ConfigError(
                    f"the form merges no model {show(model)}; {nearest(model, own)}", where=f"{FORM}: parameters.{name}"
                )
            own[model.strip()][name] = each
    return shared, own


def _refuse_missing(form: MergeForm) -> None:
    """Without a value the output would be the base, which nobody fills in a form for."""
    method = find_method(form.method)
    for parameter in method.parameters:
        if parameter.default is None and parameter.name not in form.parameters:
            raise ConfigError(
                f"{method.name} needs '{parameter.name}': {parameter.range.text}.",
                where=f"{FORM}: parameters",
                remedy=f'write {{"{parameter.name}": NUMBER}}; it takes {parameter.range}.',
            )


def _walk(data: Any, path: Path) -> Iterator[Path]:
    """Every key and item, from the first to the last."""
    yield path
    items = data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ()
    for key, value in items:
        yield from _walk(value, (*path, key))


@dataclass(frozen=True)
class _FormSource(ConfigSource):
    """Names the fields of the form instead of lines of the recipe that they make."""

    models: tuple[str, ...] = ()

    def locate(self, *path: str | int) -> str:
        return f"{self.name}: {show_path(self._find_field(path))}" if path else self.name

    def _find_field(self, path: Path) -> Path:
        match path:
            case ("parameters", *_):
                return path
            case ("models", int(index), "parameters", name, *_):
                return ("parameters", name, self.models[index])
            case ("models", int(index), *_):
                return ("donors", index - 1) if index else ("base",)
            case (str(key), *rest) if key in OWN_FIELDS:
                return (OWN_FIELDS[key], *rest)
        return ("settings", *path)
