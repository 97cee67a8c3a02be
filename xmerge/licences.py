"""Licences: what is known of them, and what follows for a merge of models under several. Not legal advice."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Sequence
from functools import cache
from importlib import resources
from typing import Literal

import yaml

from xmerge.source_cards import SourceCard
from xmerge.values import Value

NO_ADVICE = "This is information gathered from the models' cards, not legal advice."
OTHER = "other"
_UNPLAIN = re.compile(r"[^A-Za-z0-9._-]+")


class Licence(Value):
    """A licence that is known; licences.yaml says what each field means."""

    id: str
    name: str
    link: str
    kind: Literal["permissive", "own terms", "share alike", "no derivatives"]
    calls: tuple[str, ...] = ()
    commercial: bool = True
    display: str | None = None
    begins: str | None = None
    notice: str | None = None
    refuses: Literal["all", "other", "closed"] | None = None
    because: str | None = None


class Conflict(Value):
    """A licence whose words forbid passing the merge on."""

    licence: str
    """Its identifier, by which a recipe acknowledges it."""
    text: str
    link: str


class Verdict(Value):
    """What the sources' licences say of their merge."""

    licence: str | None = None
    """The identifier that the output's card has; None: no source says any."""
    name: str | None = None
    link: str | None = None
    carries_over: bool = False
    """Whether all sources have one licence."""
    conflicts: tuple[Conflict, ...] = ()
    begins: tuple[str, ...] = ()
    """What the name of a published merge is to begin with."""
    display: tuple[str, ...] = ()
    """Words that are to be shown beside it."""
    duties: tuple[str, ...] = ()
    """What is to be done when it is passed on, in words."""


class LicenceRecord(Value):
    """What an output keeps of the licences it came under, for whoever publishes it later."""

    verdict: Verdict
    acknowledged: tuple[str, ...] = ()
    """By the recipe."""


class Notice(Value):
    """A licence's text that goes along."""

    model: int
    """Whose it is: a place among the plan's models."""
    file: str
    sha256: str
    copy_name: str
    """Its name in the output."""


@cache
def list_licences() -> tuple[Licence, ...]:
    """Every licence that is known."""
    text = (resources.files("xmerge") / "licences.yaml").read_text(encoding="utf-8")
    return tuple(Licence.model_validate(each) for each in yaml.safe_load(text))


def find_licence(card: SourceCard) -> Licence | None:
    """The licence that a card names, if it is known."""
    if card.licence == OTHER or card.licence is None:
        called = (card.licence_name or "").lower()
        return next((each for each in list_licences() if called and called in each.calls), None)
    return next((each for each in list_licences() if each.id == card.licence), None)


def judge_licences(cards: Sequence[SourceCard]) -> Verdict:
    """What follows for the merge of models that have these cards."""
    known = {found.id: found for card in cards if (found := find_licence(card))}
    identities = {_identify(card) for card in cards}
    carries_over = len(identities) == 1 and None not in identities
    first = cards[0]
    return Verdict(
        licence=first.licence if carries_over else OTHER if any(card.licence for card in cards) else None,
        name=first.licence_name if carries_over else None,
        link=first.licence_link if carries_over else None,
        carries_over=carries_over,
        conflicts=tuple(_list_conflicts(list(known.values()), alone=len(identities) == 1)),
        begins=tuple(sorted({each.begins for each in known.values() if each.begins}, key=len, reverse=True)[:1]),
        display=tuple(sorted({each.display for each in known.values() if each.display})),
        duties=tuple(_list_duties(list(known.values()))),
    )


def tell_licence(card: SourceCard) -> str:
    """A source's licence in words."""
    known = find_licence(card)
    if known is not None:
        return known.name
    if card.licence is None:
        return "none is named"
    return card.licence_name or card.licence if card.licence == OTHER else card.licence


def link_licence(card: SourceCard) -> str | None:
    """Where the text of a source's licence stands."""
    if card.licence_link and card.licence_link.startswith("http"):
        return card.licence_link
    known = find_licence(card)
    return known.link if known else None


def name_notices(sources: Sequence[tuple[str, SourceCard]], verdict: Verdict) -> tuple[Notice, ...]:
    """The licence texts that go along; under its own name only what holds for the whole of the output."""
    notices: list[Notice] = []
    taken: dict[str, str] = {}
    for model, (label, card) in enumerate(sources):
        for file, digest in card.notices:
            if verdict.carries_over and taken.setdefault(file, digest) == digest:
                name = file
            else:
                name = f"{file}.{model}-{_UNPLAIN.sub('-', label).strip('.-')[:60] or 'model'}"
            if name not in {notice.copy_name for notice in notices}:
                notices.append(Notice(model=model, file=file, sha256=digest, copy_name=name))
    return tuple(notices)


def list_open_conflicts(conflicts: Sequence[Conflict], acknowledged: Collection[str]) -> list[Conflict]:
    """The conflicts that nobody has acknowledged."""
    return [conflict for conflict in conflicts if conflict.licence not in acknowledged]


def _identify(card: SourceCard) -> tuple[str | None, ...] | None:
    """What makes two licences the same one; None: there is none, or one of which nothing is said."""
    if card.licence == OTHER:
        named = (card.licence_name, card.licence_link)
        return named if any(named) else None
    return (card.licence,) if card.licence else None


def _list_conflicts(known: Sequence[Licence], *, alone: bool) -> Iterator[Conflict]:
    for licence in known:
        others = [each for each in known if each is not licence]
        closed = [each for each in others if each.kind != "permissive"]
        hit = {"all": True, "other": not alone, "closed": bool(closed)}.get(licence.refuses or "", False)
        if hit:
            yield Conflict(licence=licence.id, text=f"{licence.name}: {licence.because}", link=licence.link)


def _list_duties(known: Sequence[Licence]) -> Iterator[str]:
    for licence in known:
        if licence.begins:
            yield f"{licence.name}: the name of what is passed on begins with “{licence.begins}”."
        if licence.display:
            yield f"{licence.name}: “{licence.display}” is shown beside it."
        if licence.notice:
            yield f"{licence.name}: this line goes along: {licence.notice}"
        if not licence.commercial:
            yield f"{licence.name}: not for commercial use."
        if licence.kind == "share alike":
            yield f"{licence.name}: what is made of it comes under the same licence."
