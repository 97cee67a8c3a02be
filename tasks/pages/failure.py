"""The page `failure`: why a run has failed, and how to go on."""

from __future__ import annotations

from prefect.artifacts import create_markdown_artifact

from tasks.markdown import escape
from tasks.pages.rerun import tell_resume
from tasks.pages.showing import name_key, try_to_show
from xmerge.errors import XmergeError


def show_failure(error: Exception, series: str) -> None:
    """Show what went wrong, and what to do about it."""
    key, told = name_key("failure", series), escape(str(error).partition("\n")[0])
    try_to_show("failure", lambda: create_markdown_artifact(draw_failure(error), key=key, description=told))


def draw_failure(error: Exception) -> str:
    """The page as Markdown."""
    told = [f"**{escape(type(error).__name__)}**", *_tell_error(error)]
    return "\n\n".join([*told, f"Layers that are finished are kept. When that is mended, {tell_resume()}"])


def _tell_error(error: Exception) -> list[str]:
    if not isinstance(error, XmergeError):
        return [escape(str(error)), "This is a bug in xmerge; the run's log has where it happened."]
    parts = (("", error.what), ("Where: ", error.where), ("Why: ", error.why), ("What to do: ", error.remedy))
    return [f"{name}{_escape_lines(text)}" for name, text in parts if text]


def _escape_lines(text: str) -> str:
    """A text of several lines, each escaped, and each on its own line."""
    lines = [escape(line.strip()) for line in text.splitlines()]
    return "<br>".join(line for line in lines if line)
