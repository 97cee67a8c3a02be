"""Reading sources: positional reads into reused buffers, with the files watched for change."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Self

import torch

from xmerge.checkpoints.headers import DTYPE_BYTES
from xmerge.engine.ordering import cut_boxes, list_spans
from xmerge.engine.results import SourceStamp
from xmerge.errors import CheckpointError, SourceChangedError
from xmerge.planning.plan import Gain, LayerPlan, MergePlan, Segment, Source, list_segments

TORCH_DTYPES = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32, "F64": torch.float64}
SMALLEST_GAIN = 1e-4
"""Of a norm's largest gain; a column read through a smaller one is not divided by it."""


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
    return sorted({(model, segment.file) for tensor in layer.tensors for model, segment in list_segments(tensor)})


def stamp_files(plan: MergePlan, layer: LayerPlan, folders: Sequence[Path]) -> tuple[SourceStamp, ...]:
    """The files of a layer as they are now.

    Raises:
        CheckpointError: One of them cannot be opened.
        SourceChangedError: One of them is not the one that was planned with.
    """
    with OpenSources(plan, layer, folders) as sources:
        return sources.stamps


class BlockReader:
    """Reads blocks of a source on a device, through one reused buffer."""

    def __init__(self, sources: OpenSources, block: int, device: torch.device) -> None:
        self._sources = sources
        self._raw = torch.empty(block * 8, dtype=torch.uint8, pin_memory=device.type == "cuda")
        self._bytes = self._raw.numpy().data
        self._staged = torch.empty(block * 8, dtype=torch.uint8, device=device) if device.type != "cpu" else self._raw
        self._device = device
        self._gains: dict[Gain, torch.Tensor] = {}

    def read(self, source: Source, start: int, out: torch.Tensor) -> None:
        """Fill `out`, of any float dtype, with a source's numbers for the output's elements from `start` on."""
        for segment in source.segments:
            low, high = start - segment.at, start - segment.at + out.numel()
            if segment.order:
                self._read_reordered(source.model, segment, low, high, out)
            elif low < segment.elements and high > 0:
                first, last = max(low, 0), min(high, segment.elements)
                raw = self._read_run(source.model, segment, first, last - first)
                filled = out[first - low : last - low].copy_(raw)
                if segment.scale != 1.0:
                    filled.mul_(segment.scale)
        if source.gain is not None:
            self._apply_gain(source.gain, source.model, start, out)
        if source.shift:
            out.add_(source.shift)

    def _read_reordered(self, model: int, segment: Segment, low: int, high: int, out: torch.Tensor) -> None:
        most = len(self._bytes) // DTYPE_BYTES[segment.dtype]
        for box in cut_boxes(segment.order, low, high):
            for span in list_spans(box, most):
                raw = self._read_run(model, segment, span.source, span.length)
                counts = [count for count, _, _ in span.loops]
                taken = raw.as_strided(counts, [step for _, step, _ in span.loops])
                steps = [step for _, _, step in span.loops]
                filled = out.as_strided(counts, steps, out.storage_offset() + span.output - low).copy_(taken)
                if segment.scale != 1.0:
                    filled.mul_(segment.scale)

    def _read_run(self, model: int, segment: Segment, first: int, count: int) -> torch.Tensor:
        """Consecutive elements of a tensor, in its own dtype; valid until the next call."""
        width = DTYPE_BYTES[segment.dtype]
        nbytes = count * width
        self._sources.read(model, segment, first * width, self._bytes[:nbytes])
        raw = self._raw[:nbytes]
        if self._staged is not self._raw:
            raw = self._staged[:nbytes].copy_(raw)
        return raw.view(TORCH_DTYPES[segment.dtype])

    def _apply_gain(self, gain: Gain, model: int, start: int, out: torch.Tensor) -> None:
        if gain not in self._gains:
            self._gains[gain] = self._read_gain(gain, model).to(self._device)
        places = torch.arange(start, start + out.numel(), device=self._device)
        columns = places.div_(gain.stride, rounding_mode="floor").remainder_(gain.length)
        out.mul_(self._gains[gain][columns])

    def _read_gain(self, gain: Gain, model: int) -> torch.Tensor:
        """The donor's gain over the base's, in float64.

        Raises:
            CheckpointError: A gain of the base is so small that dividing by it would blow up a column.
        """
        gains = []
        for owner, segment, shift in (
            (model, gain.donor, gain.donor_shift),
            (gain.base_model, gain.base, gain.base_shift),
        ):
            read = torch.ones(gain.length, dtype=torch.float64)
            if segment is not None:
                read.copy_(self._read_run(owner, segment, 0, gain.length)).add_(shift)
            gains.append(read)
        donor, base = gains
        small = (base.abs() < SMALLEST_GAIN * base.abs().max()).nonzero()
        if small.numel():
            assert gain.base is not None
            at = int(small[0])
            raise CheckpointError(
                f"{self._sources.label(gain.base_model)} has a gain of {base[at].item():.3g} in {gain.base.tensor}, at "
                f"element {at}, and 'input_norm' would divide by it.",
                why=f"that is less than {SMALLEST_GAIN:g} of its largest gain; the column would be blown up.",
                remedy="take input_norm out of 'folds'.",
            )
        return donor.div_(base)


def _stamp(descriptor: int, pin: str, file: str) -> SourceStamp:
    stat = os.fstat(descriptor)
    return SourceStamp(pin=pin, file=file, size=stat.st_size, modified_ns=stat.st_mtime_ns, inode=stat.st_ino)


def _changed(told: str, when: str) -> SourceChangedError:
    return SourceChangedError(
        f"{told} changed {when}.", remedy="leave the inputs alone during a merge, and run it again."
    )
