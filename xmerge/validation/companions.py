"""What goes along with the weights: tokenizer, generation_config.json and chat template, and whether they fit.

Templates are read as text: they are programs, and none is ever run.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from xmerge.architecture import ResolvedModel
from xmerge.checkpoints.checkpoint import read_json_object, read_text
from xmerge.checkpoints.untrusted import LARGE
from xmerge.errors import CheckpointError
from xmerge.validation.damage import tell_damage
from xmerge.validation.findings import Finding

TOKENIZER = "tokenizer.json"
TOKENIZER_CONFIG = "tokenizer_config.json"
GENERATION = "generation_config.json"
TEMPLATE, OLD_TEMPLATE = "chat_template.jinja", "chat_template.json"
ENDS = ("bos", "eos", "pad")
_MARKER = re.compile(r"<\|[^|<>\s'\"{}]{1,60}\|>")


def check_companions(folder: Path, model: ResolvedModel) -> Iterator[Finding]:
    """Whatever of them does not fit the model or another of them."""
    companions = Companions(folder)
    yield from companions.damage
    embedding = model.by_role.get((None, "token_embd"))
    rows = embedding[0][0].shape[0] if embedding else None
    yield from check_vocabulary(companions, rows)
    yield from _check_token_numbers(companions, model.config, rows)
    yield from _check_generation(companions, model.config)
    yield from _check_special_tokens(companions)
    yield from _check_templates(companions)


@dataclass(frozen=True)
class Companions:
    """The files beside the weights, each as it could be read."""

    folder: Path

    @cached_property
    def _read(self) -> tuple[dict[str, dict[str, Any]], tuple[Finding, ...]]:
        read: dict[str, dict[str, Any]] = {}
        damage = []
        for name in (TOKENIZER, TOKENIZER_CONFIG, GENERATION, TEMPLATE, OLD_TEMPLATE):
            path = self.folder / name
            if os.path.lexists(path):
                try:
                    is_text = name == TEMPLATE
                    read[name] = (
                        {"chat_template": read_text(path, name)} if is_text else read_json_object(path, name, LARGE)
                    )
                except CheckpointError as error:
                    damage.append(tell_damage(error))
        return read, tuple(damage)

    @property
    def damage(self) -> tuple[Finding, ...]:
        """What cannot be read."""
        return self._read[1]

    def get(self, name: str) -> Mapping[str, Any]:
        """What a file says; nothing where it is missing or damaged."""
        return self._read[0].get(name, {})

    @cached_property
    def tokens(self) -> Mapping[str, int] | None:
        """Every token of tokenizer.json with its number; None where there is none, or its model numbers by place."""
        model, added = self.get(TOKENIZER).get("model"), self.get(TOKENIZER).get("added_tokens")
        vocabulary = model.get("vocab") if isinstance(model, dict) else None
        if not isinstance(vocabulary, dict | list):
            return None
        pairs = (
            vocabulary.items()
            if isinstance(vocabulary, dict)
            # A unigram model lists [token, score], and the place is the number.
            else [(each[0] if isinstance(each, list) and each else None, at) for at, each in enumerate(vocabulary)]
        )
        listed = [each for each in added if isinstance(each, dict)] if isinstance(added, list) else []
        both = [*pairs, *((str(each.get("content")), each.get("id")) for each in listed)]
        return {token: number for token, number in both if isinstance(token, str) and type(number) is int}

    @property
    def templates(self) -> Mapping[str, str]:
        """Chat templates, by the file that holds one."""
        found = {name: self.get(name).get("chat_template") for name in (TEMPLATE, OLD_TEMPLATE, TOKENIZER_CONFIG)}
        return {name: text for name, text in found.items() if isinstance(text, str)}


def check_vocabulary(companions: Companions, rows: int | None) -> Iterator[Finding]:
    """Whether the embedding has a row for every token that the tokenizer can give."""
    highest = max((companions.tokens or {}).values(), default=-1)
    if rows is not None and highest >= rows:
        yield Finding(
            code="vocabulary",
            text=f"the tokenizer knows token {highest}, and the embedding has {rows} rows.",
            remedy="take the tokenizer of the model the embedding comes from.",
        )


def _check_token_numbers(companions: Companions, config: Mapping[str, Any], rows: int | None) -> Iterator[Finding]:
    """Whether what begins, ends and pads a text has a row; only where a tokenizer says that texts are meant."""
    if rows is None or companions.tokens is None:
        return
    for name, said in (("config.json", config), (GENERATION, companions.get(GENERATION))):
        for end in ENDS:
            beyond = [number for number in _list_numbers(said.get(f"{end}_token_id")) if number >= rows]
            if beyond:
                yield Finding(
                    code="token_number",
                    text=f"{name} says {end}_token_id {beyond[0]}, and the embedding has {rows} rows.",
                    remedy=f"write the number that the tokenizer gives its {end} token.",
                    severity="warning",
                )


def _check_generation(companions: Companions, config: Mapping[str, Any]) -> Iterator[Finding]:
    """Whether generation_config.json ends a text where config.json does."""
    for end in ENDS:
        ours = _list_numbers(config.get(f"{end}_token_id"))
        theirs = _list_numbers(companions.get(GENERATION).get(f"{end}_token_id"))
        if ours and theirs and not set(ours) & set(theirs):
            yield Finding(
                code="generation_config",
                text=f"config.json says {end}_token_id {ours[0]}, and {GENERATION} says {theirs[0]}.",
                remedy="take both files from one model.",
                severity="warning",
            )


def _check_special_tokens(companions: Companions) -> Iterator[Finding]:
    """Whether tokenizer.json knows the tokens that tokenizer_config.json names."""
    for end in ENDS:
        said = companions.get(TOKENIZER_CONFIG).get(f"{end}_token")
        token = said.get("content") if isinstance(said, dict) else said
        if companions.tokens is not None and isinstance(token, str) and token not in companions.tokens:
            yield Finding(
                code="special_token",
                text=f"{TOKENIZER_CONFIG} names {token[:80]!r} as {end}_token, and {TOKENIZER} does not know it.",
                remedy="take both files from one model.",
                severity="warning",
            )


def _check_templates(companions: Companions) -> Iterator[Finding]:
    """Whether there is one chat template, and the tokenizer knows the marks that it sets."""
    templates = companions.templates
    if len(set(templates.values())) > 1:
        yield Finding(
            code="chat_template",
            text=f"{' and '.join(templates)} hold different chat templates.",
            remedy=f"remove all but one; transformers reads {next(iter(templates))}.",
            severity="warning",
        )
    for name, text in templates.items():
        marks = dict.fromkeys(_MARKER.findall(text))
        unknown = [mark for mark in marks if companions.tokens is not None and mark not in companions.tokens]
        if unknown:
            yield Finding(
                code="chat_template",
                text=f"the chat template in {name} sets {unknown[0]!r}, which is no token of the tokenizer.",
                remedy="take template and tokenizer from one model.",
                severity="warning",
            )


def _list_numbers(said: Any) -> list[int]:
    """A token's number, or several, as far as they are numbers."""
    listed = said if isinstance(said, list) else [said]
    return [number for number in listed if type(number) is int]
