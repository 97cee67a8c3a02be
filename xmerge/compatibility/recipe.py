"""A recipe to start from: it merges what crosses, and says beside everything else why it is left out."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator, Sequence

import yaml

from xmerge.architecture.differences import CLASS_NAMES
from xmerge.compatibility.choices import APPROXIMATE, CROSSING, Choice, list_choices, list_outside, list_packed
from xmerge.compatibility.comparison import ComparedModel, Compatibility
from xmerge.compatibility.summary import list_obstacles
from xmerge.planning.table import tell_layers

START = 0.1
"""The t that the recipe suggests; for unrelated tensors slerp has cos(9 deg) = 0.988 and sin(9 deg) = 0.156."""
WIDTH = 100
_PLAIN = re.compile(r"[A-Za-z_./~][\w./~@+-]*", re.ASCII)


def write_recipe(found: Compatibility) -> str | None:
    """A recipe that merges what is exact or convertible, with the rest in comments; None: nothing is."""
    lines = list(_write_parameters(found))
    if not lines:
        return None
    base, donor = (_write_model(each) for each in (found.base, found.donor))
    head = [
        *_comment(f"What of {found.donor.label} crosses into {found.base.label} exactly or by conversion."),
        "# Of tensors that have nothing in common, slerp at t 0.1 takes 0.988 of the base and 0.156 of the donor.",
        "merge_method: slerp",
        f"base_model: {base}",
        "models:",
        f"  - model: {base}",
        f"  - model: {donor}",
    ]
    if found.base.layers != found.donor.layers:
        head.append(f"layer_map: proportional   # {found.base.layers} layers meet {found.donor.layers}")
    return "\n".join([*head, *lines]) + "\n"


def make_printable(text: str) -> str:
    """Text on one line, without anything that a terminal or YAML would act upon."""
    return " ".join("".join(sign if sign.isprintable() else " " for sign in text).split())


def _write_parameters(found: Compatibility) -> Iterator[str]:
    """The lines from `parameters:` on; none where nothing crosses."""
    if not found.base.known:
        yield from _write_by_name(found)
        return
    choices = list_choices(found)
    crossing = [each for each in choices if each.grade in CROSSING]
    if not crossing:
        return
    yield "parameters:"
    yield "  t:   # 0 is the base, 1 the donor; what no filter names is the base's, byte for byte"
    for text in list_outside(found, choices):
        yield f"    - {_write_filter(text, 0)}   # no part of the layers, and the base's"
    for each in crossing:
        yield from _write_choice(each, "    - ", f"   # {', '.join(each.components)}: {CLASS_NAMES[each.grade]}")
    yield from _write_approximate([each for each in choices if each.grade in APPROXIMATE])
    obstacles = list(list_obstacles(found))
    if obstacles:
        yield "    # These stay the base's:"
        for place, why in obstacles:
            yield from _comment(f"{place}: {why}", "    # ")


def _write_choice(each: Choice, lead: str, told: str = "") -> Iterator[str]:
    """The lines of a choice, the first of those that merge with what there is to say of it."""
    for text in each.kept:
        yield f"{lead}{_write_filter(text, 0)}"
    where = f" in {tell_layers(each.layers)}" if told and each.partial else ""
    for text in each.merged:
        yield f"{lead}{_write_filter(text, START)}{told}{where}"
        told = where = ""


def _write_approximate(choices: Sequence[Choice]) -> Iterator[str]:
    """What fits and means something else, by reasons, each filter behind a # that can be taken away."""
    if choices:
        yield "    # These fit and mean something else. Take the # before a filter away to merge it too."
    grouped: dict[tuple[str, tuple[str, ...]], list[Choice]] = {}
    for each in choices:
        where = f" in {tell_layers(each.layers)}" if each.partial else ""
        grouped.setdefault((where, each.reasons), []).append(each)
    for (where, reasons), alike in grouped.items():
        names = [name for each in alike for name in each.components]
        yield from _comment(f"{', '.join(names)}{where}: {'; '.join(reasons)}", "    # ")
        for each in alike:
            yield from _write_choice(each, "    #- ")


def _write_by_name(found: Compatibility) -> Iterator[str]:
    """Without a family file every tensor that matches is merged, because nobody knows which ones should not be."""
    grades = {each.grade for each in found.components if each.grade and not each.packed}
    if "A" not in grades:
        return
    if grades != {"A"}:
        yield "on_mismatch: base   # some do not fit, and stay the base's"
    packed = list_packed(found)
    told = "   # 0 is the base, 1 the donor; no family file says which tensors are what"
    yield "parameters:"
    if not packed:
        yield f"  t: {START}{told}"
        return
    yield f"  t:{told}"
    for text in packed:
        yield f"    - {_write_filter(text, 0)}   # packed"
    yield f"    - {{value: {START}}}"


def _write_filter(text: str, value: float) -> str:
    return f"{{filter: {_quote(text)}, value: {value}}}"


def _write_model(model: ComparedModel) -> str:
    """A model as a recipe names it; the path of a folder stands alone where its signs mean a revision or an adapter."""
    written = _quote(model.reference)
    return f"{{path: {written}}}" if model.local and {"@", "+"} & set(model.reference) else written


def _comment(text: str, lead: str = "# ") -> list[str]:
    return textwrap.wrap(
        make_printable(text),
        width=WIDTH,
        initial_indent=lead,
        subsequent_indent=f"{lead}  ",
        break_long_words=False,
        break_on_hyphens=False,
    )


def _quote(text: str) -> str:
    """Text as one YAML scalar, on one line, that can stand in braces."""
    if _PLAIN.fullmatch(text) and yaml.safe_load(text) == text:
        return text
    return yaml.safe_dump(text, default_style='"', allow_unicode=text.isprintable(), width=float("inf")).strip()
