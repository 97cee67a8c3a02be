"""What a run shows on Prefect's pages. Showing never decides about the merge: a page that cannot be made is missed."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING
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

from tasks.markdown import draw_table, escape, show_plain
from xmerge.planning import PLAN_COLUMNS, MergePlan, draw_plan, summarize_plan
from xmerge.validation import ValidationReport

if TYPE_CHECKING:
    from xmerge.output import Publication

PLAN, PROGRESS, VALIDATION, OUTPUT = "xmerge-plan", "xmerge-progress", "xmerge-validation", "xmerge-output"


def show_plan(plan: MergePlan) -> None:
    """Show what is going to happen, before any weight is read."""
    rows = [dict(zip(PLAN_COLUMNS, map(show_plain, row), strict=True)) for row in draw_plan(plan)]
    facts = [f"{escape(name)}: {escape(value)}" for name, value in summarize_plan(plan)]
    warnings = [f"Warning: {escape(warning)}" for warning in plan.warnings]
    lines = [f"**{escape(plan.title)}**", "", *(f"- {line}" for line in [*warnings, *facts])]
    with missing_is_no_failure("plan"):
        create_table_artifact(rows, key=PLAN, description="\n".join(lines))


def show_validation(report: ValidationReport) -> None:
    """Show what was checked, and each finding with what to do about it."""
    facts = [f"- {escape(name)}: {escape(value)}" for name, value in report.facts]
    findings = draw_table(
        ("", "finding", "what", "what to do"),
        [(found.severity, found.code, found.text, found.remedy) for found in report.findings],
    )
    verdict = f"The output is **{'valid' if report.ok else 'not valid'}**."
    with missing_is_no_failure("validation report"):
        create_markdown_artifact(
            "\n".join([verdict, "", *facts, "", findings if report.findings else "No findings."]),
            key=VALIDATION,
            description="validation of the output",
        )


def show_output(publication: Publication) -> None:
    """Show where the output is."""
    lines = [f"Folder: {escape(str(publication.folder))}"]
    if publication.url and publication.url.startswith("https://"):
        lines.append(f"Repository: [{escape(str(publication.repo))}](<{publication.url}>)")
    with missing_is_no_failure("link to the output"):
        create_markdown_artifact("\n\n".join(lines), key=OUTPUT, description="the merged model")


class ProgressArtifact:
    """How far a run is, drawn on its page; given up at the first failure, since each one costs a minute of retries."""

    def __init__(self, pause: float) -> None:
        self._pause = pause
        self._id: UUID | None = None
        self._shown_at = -math.inf

    def show(self, done: int, total: int, reused: int) -> None:
        """Show that so many layers are done, and how many of them an earlier run had made."""
        if done < total and time.monotonic() < self._shown_at + self._pause:
            return
        text = f"{done} of {total} layers done, {reused} of them reused"
        self._shown_at = math.inf
        with missing_is_no_failure("progress"):
            self._id = _put_progress(self._id, 100.0 * done / total, text)
            self._shown_at = time.monotonic()


def _put_progress(artifact: UUID | None, percent: float, text: str) -> UUID:
    if artifact is None:
        made = create_progress_artifact(percent, key=PROGRESS, description=text)
    else:
        made = update_progress_artifact(artifact, percent, description=text)
    # Awaitable only where an event loop runs, and a task's thread has none.
    assert isinstance(made, UUID)
    return made


@contextmanager
def missing_is_no_failure(what: str) -> Iterator[None]:
    """Go on without a page that the API could not take."""
    try:
        yield
    except (httpx.HTTPError, PrefectException) as error:
        get_run_logger().warning("the %s could not be shown in Prefect: %s", what, error)
