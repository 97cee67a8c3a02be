"""Which filters of a recipe choose what crosses, and in which layers they have to be written layer by layer."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from xmerge.architecture import Class, worst_class
from xmerge.compatibility.comparison import Compatibility, ComponentFit
from xmerge.values import Value

CROSSING: tuple[Class, ...] = ("A", "B")
APPROXIMATE: tuple[Class, ...] = ("C",)


class Choice(Value):
    """What a filter chooses in the layers where all of it crosses, or where some of it is only approximate."""

    filter: str
    """What chooses it in every layer."""
    components: tuple[str, ...]
    grade: Class
    """The worst of them."""
    reasons: tuple[str, ...]
    layers: tuple[int, ...]
    partial: bool
    """Whether it chooses something in other layers too, which is not to be merged with it."""
    kept: tuple[str, ...]
    """Filters for what stays the base's, to be written before `merged`: the first that matches decides."""
    merged: tuple[str, ...]
    """The filters as they are written: one for all layers, or one for each."""


def list_choices(found: Compatibility) -> list[Choice]:
    """What a recipe can name, in the order of the base's tensors; no component that fits nowhere is among it."""
    filters = dict.fromkeys(each.filter for each in found.components if each.filter and each.is_projection)
    return [choice for text in filters if text for choice in _choose(found, text)]


def list_outside(found: Compatibility, choices: Iterable[Choice]) -> list[str]:
    """Filters for what choices would catch outside the layers: the towers of a multimodal model have layers too."""
    texts = {text for choice in choices for text in choice.merged}
    caught = [
        name
        for each in found.components
        if each.filter is None and each.grade is not None
        for name in each.names
        if any(text in name for text in texts)
    ]
    inside = _expand(each for each in found.components if each.filter) if caught else []
    return list(dict.fromkeys(find_apart(caught, inside)))


def list_packed(found: Compatibility) -> list[str]:
    """Filters for what no recipe may name, where everything else is merged by its name."""
    others = _expand(each for each in found.components if not each.packed)
    filters: dict[str, None] = {}
    for each in found.components:
        if each.packed and each.filter and not any(each.filter in other for other in others):
            filters[each.filter] = None
        elif each.packed:
            filters |= dict.fromkeys(find_apart(_expand([each]), others))
    return list(filters)


def find_apart(names: Iterable[str], others: Sequence[str]) -> Iterator[str]:
    """For each name the fewest of its first words that are part of none of the others; all of them if need be."""
    for name in names:
        words = name.split(".")
        beginnings = (".".join(words[:count]) + "." for count in range(1, len(words)))
        yield next((text for text in beginnings if not any(text in other for other in others)), name)


def _choose(found: Compatibility, text: str) -> Iterator[Choice]:
    """The layers where a filter chooses what crosses, and those where what it chooses is approximate."""
    caught = [each for each in found.components if each.filter and _catches(text, each) and not _is_bias(each)]
    graded = [each for each in caught if each.grade is not None]
    grades: dict[int, Class] = {}
    for each in graded:
        for layer in each.layers:
            grades[layer] = worst_class([grades.get(layer, "A"), each.grade or "A"])
    for kind, rival in ((CROSSING, APPROXIMATE), (APPROXIMATE, CROSSING)):
        layers = tuple(sorted(layer for layer, grade in grades.items() if grade in kind))
        if layers:
            held = [each for each in graded if set(layers) & set(each.layers)]
            others = sorted(set(grades) - set(layers))
            mixed = any(grade in rival for grade in grades.values())
            kept, merged = _spell(text, graded[0], layers, others, mixed=mixed)
            yield Choice(
                filter=text,
                components=tuple(dict.fromkeys(each.component for each in held)),
                grade=worst_class(grades[layer] for layer in layers),
                reasons=tuple(dict.fromkeys(reason for each in held for reason in each.reasons)),
                layers=layers,
                partial=bool(others),
                kept=kept,
                merged=merged,
            )


def _spell(
    text: str, first: ComponentFit, layers: Sequence[int], others: Sequence[int], *, mixed: bool
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The fewest filters for some layers: each by itself, or all of them after those that stay the base's."""
    beginning = first.names[0].partition("{layer}")[0]
    one_by_one, apart = (tuple(f"{beginning}{layer}.{text}" for layer in each) for each in (layers, others))
    if not others:
        return (), (text,)
    # What is only approximate has lines of its own, which must not be decided before them.
    if mixed or len(layers) <= 1 + len(others):
        return (), one_by_one
    return apart, (text,)


def _catches(text: str, each: ComponentFit) -> bool:
    return any(text in name for name in each.names)


def _is_bias(each: ComponentFit) -> bool:
    """A bias goes where its weight goes."""
    return bool(each.roles) and all(role.endswith("_bias") for role in each.roles)


def _expand(components: Iterable[ComponentFit]) -> list[str]:
    """The names of components, layer by layer."""
    return [
        name.replace("{layer}", str(layer))
        for each in components
        for name in each.names
        for layer in (each.layers or (0,))
    ]
