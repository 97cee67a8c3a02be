"""The page `output`: where the output is, and how it was made."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING
from urllib.parse import quote

from prefect.artifacts import create_markdown_artifact

from tasks.markdown import draw_code, escape
from tasks.pages.rerun import tell_again
from tasks.pages.showing import name_key, try_to_show

if TYPE_CHECKING:
    from xmerge.output import Publication


def show_output(publication: Publication, series: str) -> None:
    """Show the folder, the commit on the Hub if there is one, and what to call to have it once more."""
    key, told = name_key("output", series), escape(publication.repo or publication.folder.name)
    try_to_show(
        "link to the output", lambda: create_markdown_artifact(draw_output(publication), key=key, description=told)
    )


def draw_output(publication: Publication) -> str:
    """The page as Markdown."""
    lines = ["The output is in this folder:", draw_code([str(publication.folder)])]
    if publication.url and publication.url.startswith("https://"):
        commit = f", commit {escape(publication.commit[:12])}" if publication.commit else ""
        lines.append(f"On the Hub: [{escape(str(publication.repo))}](<{_quote_url(publication.url)}>){commit}")
    folder = shlex.quote(str(publication.folder))
    lines += ["To check it again:", draw_code([f"xmerge verify {folder}"])]
    again = tell_again(publication.folder)
    lines += ["To make it again:", again] if again else []
    return "\n\n".join(lines)


def _quote_url(url: str) -> str:
    """An address that ends where it ends: without what would close the link around it."""
    return "".join(
        sign if sign.isprintable() and sign not in "<>\\ " else quote(sign, safe="", errors="replace") for sign in url
    )
