"""Popular models by name, described once for all tests: they are sketched from a table and never change."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from tests.fake_checkpoints import write_headers
from xmerge.architecture import Class, ResolvedModel, find_family, worst_class
from xmerge.compatibility import Compatibility, compare_models, describe_models_named, list_popular_models
from xmerge.compatibility.naming import sketch_model
from xmerge.sources import Location

ATTENTION = ("attn_q", "attn_k", "attn_v", "attn_output")
GATED = ("ffn_gate", "ffn_up", "ffn_down")


@cache
def sketch(name: str) -> ResolvedModel:
    """A popular model."""
    return describe_models_named([name])[0]


@cache
def compare(base: str, donor: str) -> Compatibility:
    """Two popular models, compared."""
    return compare_models(sketch(base), sketch(donor))


def classes(base: str, donor: str, roles: tuple[str, ...]) -> str:
    """`AABC`: the worst class of each role, whichever tensor of the base holds it; `-` where nothing is compared."""
    return "".join(class_of(compare(base, donor), role) or "-" for role in roles)


def class_of(found: Compatibility, role: str) -> Class | None:
    """The worst class of a role in any layer; None: the base has no such role, or it alone has."""
    grades = [each.grade for each in found.components if role in each.roles and each.grade]
    return worst_class(grades) if grades else None


def reasons_of(found: Compatibility, role: str) -> str:
    """Everything that is said of a role."""
    return "; ".join(
        reason for each in found.components if role in each.roles for reason in (*each.steps, *each.reasons)
    )


def write_shallow(folder: Path, name: str, layers: int) -> Path:
    """A checkpoint of headers only, with a popular model's widths and fewer layers."""
    config = make_shallow(list_popular_models()[name].config, layers)
    model = sketch_model(Location(reference=name, label=name), config)
    tensors = {stored.name: (stored.dtype, stored.shape) for stored in model.checkpoint.tensors.values()}
    return write_headers(folder, config, tensors)


def write_config(folder: Path, config: Mapping[str, Any]) -> Path:
    """A folder with a config.json and nothing else."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder


def make_shallow(config: Mapping[str, Any], layers: int) -> dict[str, Any]:
    """A config.json with fewer layers."""
    family = find_family(config)
    assert family is not None
    key = family.axes["layers"].split("|")[0].strip()
    nested = family.config if family.config in config else None
    if nested is None:
        return {**config, key: layers}
    return {**config, nested: {**config[nested], key: layers}}
