"""Reading in another order: which runs of a source a block of the output needs, and where each number goes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import product
from typing import NamedTuple

Loop = tuple[int, int, int]
"""(how often, elements from one to the next where it is read, the same in the output)."""

NEAR_BYTES = 1024
"""What lies between wanted elements that are no farther apart is read with them: a call costs more than such a gap."""
LINE_BYTES = 64
"""A cache line. Runs are kept one apart: rows that start a power of two apart push each other out of the cache."""


class Box(NamedTuple):
    """Elements of a segment that go into one block of the output."""

    source: int
    """The first one's place in the segment, in elements."""
    output: int
    """Its place relative to where the segment's first element goes."""
    loops: tuple[Loop, ...]


class Tile(NamedTuple):
    """Elements that fit into a buffer: runs of the source, read one after another, and the wanted ones among them."""

    source: int
    """The first run's place in the segment, in elements."""
    output: int
    """The place of its first element, relative to where the segment's first element goes."""
    run: int
    """How many elements a run has, those between the wanted ones included."""
    step: int
    """Elements of the buffer from one run to the next."""
    runs: tuple[Loop, ...]
    """The loops from run to run, the outermost first."""
    loops: tuple[Loop, ...]
    """Where the wanted elements are: read means in the buffer."""
    size: int
    """Elements of the buffer that it takes."""

    def list_starts(self) -> Iterator[int]:
        """Each run's place in the segment."""
        for places in product(*(range(count) for count, _, _ in self.runs)):
            yield self.source + sum(place * source for place, (_, source, _) in zip(places, self.runs, strict=True))


def cut_boxes(order: Sequence[Loop], low: int, high: int) -> Iterator[Box]:
    """The part of a segment whose elements go to places from `low` to before `high`, in the order of these places.

    Args:
        order: The segment's loops, the output's outermost first: each steps over the whole of those inside it.
        low: The first place, relative to where the segment's first element goes.
        high: The place after the last one.
    """
    if not order:
        if low <= 0 < high:
            yield Box(0, 0, ())
        return
    (count, source, output), inner = order[0], order[1:]
    # Of the turns of the outermost loop that reach into the block, all but the first and the last are whole.
    extent = find_extent(inner)
    begin, end = max(0, (low - extent) // output + 1), min(count, -(-high // output))
    first, last = max(begin, -(-low // output)), min(end, (high - extent) // output + 1)
    for place in range(begin, min(first, end)):
        yield from _cut_turn(order, place, low, high)
    if first < last:
        yield Box(first * source, first * output, ((last - first, source, output), *inner))
    for place in range(max(first, last), end):
        yield from _cut_turn(order, place, low, high)


def list_tiles(box: Box, most: int, width: int) -> Iterator[Tile]:
    """A box in tiles of at most `most` elements of `width` bytes; together they have each of its elements once."""
    tile = _lay_out(box, width)
    if tile.size <= most:
        yield tile
        return
    *rest, (count, source, output) = _sort_by_source(box.loops)
    together = most // (tile.size // count) if tile.runs else (most - tile.size) // source + count
    each = max(1, together)
    for first in range(0, count, each):
        loops = (*rest, (min(each, count - first), source, output))
        yield from list_tiles(Box(box.source + first * source, box.output + first * output, loops), most, width)


def find_extent(order: Sequence[Loop]) -> int:
    """How many places of the output lie from the first element to the last, both included."""
    return 1 + sum((count - 1) * output for count, _, output in order)


def _cut_turn(order: Sequence[Loop], place: int, low: int, high: int) -> Iterator[Box]:
    """The part of one turn of the outermost loop."""
    (_, source, output), inner = order[0], order[1:]
    for box in cut_boxes(inner, low - place * output, high - place * output):
        yield Box(box.source + place * source, box.output + place * output, box.loops)


def _lay_out(box: Box, width: int) -> Tile:
    """A box as a tile of any size: near elements in one run, the runs behind one another."""
    run = 1
    loops: list[Loop] = []
    runs: list[Loop] = []
    for count, source, output in _sort_by_source(box.loops):
        if source * width > NEAR_BYTES:
            runs.append((count, source, output))
        else:
            run += (count - 1) * source
            loops.append((count, source, output))
    step = size = run + (LINE_BYTES // width if runs else 0)
    for count, _, output in runs:
        loops.append((count, size, output))
        size *= count
    loops.sort(key=lambda loop: -loop[2])
    return Tile(box.source, box.output, run, step, tuple(reversed(runs)), tuple(loops), size)


def _sort_by_source(loops: Sequence[Loop]) -> list[Loop]:
    """The loops that are more than one turn, those with the shortest steps in the source first."""
    return sorted((loop for loop in loops if loop[0] > 1), key=lambda loop: loop[1])
