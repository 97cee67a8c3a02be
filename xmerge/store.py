"""The store: finished layers, named by the fingerprint of what they are. An entry is complete or invisible.

An entry is two files: the shard, and beside it, written last, the `LayerResult` that says what it is. Several runs may
share a store: names of unfinished files differ between them, and what an entry's two files say is compared before use.
"""

from __future__ import annotations

import contextlib
import os
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from xmerge import disk
from xmerge.errors import StorageError
from xmerge.files import (
    hash_file,
    link_or_copy,
    make_folders,
    open_file,
    read_text,
    remove_file,
    replace_text,
    storage_error,
    sync_folder,
)
from xmerge.lock import NO_LOCKS
from xmerge.reservation import estimate_entry, release_space

if TYPE_CHECKING:
    from xmerge.engine.results import LayerResult
    from xmerge.planning.plan import LayerPlan, MergePlan


class Store:
    """A folder of finished layers."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def shard_path(self, fingerprint: str) -> Path:
        """Where the shard of an entry is, if it is there."""
        return self.path / fingerprint[:2] / f"{fingerprint}.safetensors"

    def find(self, plan: MergePlan, index: int, folders: Sequence[Path]) -> LayerResult | None:
        """An entry that is whole and made of the very files the plan reads; None: it must be made (again).

        Raises:
            CheckpointError: A file that the plan reads cannot be opened, or changed since the plan was made.
        """
        from xmerge.engine.reading import stamp_files

        layer = plan.layers[index]
        result = self._read_result(layer.fingerprint)
        if result is None or [each.name for each in result.tensors] != [each.name for each in layer.tensors]:
            return None
        if result.stamps != stamp_files(plan, layer, folders):
            return None
        try:
            if hash_file(self.shard_path(layer.fingerprint)) != (result.bytes, result.sha256):
                return None
        except OSError:
            return None
        return result.model_copy(update={"reused": True, "label": layer.label})

    def reserve(self, layer: LayerPlan) -> Path:
        """A name for an unfinished shard that no other run has, and the space that was held for it.

        Raises:
            StorageError: The store cannot be written.
        """
        folder = self.shard_path(layer.fingerprint).parent
        try:
            make_folders(folder)
            release_space(self.path, estimate_entry(layer))
        except OSError as error:
            raise storage_error(error, self.path) from error
        return folder / f"{layer.fingerprint}.{uuid.uuid4().hex[:8]}.tmp"

    def commit(self, unfinished: Path, result: LayerResult) -> None:
        """Give a synced shard its name, then say what it is.

        Raises:
            StorageError: The store cannot be written.
        """
        path = self.shard_path(result.fingerprint)
        said = path.with_suffix(".json")
        try:
            recorded = self._read_result(result.fingerprint)
            if recorded is None or recorded.sha256 != result.sha256:
                remove_file(said)  # At no moment may it speak of another shard than the one beside it.
            disk.rename(unfinished, path)
            replace_text(said, result.model_dump_json() + "\n")
            sync_folder(path.parent)
        except OSError as error:
            raise storage_error(error, self.path) from error

    def give(self, result: LayerResult, target: Path) -> str:
        """Link or copy an entry's shard to a place outside the store; says which of the two.

        Raises:
            StorageError: Another run has put other bytes in its place meanwhile.
        """
        told = link_or_copy(self.shard_path(result.fingerprint), target)
        recorded = self._read_result(result.fingerprint)
        if recorded is None or recorded.sha256 != result.sha256:
            raise StorageError(
                f"another run has replaced {result.label} in the store {self.path}.",
                why="it merges other files of the same names, or on another device.",
                remedy="run the same command again when the other run has ended, or use another store.",
            )
        return told

    def holds_anything(self) -> bool:
        """Whether some layer is finished."""
        return next(self.path.glob("??/*.json"), None) is not None

    def sweep(self) -> None:
        """Remove what runs that have died left unfinished; a run that goes on holds a lock on its files."""
        for path in sorted(self.path.glob("??/*.tmp")):
            if ".json." not in path.name:  # Small, and renamed within an instant of being written.
                with contextlib.suppress(OSError):
                    _remove_unless_held(path)

    def _read_result(self, fingerprint: str) -> LayerResult | None:
        from xmerge.engine.results import LayerResult

        try:
            said = self.shard_path(fingerprint).with_suffix(".json")
            result = LayerResult.model_validate_json(read_text(said))
        except (OSError, ValueError):
            return None
        return result if result.fingerprint == fingerprint else None


def hold(descriptor: int) -> None:
    """Lock an unfinished file, so that no sweep takes it; where there are no locks, none is taken by a sweep either."""
    try:
        disk.flock(descriptor, disk.LOCK_EX)
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise


def _remove_unless_held(path: Path) -> None:
    with open_file(path, os.O_RDWR | os.O_NOFOLLOW) as descriptor:
        disk.flock(descriptor, disk.LOCK_EX | disk.LOCK_NB)
        disk.unlink(path)
