"""Reading sources: positional reads into reused buffers, with the files watched for change."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Self

import torch

from xmerge.checkpoints.headers import DTYPE_BYTES
from xmerge.engine.results import SourceStamp
from xmerge.errors import CheckpointError, SourceChangedError
from xmerge.planning.plan import LayerPlan, MergePlan, Segment, Source

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

    def read(self, model: int, segment: Segment, at: int, view: memoryview) -> None:
        """Fill `view` from the byte `at` of a segment."""
        descriptor = self.descriptor(model, segment.file)
        position, done = segment.offset + at, 0
        while done < len(view):
            try:
                count = os.preadv(descriptor, [view[done:]], position + done)
            except OSError as error:
                raise CheckpointError(
                    f"{self._told(model, segment.file)} cannot be read: {error.strerror}.", where=segment.tensor
                ) from error
            if count == 0:
                raise SourceChangedError(
                    f"{self._told(model, segment.file)} ends before {segment.tensor} does.",
                    remedy="leave the inputs alone during a merge, and run it again.",
                )
            done += count

    def check_unchanged(self) -> None:
        """Refuse files that changed while they were read.

        Raises:
            SourceChangedError: Names the file.
        """
        for (model, file), descriptor in self._files.items():
            if _stamp(descriptor, self._plan.models[model].pin, file) != self._stamps[model, file]:
                raise _changed(self._told(model, file), "while it was read")

    def _open(self, model: int, file: str) -> None:
        planned = self._plan.models[model]
        path = self._folders[model] / file
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise CheckpointError(f"{self._told(model, file)} cannot be opened: {error.strerror}.") from error
        self._files[model, file] = descriptor
        stamp = self._stamps[model, file] = _stamp(descriptor, planned.pin, file)
        size, modified_ns = next((size, time) for name, size, _, time in planned.shards if name == file)
        if stamp.size != size or (modified_ns and stamp.modified_ns != modified_ns):
            raise _changed(self._told(model, file), "since the plan was made")

    def _told(self, model: int, file: str) -> str:
        return f"{self._plan.models[model].label}/{file}"

    def _close(self) -> None:
        for descriptor in self._files.values():
            os.close(descriptor)
        self._files = {}


def list_files(layer: LayerPlan) -> list[tuple[int, str]]:
    """(model, shard) of everything a layer reads, in a fixed order."""
    sources = (source for tensor in layer.tensors for source in tensor.sources)
    return sorted({(source.model, segment.file) for source in sources for segment in source.segments})


def stamp_files(plan: MergePlan, layer: LayerPlan, folders: Sequence[Path]) -> tuple[SourceStamp, ...]:
    """The files of a layer as they are now.

    Raises:
        CheckpointError: One of them cannot be opened.
        SourceChangedError: One of them is not the one that was planned with.
    """
    with OpenSources(plan, layer, folders) as sources:
        return sources.stamps


class BlockReader:
    """Reads blocks of a source as float32 on a device, through one reused buffer."""

    def __init__(self, sources: OpenSources, block: int, device: torch.device) -> None:
        self._sources = sources
        self._raw = torch.empty(block * 8, dtype=torch.uint8, pin_memory=device.type == "cuda")
        self._bytes = self._raw.numpy().data
        self._staged = torch.empty(block * 8, dtype=torch.uint8, device=device) if device.type != "cpu" else self._raw

    def read(self, source: Source, start: int, out: torch.Tensor) -> None:
        """Fill `out`, of any float dtype, with the source's elements from `start` on, shifted as planned."""
        filled, skipped = 0, 0
        for segment in source.segments:
            first = max(start + filled - skipped, 0)
            count = min(segment.elements - first, out.numel() - filled)
            if count > 0:
                self._read_segment(source.model, segment, first, out[filled : filled + count])
                filled += count
            skipped += segment.elements
        if source.shift:
            out.add_(source.shift)

    def _read_segment(self, model: int, segment: Segment, first: int, out: torch.Tensor) -> None:
        width = DTYPE_BYTES[segment.dtype]
        nbytes = out.numel() * width
        self._sources.read(model, segment, first * width, self._bytes[:nbytes])
        raw = self._raw[:nbytes]
        if self._staged is not self._raw:
            raw = self._staged[:nbytes].copy_(raw)
        out.copy_(raw.view(TORCH_DTYPES[segment.dtype]))


def _stamp(descriptor: int, pin: str, file: str) -> SourceStamp:
    stat = os.fstat(descriptor)
    return SourceStamp(pin=pin, file=file, size=stat.st_size, modified_ns=stat.st_mtime_ns, inode=stat.st_ino)


def _changed(told: str, when: str) -> SourceChangedError:
    return SourceChangedError(
        f"{told} changed {when}.", remedy="leave the inputs alone during a merge, and run it again."
    )
