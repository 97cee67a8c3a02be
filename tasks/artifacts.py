"""What a run shows on Prefect's pages. Showing never decides about the merge: a page that cannot be made is missed."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar
from uuid import UUID

import httpx
from prefect.artifacts import (
    create_markdown_artifact,
    create_progress_artifact,
    create_table_artifact,
    update_progress_artifact,
)
from prefect.exceptions import PrefectException
from prefect.logging import get_run_logger
from prefect.settings import PREFECT_CLIENT_MAX_RETRIES, temporary_settings

from tasks.markdown import draw_table, escape, show_plain
from xmerge.many import BatchOutcome, tell_disk
from xmerge.planning import PLAN_COLUMNS, MergePlan, draw_plan, summarize_plan
from xmerge.planning.table import show_bytes
from xmerge.validation import ValidationReport

if TYPE_CHECKING:
    from xmerge.output import Publication

PLAN, PROGRESS, VALIDATION, OUTPUT = "xmerge-plan", "xmerge-progress", "xmerge-validation", "xmerge-output"
SUMMARY = "xmerge-summary"
SECONDS_WITHOUT_PAGES = 60.0

Shown = TypeVar("Shown")


def show_plan(plan: MergePlan) -> None:
    """Show what is going to happen, before any weight is read."""
    rows = [dict(zip(PLAN_COLUMNS, map(show_plain, row), strict=True)) for row in draw_plan(plan)]
    facts = [f"{escape(name)}: {escape(value)}" for name, value in summarize_plan(plan)]
    warnings = [f"Warning: {escape(warning)}" for warning in plan.warnings]
    text = "\n".join([f"**{escape(plan.title)}**", "", *(f"- {line}" for line in [*warnings, *facts])])
    try_to_show("plan", lambda: create_table_artifact(rows, key=PLAN, description=text))


def show_validation(report: ValidationReport) -> None:
    """Show what was checked, and each finding with what to do about it."""
    verdict = f"The output is **{'valid' if report.ok else 'not valid'}**."
    facts = [f"- {escape(name)}: {escape(value)}" for name, value in report.facts]
    findings = draw_table(
        ("", "finding", "what", "what to do"),
        [(found.severity, found.code, found.text, found.remedy) for found in report.findings],
    )
    text = "\n".join([verdict, "", *facts, "", findings if report.findings else "No findings."])
    try_to_show("validation report", lambda: create_markdown_artifact(text, key=VALIDATION))


def show_output(publication: Publication) -> None:
    """Show where the output is."""
    lines = [f"Folder: {escape(str(publication.folder))}"]
    if publication.url and publication.url.startswith("https://"):
        lines.append(f"Repository: [{escape(str(publication.repo))}](<{publication.url}>)")
    text = "\n\n".join(lines)
    try_to_show("link to the output", lambda: create_markdown_artifact(text, key=OUTPUT))


def show_summary(batch: BatchOutcome) -> None:
    """Show what has come of each recipe of a batch, and the disk that all of it takes."""
    rows = [
        {
            "recipe": show_plain(each.recipe),
            "outcome": each.outcome,
            "layers made": str(each.made),
            "reused": str(each.reused),
            "size": show_bytes(each.bytes),
            "error": show_plain(each.error or ""),
        }
        for each in batch.recipes
    ]
    lines = [f"- {escape(name)}: {escape(value)}" for name, value in tell_disk(batch)]
    lines += [f"- {escape(each.recipe)}: {escape(each.error or '')}" for each in batch.failed]
    try_to_show("summary", lambda: create_table_artifact(rows, key=SUMMARY, description="\n".join(lines)))


class ProgressArtifact:
    """How far a run is, drawn on its page."""

    def __init__(self, pause: float) -> None:
        self._pause = pause
        self._id: UUID | None = None
        self._shown_at = -math.inf

    def show(self, done: int, total: int, reused: int) -> None:
        """Show that so many layers are done, and how many of them an earlier run had made."""
        if done < total and time.monotonic() < self._shown_at + self._pause:
            return
        text = f"{done} of {total} layers done, {reused} of them reused"
        self._id = try_to_show("progress", lambda: _put_progress(self._id, 100.0 * done / total, text)) or self._id
        self._shown_at = time.monotonic()


def _put_progress(artifact: UUID | None, percent: float, text: str) -> UUID:
    if artifact is None:
        made = create_progress_artifact(percent, key=PROGRESS, description=text)
    else:
        made = update_progress_artifact(artifact, percent, description=text)
    # Awaitable only where an event loop runs, and a task's thread has none.
    assert isinstance(made, UUID)
    return made


class _Api:
    """Whether it is worth asking: a server that is gone costs seconds each time, and a merge has many pages."""

    away_until = -math.inf


def try_to_show(what: str, show: Callable[[], Shown]) -> Shown | None:
    """Go on without a page that the API does not take: one retry instead of Prefect's five, which take a minute."""
    if time.monotonic() < _Api.away_until:
        return None
    try:
        with temporary_settings(updates={PREFECT_CLIENT_MAX_RETRIES: 1}):
            return show()
    except (httpx.HTTPError, PrefectException) as error:
        _Api.away_until = time.monotonic() + SECONDS_WITHOUT_PAGES
        get_run_logger().warning("the %s could not be shown in Prefect: %s", what, error)
        return None
