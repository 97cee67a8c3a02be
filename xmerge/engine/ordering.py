"""Reading in another order: which bytes of a source a block of the output needs, and where each number goes."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product

Loop = tuple[int, int, int]
"""(how often, elements from one to the next in the source, the same in the output)."""

SPARSEST = 4
"""What is wanted is read together with what lies between as long as that is at most so many times as much."""


@dataclass(frozen=True, slots=True)
class Box:
    """Elements of a segment that go into one block of the output."""

    source: int
    """The first one's place in the segment, in elements."""
    output: int
    """Its place relative to where the segment's first element goes."""
    loops: tuple[Loop, ...]


@dataclass(frozen=True, slots=True)
class Span:
    """Consecutive elements to read, and the elements among them that are wanted."""

    source: int
    output: int
    length: int
    """How many elements are read."""
    loops: tuple[Loop, ...]
    """Of the wanted ones, within the span."""


def cut_boxes(order: Sequence[Loop], low: int, high: int) -> Iterator[Box]:
    """The part of a segment whose elements go to places from `low` to before `high`.

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
    extent = 1 + sum((each - 1) * step for each, _, step in inner)
    first = min(max(0, -(-low // output)), count)
    last = max(min(count, (high - extent) // output + 1), first)
    for place in sorted({*range(max(0, (low - extent) // output + 1), first), *range(last, min(count, -(-high // output)))}):
        for box in cut_boxes(inner, low - place * output, high - place * output):
            yield Box(box.source + place * source, box.output + place * output, box.loops)
    if last > first:
        yield Box(first * source, first * output, ((last - first, source, output), *inner))


def list_spans(box: Box, most: int) -> Iterator[Span]:
    """The runs of elements to read for a box, none longer than `most` elements."""
    inner: list[Loop] = []
    outer: list[Loop] = []
    length = wanted = 1
    for count, source, output in sorted(box.loops, key=lambda loop: loop[1]):
        longer = (count - 1) * source + length
        if not outer and longer <= most and longer <= SPARSEST * wanted * count:
            length, wanted = longer, wanted * count
            inner.append((count, source, output))
        else:
            outer.append((count, source, output))
    for places in product(*(range(count) for count, _, _ in reversed(outer))):
        steps = list(zip(places, reversed(outer), strict=True))
        yield Span(
            box.source + sum(place * source for place, (_, source, _) in steps),
            box.output + sum(place * output for place, (_, _, output) in steps),
            length,
            tuple(inner),
        )


def count_elements(loops: Sequence[Loop]) -> int:
    """How many elements loops go over."""
    return math.prod(count for count, _, _ in loops)
