"""Text from checkpoints and configurations, made safe to stand in an artifact's Markdown."""

from __future__ import annotations

import html
import re
from collections.abc import Iterable, Sequence

MAX_CELL = 200


def escape(text: str) -> str:
    """The same text with nothing in it that Markdown or HTML would act on, on one line."""
    shown = show_plain(text)
    return re.sub(r"([\\`*_{}\[\]()#+!|~:-])", r"\\\1", html.escape(shown, quote=False))


def show_plain(text: str) -> str:
    """The same text on one line, without characters that cannot be seen, cut where nobody would read on."""
    line = "".join(character if character.isprintable() else " " for character in text)
    return line if len(line) <= MAX_CELL else f"{line[: MAX_CELL - 1]}…"


def draw_table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table of plain texts, each escaped."""
    lines = [_draw_row(columns), _draw_row(["---"] * len(columns), escaped=True)]
    return "\n".join([*lines, *(_draw_row(row) for row in rows)])


def _draw_row(cells: Sequence[str], *, escaped: bool = False) -> str:
    return f"| {' | '.join(cell if escaped else escape(cell) for cell in cells)} |"
