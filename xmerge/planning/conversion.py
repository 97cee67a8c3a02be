"""Conversions: how a donor's numbers are read in the order of the target's tensor.

A layout is a set of loops over named axes, so a conversion pairs the loops of two layouts by name. Nothing is moved by
formula, no number changes, and the way back is the same pairs the other way round.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from xmerge.architecture import RolePart

Order = tuple[tuple[int, int, int], ...]
"""(how often, elements from one to the next in the donor, the same in the output), the output's outermost first."""


@dataclass(frozen=True)
class Piece:
    """Numbers of one donor tensor, and where they go."""

    number: int
    """Which of the donor's parts they come from."""
    first: int
    """The place of the first one in the donor's tensor, in elements."""
    at: int
    """Its place in the output's tensor."""
    order: Order


@dataclass(frozen=True)
class Turn:
    """Two layouts of rotated heads: pairs of rows side by side, or half a rotated part away from each other."""

    ours: str
    theirs: str
    rotary: int
    """How many rows of a head are rotated where they lie side by side."""


@dataclass(frozen=True)
class View:
    """Loops by axis."""

    offset: int
    loops: Mapping[str, tuple[int, int]]

    def fix(self, axis: str, index: int) -> View:
        """One slice along an axis."""
        _, stride = self.loops[axis]
        rest = {name: loop for name, loop in self.loops.items() if name != axis}
        return View(self.offset + index * stride, rest)

    def split(self, axis: str, parts: Sequence[tuple[str, int, int]], shift: int = 0) -> View:
        """An axis as several, each with its length and its step along the axis."""
        _, stride = self.loops[axis]
        rest = {name: loop for name, loop in self.loops.items() if name != axis}
        made = {name: (count, step * stride) for name, count, step in parts}
        return View(self.offset + shift * stride, {**rest, **made})

    @property
    def sizes(self) -> dict[str, int]:
        """Each axis longer than 1."""
        return {axis: count for axis, (count, _) in self.loops.items() if count > 1}


def pair(
    ours: RolePart, theirs: Sequence[RolePart], turn: Turn | None, *, ignore_heads: bool = False
) -> list[Piece] | None:
    """The pieces that fill a part of the target's tensor; None where the sizes of the axes differ.

    Args:
        ours: The target's part.
        theirs: The donor's: one, or one for each expert.
        turn: How the rows of rotated heads must be reordered, if they must.
        ignore_heads: Whether rows are just rows, however they are divided into heads.
    """
    pieces: list[Piece] = []
    for number, part in enumerate(theirs):
        matched = _meet_experts(ours, part)
        if matched is None:
            continue
        left, right = _regroup(*matched)
        if ignore_heads:
            left, right = _flatten(left), _flatten(right)
        if left.sizes != right.sizes:
            return None
        for a, b in _turn(left, right, turn) if turn and not ignore_heads else [(left, right)]:
            pieces.append(Piece(number, b.offset, a.offset, _order(a, b)))
    covered = sum(math.prod(count for count, _, _ in piece.order) for piece in pieces)
    return pieces if covered == math.prod(count for _, count, _ in ours.loops) else None


def _view(part: RolePart) -> View:
    """The loops of a part; keys and values have kv_heads, also where a family has as many as heads."""
    own = part.role.startswith(("attn_k", "attn_v"))
    return View(
        part.offset,
        {"kv_heads" if own and axis == "heads" else axis: (count, step) for axis, count, step in part.loops},
    )


def _meet_experts(ours: RolePart, theirs: RolePart) -> tuple[View, View] | None:
    """The views of one expert, or of all; None where the parts are of different experts."""
    views = _view(ours), _view(theirs)
    if (ours.expert is None) == (theirs.expert is None):
        return views if ours.expert == theirs.expert else None
    one, joined = (ours, 1) if theirs.expert is None else (theirs, 0)
    assert one.expert is not None
    if one.expert >= views[joined].loops.get(one.along, (0, 0))[0]:
        return None
    fixed = views[joined].fix(one.along, one.expert)
    return (fixed, views[1]) if joined == 0 else (views[0], fixed)


def _regroup(ours: View, theirs: View) -> tuple[View, View]:
    """Divide heads into groups where the other layout goes group by group."""
    for one, other in ((ours, theirs), (theirs, ours)):
        if "group" in one.loops and "heads" in other.loops:
            groups, size = one.loops["kv_heads"][0], one.loops["group"][0]
            if groups * size == other.loops["heads"][0]:
                split = other.split("heads", [("kv_heads", groups, size), ("group", size, 1)])
                return (ours, split) if one is ours else (split, theirs)
    return ours, theirs


def _flatten(view: View) -> View:
    """Heads as so many rows, where they lie one after another."""
    heads = next((axis for axis in ("heads", "kv_heads") if axis in view.loops), None)
    if heads is None or "head_dim" not in view.loops:
        return view
    (count, step), (rows, stride) = view.loops[heads], view.loops["head_dim"]
    if count > 1 and step != rows * stride:
        return view
    rest = {axis: loop for axis, loop in view.loops.items() if axis not in (heads, "head_dim")}
    return View(view.offset, {**rest, "rows of heads": (count * rows, stride)})


def _turn(ours: View, theirs: View, turn: Turn) -> Iterator[tuple[View, View]]:
    """The rotated part of every head pair by pair, and the rest of it as it is."""
    if "head_dim" not in ours.loops:
        yield ours, theirs
        return
    half, head = turn.rotary // 2, ours.loops["head_dim"][0]
    steps = {"half": [("pair", half, 1), ("side", 2, half)], "interleaved": [("pair", half, 2), ("side", 2, 1)]}
    yield ours.split("head_dim", steps[turn.ours]), theirs.split("head_dim", steps[turn.theirs])
    if head > 2 * half:
        rest = [("rest", head - 2 * half, 1)]
        yield ours.split("head_dim", rest, 2 * half), theirs.split("head_dim", rest, 2 * half)


def _order(ours: View, theirs: View) -> Order:
    """The loops of both, with those that follow one another in both joined."""
    loops = [
        (count, theirs.loops.get(axis, (1, 0))[1], step) for axis, (count, step) in ours.loops.items() if count > 1
    ]
    joined: list[tuple[int, int, int]] = []
    for count, source, step in sorted(loops, key=lambda loop: -loop[2]):
        if joined:
            outer, outer_source, outer_step = joined[-1]
            if outer_step == count * step and outer_source == count * source:
                joined[-1] = (outer * count, source, step)
                continue
        joined.append((count, source, step))
    return tuple(joined) or ((1, 1, 1),)
