"""In a few sentences: what of a donor crosses into a base, what does not, and what stands in the way."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence

from xmerge.compatibility.comparison import Compatibility


def summarize(found: Compatibility) -> tuple[str, ...]:
    """What a person wants to know first, as sentences."""
    base, donor = found.base.label, found.donor.label
    if not found.base.known:
        return (_summarize_by_name(found),)
    crossing, approximate = _list_of_class(found, "AB"), _list_of_class(found, "C")
    told = []
    if crossing:
        told.append(f"{_join(crossing)} of {donor} {_verb(crossing, 'cross', 'crosses')} exactly or by conversion.")
    if approximate:
        told.append(
            f"{_join(approximate)} {_verb(approximate, 'fit', 'fits')} and would mean something else in {base}."
        )
    if not crossing and not approximate:
        told.append(f"Nothing of {donor}'s attention and feed-forward fits into {base}.")
    told += [f"{_join(names)}: {why}." for names, why in list_obstacles(found)]
    if not crossing and not approximate and _tell_axes(found, ("hidden",)):
        told.append(
            "Every matrix of a layer reads or writes the hidden width, so models of different widths share none; only "
            "a bridge from one width to the other could join them, and xmerge builds none."
        )
    return tuple(told)


def list_obstacles(found: Compatibility) -> Iterator[tuple[list[str], str]]:
    """What of attention and feed-forward does not fit, each group with what is in the way."""
    grouped: dict[str, dict[str, None]] = {}
    for each in found.components:
        if each.is_projection and each.grade in ("D", "E"):
            why = each.reasons[0]
            if each.grade == "D":
                why = _tell_axes(found, each.axes) or why
            grouped.setdefault(why, {})[each.component] = None
    for why, names in grouped.items():
        yield list(names), why


def _list_of_class(found: Compatibility, classes: str) -> list[str]:
    names = dict.fromkeys(each.component for each in found.components if each.is_projection)
    return [name for name in names if (found.class_of(name) or "-") in classes]


def _tell_axes(found: Compatibility, axes: Collection[str]) -> str:
    """`hidden is 4096 in llama-3-8b and 3584 in gemma-2-9b, heads 32 and 16`; empty where none of the axes differs."""
    ours, theirs = found.base.axes, found.donor.axes
    apart = [axis for axis in ours if axis in axes and axis in theirs and ours[axis] != theirs[axis]]
    if not apart:
        return ""
    first, *rest = apart
    told = f"{first} is {ours[first]} in {found.base.label} and {theirs[first]} in {found.donor.label}"
    return ", ".join([told, *(f"{axis} {ours[axis]} and {theirs[axis]}" for axis in rest)])


def _summarize_by_name(found: Compatibility) -> str:
    grades = [found.class_of(name) for name in dict.fromkeys(each.component for each in found.components)]
    fitting, alone = grades.count("A"), grades.count(None)
    others = len(grades) - fitting - alone
    return (
        f"No family file says what the tensors of {found.base.kind} do, so they were compared by name and shape: "
        f"{fitting} of {len(grades)} components match, {others} of other shape, {alone} only in {found.base.label}."
    )


def _join(names: Sequence[str]) -> str:
    return ", ".join(names)


def _verb(names: Sequence[str], many: str, one: str) -> str:
    return one if len(names) == 1 and "+" not in names[0] else many
