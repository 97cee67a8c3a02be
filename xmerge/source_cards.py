"""What a source says of itself: the metadata of its card, and the texts of its licence. All of it is untrusted."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import Any

import yaml

from xmerge import hub
from xmerge.checkpoints.checkpoint import list_names, refuse_escape
from xmerge.errors import CheckpointError
from xmerge.files import read_bytes
from xmerge.sources import Location
from xmerge.values import Value

CARD_NAME = "README.md"
MOST_BYTES = 1_000_000
"""Above any card or licence; a larger file is named and not read."""
MOST_METADATA = 64_000
"""Characters; a hostile text of that length takes seconds to refuse, a longer one more."""
MOST_LISTED = 100
"""Languages or data sets that are carried over from one card."""

_FRONT_MATTER = re.compile(r"\ufeff?---[ \t]*\r?\n(.*?)^---[ \t]*$", re.DOTALL | re.MULTILINE)
_NOTICE = re.compile(
    r"(LICEN[CS]E|NOTICE|[Nn]otice|USE_POLICY)([-_][\w-]{1,40})?(\.(txt|md))?(\.\d+-[\w.-]{1,60})?", re.ASCII
)
_IDENTIFIER = re.compile(r"[a-z0-9][a-z0-9.+_-]{0,60}")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9 .+_()-]{0,80}")
_LINK = re.compile(
    r"https?://[A-Za-z0-9.-]{1,100}(:\d{1,5})?(/[A-Za-z0-9._~%/+@=-]{0,300})?|[A-Za-z0-9][\w.-]{0,80}", re.ASCII
)
_LANGUAGE = re.compile(r"[A-Za-z]{2,12}(-[A-Za-z0-9]{1,8}){0,3}")
_DATASET = re.compile(r"[A-Za-z0-9][\w.-]{0,95}(/[A-Za-z0-9][\w.-]{0,95})?", re.ASCII)


class SourceCard(Value):
    """What a model's card and the files beside it say; nothing where they say nothing that can be used."""

    licence: str | None = None
    """The Hub's identifier."""
    licence_name: str | None = None
    licence_link: str | None = None
    """An address, or a file of the model."""
    languages: tuple[str, ...] = ()
    datasets: tuple[str, ...] = ()
    pipeline_tag: str | None = None
    notices: tuple[tuple[str, str], ...] = ()
    """(file, SHA-256) of its licence and notices."""
    unread: tuple[str, ...] = ()
    """What is there and could not be used, in words."""


class Origin(Value):
    """A model that something is made of, and what it says of itself."""

    label: str
    repo: str | None
    commit: str | None
    card: SourceCard


def read_source_card(location: Location) -> SourceCard:
    """Read a model's card and digest its notices; of a model on the Hub these small files are fetched.

    Raises:
        CheckpointError: One of the files is a link out of the model, or cannot be read.
    """
    folder, names, unread = _find_files(location)
    notices = tuple(
        (name, hashlib.sha256(_read(folder / name, location)).hexdigest()) for name in names if name != CARD_NAME
    )
    said: dict[str, Any] = {}
    if CARD_NAME in names:
        try:
            said = parse_front_matter(_read(folder / CARD_NAME, location).decode("utf-8", "replace"))
        except ValueError as error:
            unread.append(f"{CARD_NAME}: {error}")
    card = describe_card(said)
    return card.model_copy(update={"notices": notices, "unread": (*unread, *card.unread)})


def parse_front_matter(text: str) -> dict[str, Any]:
    """The metadata at the beginning of a card, every scalar as the text that it is.

    Raises:
        ValueError: It is no YAML, or no mapping.
    """
    found = _FRONT_MATTER.match(text)
    if found is None:
        return {}
    if len(found[1]) > MOST_METADATA:
        raise ValueError(f"its metadata has {len(found[1]):,} characters")
    try:
        # No scalar is given a type: `no` is Norwegian, and a licence may look like a number.
        said = yaml.load(found[1], yaml.BaseLoader)  # noqa: S506 - makes nothing but texts, lists and mappings
    except (yaml.YAMLError, RecursionError) as error:
        raise ValueError("its metadata is no YAML") from error
    if isinstance(said, dict):
        return said
    raise ValueError("its metadata is no mapping")


def describe_card(said: dict[str, Any]) -> SourceCard:
    """What of a card's metadata can be used."""
    unread: list[str] = []

    def take(key: str, form: re.Pattern[str]) -> tuple[str, ...]:
        given = said.get(key, [])
        listed = given if isinstance(given, list) else [given]
        fits = [each for each in listed if isinstance(each, str) and form.fullmatch(each)][:MOST_LISTED]
        if len(fits) < len(listed) and given != "":
            unread.append(f"{CARD_NAME}: of '{key}', {len(listed) - len(fits)} of {len(listed)} could not be used")
        return tuple(dict.fromkeys(fits))

    def take_one(key: str, form: re.Pattern[str]) -> str | None:
        given = take(key, form)
        if len(given) > 1:
            unread.append(f"{CARD_NAME}: '{key}' says several things at once")
        return given[0] if len(given) == 1 else None

    return SourceCard(
        licence=take_one("license", _IDENTIFIER),
        licence_name=take_one("license_name", _NAME),
        licence_link=take_one("license_link", _LINK),
        languages=take("language", _LANGUAGE),
        datasets=take("datasets", _DATASET),
        pipeline_tag=take_one("pipeline_tag", _IDENTIFIER),
        unread=tuple(unread),
    )


def _find_files(location: Location) -> tuple[Path, list[str], list[str]]:
    """The folder with card and notices, their names, and what is there and is not read."""
    folder, sizes = _list_files(location)
    names = [name for name in sorted(sizes) if sizes[name] <= MOST_BYTES]
    unread = [f"{name}: it has {sizes[name]:,} bytes" for name in sorted(sizes) if sizes[name] > MOST_BYTES]
    if folder is not None:
        return folder, names, unread
    assert location.repo is not None and location.commit is not None
    if hub.is_offline():
        missing = [name for name in names if not hub.is_cached(location.repo, location.commit, name, sizes[name])]
        unread += [f"{name}: it is not in the local cache, and the Hub may not be asked" for name in missing]
        names = [name for name in names if name not in missing]
    return hub.fetch_metadata(location.repo, location.commit, names), names, unread


def _list_files(location: Location) -> tuple[Path | None, dict[str, int]]:
    """A local model's folder, and the sizes of its card and notices."""
    if location.folder is None:
        assert location.repo is not None and location.commit is not None
        listed = hub.list_files(location.repo, location.commit)
        return None, {name: size for name, size in listed.items() if _is_wanted(name)}
    paths = [location.folder / name for name in list_names(location.folder, location.label) if _is_wanted(name)]
    return location.folder, {path.name: path.stat().st_size for path in paths if path.is_file()}


def _is_wanted(name: str) -> bool:
    return name == CARD_NAME or _NOTICE.fullmatch(name) is not None


def _read(path: Path, location: Location) -> bytes:
    told = f"{location.label}/{path.name}"
    refuse_escape(path, told)
    try:
        return read_bytes(path, MOST_BYTES)
    except OSError as error:
        raise CheckpointError(f"{told} cannot be read: {error.strerror}.") from error
