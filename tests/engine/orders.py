"""Random orders: axes inside one another, in one way in the source and in another in the output, with gaps in both."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import product
from typing import NamedTuple

from hypothesis import strategies as st

from xmerge.engine.ordering import Loop


class Layout(NamedTuple):
    """Where the elements along each axis lie."""

    first: int
    steps: Mapping[int, int]
    """axis -> elements from one to the next."""
    size: int
    """Elements of the whole tensor, of which these are a part."""


class Order(NamedTuple):
    """A part of a tensor, as a segment has it."""

    first: int
    """The first one's place in the source."""
    at: int
    """Its place in the output."""
    loops: tuple[Loop, ...]
    source_size: int
    output_size: int

    def list_places(self) -> list[tuple[int, int]]:
        """(place in the source, place in the output) of every element, one after another."""
        return [
            (
                self.first + sum(turn * source for turn, (_, source, _) in zip(turns, self.loops, strict=True)),
                self.at + sum(turn * output for turn, (_, _, output) in zip(turns, self.loops, strict=True)),
            )
            for turns in product(*(range(count) for count, _, _ in self.loops))
        ]


@st.composite
def draw_layout(draw: st.DrawFn, sizes: Sequence[int], *, gaps: bool) -> Layout:
    """Axes in any order, each stepping by one or more of what is inside it, in a dimension as long or longer."""
    first, stride, steps = 0, 1, {}
    for axis in draw(st.permutations(range(len(sizes)))):
        step = draw(st.integers(1, 3)) if gaps else 1
        room = draw(st.integers(0, 2)) if gaps else 0
        steps[axis] = stride * step
        first += draw(st.integers(0, step * (room + 1) - 1)) * stride
        stride *= (sizes[axis] + room) * step
    return Layout(first, steps, stride)


@st.composite
def draw_order(draw: st.DrawFn, *, gaps: bool = True) -> Order:
    """The loops that take a part out of one layout and put it into another; without gaps the output is all of it."""
    sizes = draw(st.lists(st.integers(1, 5), min_size=1, max_size=4))
    source = draw(draw_layout(sizes, gaps=True))
    output = draw(draw_layout(sizes, gaps=gaps))
    # Outermost first; an axis of one element has no step worth the name, and may stand anywhere.
    loops = sorted(
        ((size, source.steps[axis], output.steps[axis]) for axis, size in enumerate(sizes)), key=lambda each: -each[2]
    )
    return Order(source.first, output.first, tuple(loops), source.size, output.size)


@st.composite
def draw_parts(draw: st.DrawFn, order: Order) -> list[Order]:
    """An order as several that have its elements between them."""
    parts = [order]
    for _ in range(draw(st.integers(0, 3))):
        number = draw(st.integers(0, len(parts) - 1))
        part = parts.pop(number)
        axis = draw(st.integers(0, len(part.loops) - 1))
        count, source, output = part.loops[axis]
        cut = draw(st.integers(0, count))
        for begin, end in ((0, cut), (cut, count)):
            if end > begin:
                loops = (*part.loops[:axis], (end - begin, source, output), *part.loops[axis + 1 :])
                parts.append(part._replace(first=part.first + begin * source, at=part.at + begin * output, loops=loops))
    return parts
