"""Reading a source block by block, in the output's order, through buffers that are used again and again."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch

from xmerge.checkpoints.headers import DTYPE_BYTES
from xmerge.engine.gains import FoldedGain
from xmerge.engine.ordering import cut_boxes, find_extent, list_tiles
from xmerge.engine.reading import TORCH_DTYPES, OpenSources
from xmerge.interrupt import check_stop
from xmerge.planning.memory import WIDEST, WINDOW_BYTES, reads_ahead
from xmerge.planning.plan import Segment, Source


class Buffers:
    """What the readers of one worker share: what a file is read into, and the windows of what is read ahead."""

    def __init__(self, block: int, device: torch.device, window: int = WINDOW_BYTES) -> None:
        self.block, self.device, self.window = block, device, window
        self.raw = torch.empty(block * WIDEST, dtype=torch.uint8, pin_memory=device.type == "cuda")
        self.bytes = self.raw.numpy().data
        self._staged = torch.empty_like(self.raw, device=device) if device.type != "cpu" else self.raw
        self._windows: dict[int, torch.Tensor] = {}

    def stage(self, count: int) -> torch.Tensor:
        """The first bytes of what was read, on the device."""
        return self.raw[:count] if self._staged is self.raw else self._staged[:count].copy_(self.raw[:count])

    def open_window(self, number: int) -> torch.Tensor:
        """The bytes that belong to a tensor's source of this number."""
        if number not in self._windows:
            self._windows[number] = torch.empty(self.window, dtype=torch.uint8, device=self.device)
        return self._windows[number]


class SourceReader:
    """Reads one source of a tensor."""

    def __init__(self, source: Source, files: OpenSources, buffers: Buffers, number: int = 0) -> None:
        """Read the gains that are folded into it, if any are.

        Args:
            source: What to read.
            files: Where it is.
            buffers: What to read into.
            number: Its place among the sources that are read in turns.

        Raises:
            CheckpointError: A folded gain is no number, or the base's is too small to divide by.
        """
        self._source, self._files, self._buffers = source, files, buffers
        self._segments = [
            (each.at, each.at + find_extent(_list_loops(each)), each) for each in source.segments if each.elements
        ]
        self._gain = FoldedGain(source.gain, source.model, files, buffers.device) if source.gain else None
        self._window = buffers.open_window(number) if reads_ahead(source, buffers.block) else None
        self._held: torch.Tensor | None = None
        self._held_from = 0

    def read(self, start: int, out: torch.Tensor) -> None:
        """Fill `out`, of any float dtype, with the source's numbers for the output's elements from `start` on."""
        if self._window is None:
            self._fill(start, out)
        else:
            self._take(self._window, start, out)
        if self._gain is not None:
            self._gain.apply(start, out)
        if self._source.shift:
            out.add_(self._source.shift)

    def find_stored(self, place: int) -> tuple[str, int]:
        """Which stored tensor gives an element of the output, and which of its elements it is."""
        segment, box = next(
            (segment, box)
            for at, _, segment in self._segments
            for box in cut_boxes(_list_loops(segment), place - at, place - at + 1)
        )
        return segment.tensor, self._files.find_element(self._source.model, segment, box.source)

    def _take(self, window: torch.Tensor, start: int, out: torch.Tensor) -> None:
        """Fill a block from a window, which is filled anew where the block goes beyond it."""
        size, done = len(window) // out.element_size(), 0
        while done < out.numel():
            first = (start + done) // size * size
            if self._held is None or self._held.dtype != out.dtype or self._held_from != first:
                self._held = None
                filled = window.view(out.dtype)
                self._fill(first, filled)
                self._held, self._held_from = filled, first
            place = start + done - first
            taken = self._held[place : place + out.numel() - done]
            out[done : done + taken.numel()].copy_(taken)
            done += taken.numel()

    def _fill(self, start: int, out: torch.Tensor) -> None:
        """Read the part of each segment that goes into `out`, without gain and shift."""
        for at, end, segment in self._segments:
            low, high = max(start, at), min(start + out.numel(), end)
            if low >= high:
                continue
            if segment.order:
                self._fill_reordered(segment, low, high, start, out)
            else:
                self._fill_in_order(segment, low - at, out[low - start : high - start])

    def _fill_in_order(self, segment: Segment, first: int, out: torch.Tensor) -> None:
        """Read a segment's elements from one on."""
        most = len(self._buffers.raw) // DTYPE_BYTES[segment.dtype]
        for done in range(0, out.numel(), most):
            part = out[done : done + most]
            part.copy_(self._read(segment, (first + done,), part.numel(), part.numel()))
        if segment.scale != 1.0:
            out.mul_(segment.scale)

    def _fill_reordered(self, segment: Segment, low: int, high: int, start: int, out: torch.Tensor) -> None:
        """Put a segment's elements for the output's from `low` to before `high` where they go in a block."""
        width = DTYPE_BYTES[segment.dtype]
        most = len(self._buffers.raw) // width
        for box in cut_boxes(segment.order, low - segment.at, high - segment.at):
            for tile in list_tiles(box, most, width):
                check_stop()
                read = self._read(segment, tile.list_starts(), tile.run, tile.step)
                counts, steps, places = zip(*tile.loops, strict=True) if tile.loops else ((), (), ())
                place = segment.at + tile.output - start
                filled = out[place:].as_strided(counts, places).copy_(read.as_strided(counts, steps))
                if segment.scale != 1.0:
                    filled.mul_(segment.scale)

    def _read(self, segment: Segment, starts: Iterable[int], run: int, step: int) -> torch.Tensor:
        """Runs of elements in their dtype, `step` elements from one to the next; valid until the next call."""
        width, view, end = DTYPE_BYTES[segment.dtype], self._buffers.bytes, 0
        for number, start in enumerate(starts):
            begin = number * step * width
            end = begin + run * width
            self._files.read(self._source.model, segment, start * width, view[begin:end])
        return self._buffers.stage(end).view(TORCH_DTYPES[segment.dtype])


class BlockReader:
    """Reads the sources of one tensor after another, in turns."""

    def __init__(self, files: OpenSources, block: int, device: torch.device) -> None:
        self._files, self._buffers = files, Buffers(block, device)
        self._readers: dict[int, SourceReader] = {}

    def open(self, sources: Sequence[Source]) -> None:
        """Make ready to read these, and no others any more.

        Raises:
            CheckpointError: A folded gain is no number, or the base's is too small to divide by.
        """
        self._readers = {
            id(source): SourceReader(source, self._files, self._buffers, number)
            for number, source in enumerate(sources)
        }

    def read(self, source: Source, start: int, out: torch.Tensor) -> None:
        """Fill `out`, of any float dtype, with an open source's numbers for the output's elements from `start` on."""
        self._readers[id(source)].read(start, out)

    def find_stored(self, source: Source, place: int) -> tuple[str, int]:
        """Which stored tensor gives an element of the output, and which of its elements it is."""
        return self._readers[id(source)].find_stored(place)


def _list_loops(segment: Segment) -> tuple[tuple[int, int, int], ...]:
    return segment.order or ((segment.elements, 1, 1),)
