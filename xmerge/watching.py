"""Whether the sources of a recipe have moved since it was merged last, as the last output tells it."""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from xmerge import disk
from xmerge.config import MergeConfig
from xmerge.files import make_folders, remove_file, storage_error
from xmerge.planning import MergePlan
from xmerge.provenance import read_provenance
from xmerge.stages import plan_stages
from xmerge.values import Value

LATEST = "latest"
"""The link, in the folder of the outputs, that leads to the newest."""
DIGITS = 12
"""Of the plan's fingerprint: the name of an output."""


class Sighting(Value):
    """What the sources are now, beside what they were."""

    output: str
    """The name that the output of a merge has now."""
    is_new: bool
    moved: tuple[str, ...]
    """What has changed since the last merge, in words."""


def look_at_sources(configs: Sequence[MergeConfig], out: Path) -> Sighting:
    """Plan a recipe with its sources as they are now, and compare that with the last output; no weight is read.

    Args:
        configs: The recipe's stages.
        out: The folder of the outputs.

    Raises:
        XmergeError: It cannot be planned.
    """
    stages = plan_stages(configs, out / LATEST)
    fingerprint = stages[-1].plan.fingerprint
    last = read_provenance(out / LATEST) or {}
    is_new = last.get("plan_fingerprint") != fingerprint
    moved = tuple(_tell_moves(_list_old_pins(last), _list_pins([stage.plan for stage in stages]))) if is_new else ()
    return Sighting(output=fingerprint[:DIGITS], is_new=is_new, moved=moved)


def set_latest(out: Path, output: str) -> None:
    """Let the link lead to an output; at any moment it leads to a whole one.

    Raises:
        StorageError: It cannot be made.
    """
    link = out / f".{LATEST}.{uuid.uuid4().hex[:8]}"
    try:
        make_folders(out)
        disk.symlink(output, link)
        try:
            disk.rename(link, out / LATEST)
        except OSError:
            with contextlib.suppress(OSError):
                remove_file(link)
            raise
    except OSError as error:
        raise storage_error(error, out / LATEST) from error


def _list_pins(plans: Sequence[MergePlan]) -> dict[str, str]:
    """Each model's commit, or the digest of its headers; those that a stage makes are none of the sources."""
    models = [model for plan in plans for model in plan.models if model.made_of is None]
    return {model.label: model.commit or model.pin for model in models}


def _list_old_pins(provenance: Mapping[str, Any]) -> dict[str, str]:
    stages = provenance.get("stages", {})
    pins: dict[str, str] = {}
    for stage in stages.values():
        pins |= _list_old_pins(stage)
    for model in provenance.get("models", ()):
        if model["name"] not in stages:
            pins[model["name"]] = model["commit"] or model["pin"]
    return pins


def _tell_moves(before: Mapping[str, str], now: Mapping[str, str]) -> Iterator[str]:
    if not before:
        yield "it has not been merged before"
        return
    moves = [
        f"{name}: {before[name][:DIGITS] if name in before else 'nothing'} -> {pin[:DIGITS]}"
        for name, pin in now.items()
        if before.get(name) != pin
    ]
    yield from moves or ["the recipe or xmerge has changed"]
