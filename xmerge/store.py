"""The store: finished layers, named by the fingerprint of what they are. An entry is complete or invisible.

An entry is two files: the shard, and beside it, written last, the `LayerResult` that says what it is. Several runs may
share a store: names of unfinished files differ between them, and a finished entry has one content only.
"""

from __future__ import annotations

import hashlib
import os
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import ValidationError

from xmerge.files import replace_text, sync_folder
from xmerge.interrupt import check_stop

if TYPE_CHECKING:
    from xmerge.engine.results import LayerResult
    from xmerge.planning.plan import LayerPlan, MergePlan

HASH_BYTES = 4 * 2**20


class Store:
    """A folder of finished layers."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def shard_path(self, fingerprint: str) -> Path:
        """Where the shard of an entry is, if it is there."""
        return self.path / fingerprint[:2] / f"{fingerprint}.safetensors"

    def find(self, plan: MergePlan, index: int, folders: Sequence[Path]) -> LayerResult | None:
        """An entry that is whole and made of the very files the plan reads; None: it must be made (again)."""
        from xmerge.engine.reading import stamp_files

        layer = plan.layers[index]
        result = self._read_result(layer.fingerprint)
        if result is None or result.stamps != stamp_files(plan, layer, folders):
            return None
        if hash_file(self.shard_path(layer.fingerprint)) != (result.bytes, result.sha256):
            return None
        return result.model_copy(update={"reused": True, "label": layer.label})

    def reserve(self, layer: LayerPlan) -> Path:
        """A name for an unfinished shard that no other run has."""
        folder = self.shard_path(layer.fingerprint).parent
        folder.mkdir(parents=True, exist_ok=True)
        return folder / f"{layer.fingerprint}.{os.getpid()}-{uuid.uuid4().hex[:8]}.tmp"

    def commit(self, unfinished: Path, result: LayerResult) -> None:
        """Give a synced shard its name, then say what it is."""
        path = self.shard_path(result.fingerprint)
        unfinished.rename(path)
        replace_text(path.with_suffix(".json"), result.model_dump_json() + "\n")
        sync_folder(path.parent)

    def sweep(self) -> None:
        """Remove what earlier runs left unfinished; only for a store that no other run shares."""
        for path in self.path.glob("*/*.tmp"):
            path.unlink(missing_ok=True)

    def _read_result(self, fingerprint: str) -> LayerResult | None:
        from xmerge.engine.results import LayerResult

        try:
            text = self.shard_path(fingerprint).with_suffix(".json").read_text(encoding="utf-8")
            result = LayerResult.model_validate_json(text)
        except (FileNotFoundError, UnicodeDecodeError, ValidationError):
            return None
        return result if result.fingerprint == fingerprint else None


def hash_file(path: Path) -> tuple[int, str] | None:
    """(bytes, SHA-256) of a file; None if it is not there."""
    digest, size = hashlib.sha256(), 0
    buffer = bytearray(HASH_BYTES)
    view = memoryview(buffer)
    try:
        with path.open("rb", buffering=0) as file:
            while count := file.readinto(buffer):
                check_stop()
                digest.update(view[:count])
                size += count
    except FileNotFoundError:
        return None
    return size, digest.hexdigest()
