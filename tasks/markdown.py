"""Text from checkpoints and configurations, made safe to stand in an artifact's Markdown."""

from __future__ import annotations

import html
import re
from collections.abc import Iterable, Sequence

MAX_CELL = 200
MAX_PROSE = 2000
"""Of what is there to be read in full: a warning, an error, a remedy."""


def escape(text: str, most: int = MAX_PROSE) -> str:
    """The same text with nothing in it that Markdown or HTML would act on, on one line."""
    shown = show_plain(text, most)
    return re.sub(r"([\\`*_{}\[\]()#+!|~:.@-])", r"\\\1", html.escape(shown, quote=False))


def show_plain(text: str, most: int = MAX_CELL) -> str:
    """The same text on one line, without characters that cannot be seen, cut where nobody would read on."""
    line = "".join(character if character.isprintable() else " " for character in text)
    return line if len(line) <= most else f"{line[: most - 1]}…"


def show_cell(text: str) -> str:
    """Text for a cell of Prefect's tables, which one of its user interfaces shows as it is and the other as Markdown.

    Nothing can be escaped there, so signs that would make a tag or a link, and at the beginning a title or a list,
    give way to others that look alike.
    """
    shown = show_plain(text).strip().translate(_LOOK_ALIKES)
    return _LEADING.sub(lambda found: found[0].translate(_LEADING_LOOK_ALIKES), shown)


_LOOK_ALIKES = str.maketrans("<>[]`", "\u2039\u203a\uff3b\uff3d\u02cb")
"""Angle quotation marks, wide brackets, a grave accent by itself."""
_LEADING = re.compile(r"^(?:#+|(?:[-+*_]|\d+[.)])(?=\s|$)|[-*_~]{3})")
"""What makes a title, a list, a rule or a block of code of the text behind it; a number with a fraction does not."""
_LEADING_LOOK_ALIKES = str.maketrans("#-+*_~.)", "\uff03\u2013\uff0b\uff0a\uff3f\uff5e\u2024\uff09")
"""Wide signs, a short dash, and the dot of a leader."""


def draw_code(lines: Iterable[str]) -> str:
    """A block of code that none of its lines can end."""
    shown = [show_plain(line, MAX_PROSE) for line in lines]
    longest = max((len(run) for line in shown for run in re.findall("`+", line)), default=0)
    fence = "`" * max(3, longest + 1)
    return "\n".join([f"{fence}text", *shown, fence])


def draw_table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table of plain texts, each escaped."""
    lines = [_draw_row(columns), _draw_row(["---"] * len(columns), escaped=True)]
    return "\n".join([*lines, *(_draw_row(row) for row in rows)])


def _draw_row(cells: Sequence[str], *, escaped: bool = False) -> str:
    return f"| {' | '.join(cell if escaped else escape(cell) for cell in cells)} |"
