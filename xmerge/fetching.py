"""Bring the shards that a plan reads to this machine: whole ones, or the parts that are read."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from xmerge import disk, hub
from xmerge.files import remove_file, storage_error
from xmerge.planning.downloads import FetchMode, list_downloads
from xmerge.planning.plan import MergePlan
from xmerge.values import Value


class FetchedModel(Value):
    """A model that is on this machine, as far as a plan reads it."""

    folder: Path
    """Where its shards lie, or files with holes that hold what is read of them."""
    notes: tuple[str, ...] = ()
    """What a person may want to know of how they came."""


def fetch_model(plan: MergePlan, index: int, parts_folder: Path, mode: FetchMode = "auto") -> FetchedModel:
    """Bring one model of a plan here; a local model is where it is.

    Args:
        plan: The plan.
        index: Which of its models.
        parts_folder: Where parts of shards go; it belongs to this merge alone.
        mode: Whole shards, or the parts that are read.

    Raises:
        HubError: The Hub refused, or gave something else than it said.
        HubUnavailableError: The Hub cannot answer for now; what has come is kept.
        StorageError: There is no room for it.
        Interrupted: A stop was requested.
    """
    model = plan.models[index]
    if model.folder is not None:
        return FetchedModel(folder=model.folder)
    assert model.repo is not None and model.commit is not None
    needed = [each for each in list_downloads(plan) if each.model == index]
    parts = [each for each in needed if not each.cached and not each.is_fetched_whole(mode)]
    folder = parts_folder / f"{index}-{model.commit}"
    notes: tuple[str, ...] = ()
    if parts and not hub.fetch_ranges(model.repo, model.commit, {each.file: each.ranges for each in parts}, folder):
        notes = (f"the Hub's server gives no parts of files: whole shards of {model.label} are fetched.",)
        parts = []
    whole = [each.file for each in needed if each not in parts]
    snapshot = hub.fetch_shards(model.repo, model.commit, whole)
    if not parts:
        return FetchedModel(folder=snapshot, notes=notes)
    _link(whole, snapshot, folder)
    return FetchedModel(folder=folder)


def _link(files: Sequence[str], snapshot: Path, folder: Path) -> None:
    """Put links to whole shards beside the parts of others, so that one folder has all of a model."""
    try:
        for file in files:
            remove_file(folder / file)
            disk.symlink(snapshot / file, folder / file)
    except OSError as error:
        raise storage_error(error, folder) from error
