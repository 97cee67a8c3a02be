"""A family: how a line of models names and arranges its tensors, read from one YAML file in `xmerge/families/`."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from functools import cache
from importlib import resources
from typing import Any, Literal, Self

import yaml
from pydantic import model_validator

from xmerge.errors import CheckpointError
from xmerge.values import Value

_TEMPLATE = re.compile(r"(?P<name>\S+) \[(?P<shape>[^\]]*)\](?: (?P<word>if|unless) (?P<key>\w+))?")


class Part(Value):
    """One role's share of a tensor: consecutive rows, in named axes."""

    role: str
    axes: tuple[tuple[str, ...], ...]
    """For each dimension the axes whose product it is: `heads*head_dim`."""

    def sizes(self, axes: Mapping[str, int]) -> tuple[int, ...]:
        """The shape of this part in a model with these axes."""
        return tuple(math.prod(axes[axis] for axis in dimension) for dimension in self.axes)


class TensorTemplate(Value):
    """One line of a family file."""

    name: str
    """The tensor's name, with `{layer}` in the layers."""
    parts: tuple[Part, ...]
    when: str | None = None
    """The key of config.json that decides whether the tensor exists; None: it always does."""
    when_not: str | None = None

    @property
    def role(self) -> str:
        """What the tensor does; several roles joined by `+` for a fused tensor."""
        return "+".join(part.role for part in self.parts)

    def shape(self, axes: Mapping[str, int]) -> tuple[int, ...]:
        """The tensor's whole shape: its parts' rows one after another."""
        sizes = [part.sizes(axes) for part in self.parts]
        return (sum(size[0] for size in sizes), *sizes[0][1:])

    def exists(self, config: Mapping[str, Any], *, tied: bool) -> bool:
        """Whether a model with this config.json has the tensor."""
        if "tie_word_embeddings" in (self.when, self.when_not):
            return not tied if self.when_not else tied
        if self.when is not None:
            return bool(config.get(self.when))
        return self.when_not is None or not config.get(self.when_not)


class Family(Value):
    """A line of models that name and arrange their tensors alike."""

    family: str
    model_types: tuple[str, ...]
    """The values of `model_type` in config.json that mean this family."""
    architectures: tuple[str, ...]
    axes: dict[str, str]
    """For each axis the keys of config.json that give it, in order of preference, or how to derive it."""
    norm_gain: Literal["w", "1+w"]
    """What a norm multiplies by, given its stored weight."""
    rope: Literal["half", "interleaved", "none"]
    tied_by_default: bool
    """Whether the output shares the embedding when config.json does not say."""
    layer_types: tuple[str, ...] = ()
    """The kinds of layers, in turn, when config.json has no `layer_types`."""
    before: tuple[TensorTemplate, ...]
    layer: tuple[TensorTemplate, ...]
    after: tuple[TensorTemplate, ...]

    @model_validator(mode="before")
    @classmethod
    def _read_lines(cls, data: dict[str, Any]) -> dict[str, Any]:
        return {
            key: [_read_template(roles, line) for roles, line in value.items()]
            if isinstance(value, dict) and key in _SECTIONS
            else value
            for key, value in data.items()
        }

    @model_validator(mode="after")
    def _axes_are_known(self) -> Self:
        for template in (*self.before, *self.layer, *self.after):
            for part in template.parts:
                unknown = {axis for dimension in part.axes for axis in dimension} - set(self.axes)
                if unknown:
                    raise ValueError(f"{self.family}: {template.name} has the unknown axes {sorted(unknown)}")
        return self

    def read_axes(self, config: Mapping[str, Any], label: str) -> dict[str, int]:
        """The size of every axis in a model.

        Raises:
            CheckpointError: config.json lacks a key, or says something that is no size.
        """
        axes: dict[str, int] = {}
        for axis, rule in self.axes.items():
            axes[axis] = _read_axis(axis, rule, config, axes, label)
        return axes

    def is_tied(self, config: Mapping[str, Any]) -> bool:
        """Whether the output matrix is the embedding."""
        return bool(config.get("tie_word_embeddings", self.tied_by_default))


_SECTIONS = ("before", "layer", "after")


def _read_template(roles: str, line: str) -> dict[str, Any]:
    match = _TEMPLATE.fullmatch(line)
    if match is None:
        raise ValueError(f"'{line}' is not of the form: name [axes] if key")
    first, *rest = [dimension.strip() for dimension in match["shape"].split(",")]
    names, rows = [role.strip() for role in roles.split("+")], [row.strip() for row in first.split("+")]
    if len(names) != len(rows):
        raise ValueError(f"{match['name']} holds {len(names)} roles in {len(rows)} row blocks")
    parts = [
        {"role": role, "axes": [_split_axes(row), *[_split_axes(dimension) for dimension in rest]]}
        for role, row in zip(names, rows, strict=True)
    ]
    condition = {"when" if match["word"] == "if" else "when_not": match["key"]} if match["word"] else {}
    return {"name": match["name"], "parts": parts, **condition}


def _split_axes(dimension: str) -> list[str]:
    return [axis.strip() for axis in dimension.split("*")]


def _read_axis(axis: str, rule: str, config: Mapping[str, Any], axes: Mapping[str, int], label: str) -> int:
    for choice in (choice.strip() for choice in rule.split("|")):
        if "/" in choice:
            above, below = (axes[name.strip()] for name in choice.split("/"))
            value: Any = above // below if above % below == 0 else None
        else:
            value = int(choice) if choice.isdigit() else config.get(choice)
        if value is None:
            continue
        if type(value) is not int or not 0 < value < 2**40:
            raise CheckpointError(f"{label}/config.json says {choice} = {value!r}, which is no size.")
        return value
    raise CheckpointError(
        f"{label}/config.json does not say how large '{axis}' is.",
        why=f"it has none of: {rule}.",
        remedy="complete config.json from the model's page.",
    )


@cache
def _load_families() -> Mapping[str, Family]:
    found = {}
    for file in sorted(resources.files("xmerge.families").iterdir(), key=lambda item: item.name):
        if file.name.endswith(".yaml"):
            family = Family.model_validate(yaml.safe_load(file.read_text(encoding="utf-8")))
            found[family.family] = family
    return found


def list_families() -> tuple[Family, ...]:
    """Every family that has a file, by name."""
    return tuple(_load_families().values())


def find_family(config: Mapping[str, Any], override: str | None = None) -> Family | None:
    """The family of a model: by `override` (a class name), else `model_type`, else `architectures`; None: no file."""
    told = config.get("architectures")
    architectures = [override] if override else told if isinstance(told, list) else []
    for family in list_families():
        if not override and config.get("model_type") in family.model_types:
            return family
    for family in list_families():
        if any(name in family.architectures for name in architectures):
            return family
    return None
