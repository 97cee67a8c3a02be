"""The page `summary`: what has come of each recipe of a batch."""

from __future__ import annotations

from prefect.artifacts import create_table_artifact

from tasks.markdown import escape, show_cell
from tasks.pages.showing import name_key, try_to_show
from xmerge.many import BatchOutcome, tell_disk
from xmerge.planning.table import show_bytes


def show_summary(batch: BatchOutcome, series: str) -> None:
    """Show what has come of each recipe, and the disk that all of it takes."""
    rows = [
        {
            "recipe": show_cell(each.recipe),
            "outcome": each.outcome,
            "layers made": str(each.made),
            "reused": str(each.reused),
            "size": show_bytes(each.bytes),
            "error": show_cell(each.error or ""),
        }
        for each in batch.recipes
    ]
    lines = [f"- {escape(name)}: {escape(value)}" for name, value in tell_disk(batch)]
    lines += [f"- {escape(each.recipe)}: {escape(each.error or '')}" for each in batch.failed]
    key = name_key("summary", series)
    try_to_show("summary", lambda: create_table_artifact(rows, key=key, description="\n".join(lines)))
