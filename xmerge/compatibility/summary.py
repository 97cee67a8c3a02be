"""In a few sentences: what of a donor crosses into a base, what does not, and what stands in the way."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import NamedTuple

from xmerge.architecture import Class
from xmerge.compatibility.choices import APPROXIMATE, CROSSING
from xmerge.compatibility.comparison import Compatibility
from xmerge.planning.table import tell_layers

AXES = {
    "hidden": "hidden width",
    "ffn": "feed-forward width",
    "expert_ffn": "width of an expert",
    "shared_ffn": "width of the shared expert",
    "heads": "query heads",
    "kv_heads": "key/value heads",
    "head_dim": "head size",
    "experts": "experts",
    "vocab": "vocabulary",
}
"""What people call an axis; any other by the name that its family file gives it."""


def summarize(found: Compatibility) -> tuple[str, ...]:
    """What a person wants to know first, as sentences."""
    base, donor = found.base.label, found.donor.label
    if not found.base.known:
        return (_summarize_by_name(found),)
    crossing, approximate = _find_places(found, CROSSING), _find_places(found, APPROXIMATE)
    told = [f"{each.tell(donor)} {each.say('cross', 'crosses')} exactly or by conversion." for each in crossing]
    told += [
        f"{each.tell(donor)} {each.say('fit', 'fits')}, but {each.say('mean', 'means')} something else in {base}; the "
        "notes say what."
        for each in approximate
    ]
    if not crossing and not approximate:
        told.append(f"Nothing of {donor}'s attention and feed-forward fits into {base}.")
    told += [f"{place.tell()} {place.say('do', 'does')} not fit: {why}." for place, why in list_obstacles(found)]
    if not crossing and not approximate and _tell_axes(found, ("hidden",)):
        told.append(
            "Every matrix of a layer reads or writes the hidden width, so models of different widths share none; only "
            "a bridge from one width to the other could join them, and xmerge builds none."
        )
    return tuple(told)


class Components(NamedTuple):
    """Components of the base, in the same layers."""

    names: tuple[str, ...]
    layers: tuple[int, ...]
    """Empty: in all that have them."""

    def __str__(self) -> str:
        return self.tell()

    def tell(self, owner: str = "") -> str:
        """`attn_q, attn_k of owner, in layers 0-2`."""
        told = ", ".join(self.names) + (f" of {owner}" if owner else "")
        return f"{told} in {tell_layers(self.layers)}" if self.layers else told

    def say(self, many: str, one: str) -> str:
        """The form of a verb that goes with them."""
        return one if len(self.names) == 1 and "+" not in self.names[0] else many


def list_obstacles(found: Compatibility) -> Iterator[tuple[Components, str]]:
    """What of attention and feed-forward does not fit, each group with what is in the way."""
    grouped: dict[str, dict[str, set[int]]] = {}
    for each in found.components:
        if each.is_projection and each.grade in ("D", "E"):
            why = (_tell_axes(found, each.axes) if each.grade == "D" else "") or each.reasons[0]
            grouped.setdefault(why, {}).setdefault(each.component, set()).update(each.layers)
    for why, places in grouped.items():
        for alike in _join(found, places):
            yield alike, why


def _find_places(found: Compatibility, classes: Collection[Class]) -> list[Components]:
    """What of attention and feed-forward has one of these classes."""
    places: dict[str, set[int]] = {}
    for each in found.components:
        if each.is_projection and each.grade in classes:
            places.setdefault(each.component, set()).update(each.layers)
    return list(_join(found, places))


def _join(found: Compatibility, places: Mapping[str, set[int]]) -> Iterator[Components]:
    """Components that are in the same layers, joined."""
    grouped: dict[tuple[int, ...], list[str]] = {}
    for name, layers in places.items():
        whole = {layer for each in found.components if each.component == name for layer in each.layers}
        grouped.setdefault(() if layers == whole else tuple(sorted(layers)), []).append(name)
    for where, names in grouped.items():
        yield Components(tuple(names), where)


def _tell_axes(found: Compatibility, axes: Collection[str]) -> str:
    """`hidden width 4096 in llama-3-8b, 3584 in gemma-2-9b; query heads 32, 16`; empty where no axis differs."""
    ours, theirs = found.base.axes, found.donor.axes
    apart = [axis for axis in ours if axis in axes and axis in theirs and ours[axis] != theirs[axis]]
    if not apart:
        return ""
    first, *rest = apart
    told = (
        f"{AXES.get(first, first)} {ours[first]} in {found.base.label}, {theirs[first]} in {found.donor.label}",
        *(f"{AXES.get(axis, axis)} {ours[axis]}, {theirs[axis]}" for axis in rest),
    )
    return "; ".join(told)


def _summarize_by_name(found: Compatibility) -> str:
    grades = [found.class_of(name) for name in dict.fromkeys(each.component for each in found.components)]
    fitting, alone = grades.count("A"), grades.count(None)
    others = len(grades) - fitting - alone
    return (
        f"Tensors were compared by name and shape, because {found.base.unknown}: {fitting} of {len(grades)} components "
        f"match; misfits: {others}; only in {found.base.label}: {alone}."
    )
