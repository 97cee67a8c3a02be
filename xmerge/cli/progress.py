"""How far a merge has come: a bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import time
from typing import Any, Self

import click
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from xmerge.engine.results import LayerResult
from xmerge.planning import MergePlan
from xmerge.planning.table import show_bytes

STAGES = {
    "resolve_architecture": "reading configs and headers",
    "map_slices": "planning",
    "download_model": "fetching models",
    "merge_layer": "merging",
    "validate_merge": "validating",
    "publish_merge": "publishing",
}
SECONDS_BETWEEN_LINES = 1.0


class LineReporter:
    """Plain lines on standard error: for logs, pipes and CI."""

    def __init__(self) -> None:
        self._started = self._told = time.monotonic()
        self._bytes = self._total = self._reused = 0

    def __enter__(self) -> Self:
        """Nothing to set up."""
        return self

    def __exit__(self, *_: object) -> None:
        """Nothing to take down."""

    def stage(self, name: str) -> None:
        """A step begins."""
        self._started = time.monotonic()
        click.echo(STAGES.get(name, name), err=True)

    def plan_ready(self, plan: MergePlan) -> None:
        """What is going to be done, in a line."""
        self._total = plan.bytes_written
        click.echo(f"{plan.title}: {len(plan.layers)} shards, {show_bytes(self._total)}", err=True)
        for warning in plan.warnings:
            self.note(f"warning: {warning}")

    def layer_done(self, result: LayerResult, done: int, total: int) -> None:
        """At most a line a second, and one when all is done."""
        self._bytes += result.bytes
        self._reused += result.reused
        now = time.monotonic()
        if done < total and now - self._told < SECONDS_BETWEEN_LINES:
            return
        self._told = now
        speed = self._bytes / max(now - self._started, 1e-3)
        left = (self._total - self._bytes) / speed
        told = f"{left:.0f} s left" if done < total else f"{self._reused} of them from an earlier run"
        click.echo(f"  {done} of {total} shards, {show_bytes(speed)}/s, {told}", err=True)

    def note(self, text: str) -> None:
        """Something a person may want to know."""
        click.echo(text, err=True)


class BarReporter:
    """A bar of bytes on a terminal, with the layers done, bytes a second and time left."""

    def __init__(self) -> None:
        self._console = Console(stderr=True, highlight=False)
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.fields[layers]}"),
            TransferSpeedColumn(),
            TimeRemainingColumn(),
            console=self._console,
            transient=True,
        )
        self._task: Any = None
        self._total = 0

    def __enter__(self) -> Self:
        """Show the bar."""
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Take the bar away."""
        self._progress.stop()

    def stage(self, name: str) -> None:
        """A step begins."""
        if self._task is not None:
            self._progress.remove_task(self._task)
        told = STAGES.get(name, name)
        total = self._total if name == "merge_layer" else None
        self._task = self._progress.add_task(told, total=total, layers="")

    def plan_ready(self, plan: MergePlan) -> None:
        """What is going to be done, in a line."""
        self._total = plan.bytes_written
        self._progress.print(f"{plan.title}: {len(plan.layers)} shards, {show_bytes(self._total)}", markup=False)
        for warning in plan.warnings:
            self.note(f"warning: {warning}")

    def layer_done(self, result: LayerResult, done: int, total: int) -> None:
        """Move the bar."""
        if self._task is not None:
            self._progress.update(self._task, advance=result.bytes, layers=f"{done} of {total} shards")

    def note(self, text: str) -> None:
        """Something a person may want to know."""
        self._progress.print(text, markup=False)


class QuietReporter(LineReporter):
    """Only what a person should not miss."""

    def stage(self, name: str) -> None:
        """Nothing."""

    def plan_ready(self, plan: MergePlan) -> None:
        """Only warnings."""
        for warning in plan.warnings:
            self.note(f"warning: {warning}")

    def layer_done(self, result: LayerResult, done: int, total: int) -> None:
        """Nothing."""


def choose_reporter(*, quiet: bool) -> LineReporter | BarReporter:
    """A bar on a terminal, lines elsewhere, or only warnings."""
    if quiet:
        return QuietReporter()
    return BarReporter() if Console(stderr=True).is_terminal else LineReporter()
