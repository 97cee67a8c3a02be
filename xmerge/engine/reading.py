"""The files of the sources: opened once, read at any place, and watched for change."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Self

import torch

from xmerge import disk
from xmerge.checkpoints.checkpoint import read_local_shard
from xmerge.checkpoints.headers import DTYPE_BYTES
from xmerge.engine.results import SourceStamp
from xmerge.errors import CheckpointError, SourceChangedError
from xmerge.files import hash_open, read_into
from xmerge.planning.plan import LayerPlan, MergePlan, Segment, list_segments

TORCH_DTYPES = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32, "F64": torch.float64}


class OpenSources:
    """The files a layer reads, opened once and compared with the plan when opened and when closed."""

    def __init__(self, plan: MergePlan, layer: LayerPlan, folders: Sequence[Path]) -> None:
        self._plan, self._folders = plan, folders
        self._files: dict[tuple[int, str], int] = {}
        self._stamps: dict[tuple[int, str], SourceStamp] = {}
        self._layer = layer

    def __enter__(self) -> Self:
        try:
            for model, file in list_files(self._layer):
                self._open(model, file)
        except BaseException:
            self._close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._close()

    @property
    def stamps(self) -> tuple[SourceStamp, ...]:
        """The files as they were when opened, in a fixed order."""
        return tuple(stamp for _, stamp in sorted(self._stamps.items()))

    def descriptor(self, model: int, file: str) -> int:
        """The open file of a model's shard."""
        return self._files[model, file]

    def label(self, model: int) -> str:
        """What people call a model."""
        return self._plan.models[model].label

    def read(self, model: int, segment: Segment, at: int, view: memoryview) -> None:
        """Fill `view` from the byte `at` of a segment."""
        try:
            count = read_into(self.descriptor(model, segment.file), view, segment.offset + at)
        except OSError as error:
            raise CheckpointError(
                f"{self._told(model, segment.file)} cannot be read: {error.strerror}.", where=segment.tensor
            ) from error
        if count < len(view):
            raise SourceChangedError(
                f"{self._told(model, segment.file)} ends before {segment.tensor} does.",
                remedy="leave the inputs alone during a merge, and run it again.",
            )

    def find_element(self, model: int, segment: Segment, place: int) -> int:
        """An element of a segment as the number it has in its stored tensor."""
        # A whole shard of which others are here in parts is a link, and has been opened already.
        path = (self._folders[model] / segment.file).resolve()
        _, entries, start = read_local_shard(path, self._told(model, segment.file))
        begin = next(start + entry.begin for entry in entries if entry.name == segment.tensor)
        return place + (segment.offset - begin) // DTYPE_BYTES[segment.dtype]

    def check_unchanged(self) -> None:
        """Refuse files that changed while they were read.

        Raises:
            SourceChangedError: Names the file.
        """
        for (model, file), descriptor in self._files.items():
            try:
                now = _stamp(descriptor, self._plan.models[model].pin, file)
            except OSError as error:
                raise CheckpointError(f"{self._told(model, file)} cannot be read: {error.strerror}.") from error
            if now != self._stamps[model, file]:
                raise tell_change(self._told(model, file), "while it was read")

    def _open(self, model: int, file: str) -> None:
        planned = self._plan.models[model]
        _, size, header_sha256, modified_ns = next(shard for shard in planned.shards if shard[0] == file)
        try:
            # Without O_NONBLOCK, a pipe in the file's place would be waited for.
            descriptor = disk.open(self._folders[model] / file, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
            self._files[model, file] = descriptor
            stamp = self._stamps[model, file] = _stamp(descriptor, planned.pin, file)
            same = stamp.size == size and modified_ns in (0, stamp.modified_ns)
            same = same and _hash_header(descriptor) == header_sha256
        except OSError as error:
            raise CheckpointError(f"{self._told(model, file)} cannot be opened: {error.strerror}.") from error
        if not same:
            raise tell_change(self._told(model, file), "since the plan was made")

    def _told(self, model: int, file: str) -> str:
        return f"{self._plan.models[model].label}/{file}"

    def _close(self) -> None:
        for descriptor in self._files.values():
            # Nothing was written to it, so nothing is lost with it.
            with contextlib.suppress(OSError):
                disk.close(descriptor)
        self._files = {}


def list_files(layer: LayerPlan) -> list[tuple[int, str]]:
    """(model, shard) of everything a layer reads, in a fixed order."""
    return sorted({(model, segment.file) for tensor in layer.tensors for model, segment in list_segments(tensor)})


def stamp_files(plan: MergePlan, layer: LayerPlan, folders: Sequence[Path]) -> tuple[SourceStamp, ...]:
    """The files of a layer as they are now.

    Raises:
        CheckpointError: One of them cannot be opened.
        SourceChangedError: One of them is not the one that was planned with.
    """
    with OpenSources(plan, layer, folders) as sources:
        return sources.stamps


def _stamp(descriptor: int, pin: str, file: str) -> SourceStamp:
    stat = disk.fstat(descriptor)
    return SourceStamp(pin=pin, file=file, size=stat.st_size, modified_ns=stat.st_mtime_ns, inode=stat.st_ino)


def _hash_header(descriptor: int) -> str:
    """SHA-256 of a file's header with its length."""
    start = bytearray(8)
    read_into(descriptor, memoryview(start), 0)
    return hash_open(descriptor, 8 + int.from_bytes(start, "little"))[1]


def tell_change(told: str, when: str) -> SourceChangedError:
    """The error for a shard that is not what it was."""
    return SourceChangedError(
        f"{told} changed {when}.", remedy="leave the inputs alone during a merge, and run it again."
    )
