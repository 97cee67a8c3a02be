"""What a finished unit of work is called: the key of its record, which is also the name of the record's file."""

from __future__ import annotations

from typing import Any

from prefect.context import TaskRunContext

from xmerge.planning import ENGINE_VERSION, MergePlan
from xmerge.values import fingerprint_json


def name_unit(plan: MergePlan, layers: tuple[int, ...]) -> str:
    """The fingerprint of the layers that one task merges."""
    fingerprints = [plan.layers[index].fingerprint for index in layers]
    return fingerprints[0] if len(fingerprints) == 1 else fingerprint_json(fingerprints)


def record_key(unit: str) -> str:
    """What the record of a unit is stored as; Prefect sees no change of xmerge, so the engine's version is in it."""
    return f"v{ENGINE_VERSION}/{unit}"


def key_of_call(context: TaskRunContext, arguments: dict[str, Any]) -> str:
    """The cache key of one call of `merge_layer`."""
    return record_key(arguments["unit"])
