"""Who is told what a run does: the command's progress display, or, where nobody looks, the run's log."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from types import NoneType
from typing import TYPE_CHECKING, Any
from uuid import UUID

from prefect.context import FlowRunContext
from prefect.exceptions import CancelledRun
from prefect.logging import get_run_logger

from xmerge.errors import Interrupted
from xmerge.interrupt import interruption
from xmerge.planning import MergePlan
from xmerge.progress import Reporter

if TYPE_CHECKING:
    from xmerge.engine import LayerResult


class LogReporter:
    """Tells a run's log what has no log line of its own."""

    def plan_ready(self, plan: MergePlan) -> None:
        """Repeat the plan's warnings, which are easily overlooked in a table."""
        for warning in plan.warnings:
            get_run_logger().warning("%s", warning)

    def layer_done(self, result: LayerResult, done: int, total: int) -> None:
        """Nothing: the layer's own task run has said so."""

    def note(self, text: str) -> None:
        """Pass a note on."""
        get_run_logger().info("%s", text)

    def stage(self, name: str) -> None:
        """Name the part of the run that begins."""
        get_run_logger().info("%s", name)


@dataclass
class RunWatch:
    """What the command knows of the run it started, also when the API no longer answers."""

    reporter: Reporter = field(default_factory=LogReporter)
    flow_run_id: str | None = None
    flow_run_name: str | None = None
    task_runs: int = 0
    outcome: dict[str, Any] | None = None
    """Set when the output is in place, before Prefect has been told."""
    failure: BaseException | None = None
    children: list[RunWatch] = field(default_factory=list)
    """Of the flows that this one has called."""
    series: str = ""
    """What its pages are versions of; empty: of the output that it makes."""

    def list_runs(self) -> list[tuple[str, int]]:
        """(flow run, how many task runs it has begun) of the flow and of those that it has called."""
        return [(watch.flow_run_id, watch.task_runs) for watch in self.walk() if watch.flow_run_id]

    def list_unfinished(self) -> list[str]:
        """Of the same flow runs, those of which nothing has come yet but a stop, after which they wait for tasks."""
        return [
            watch.flow_run_id
            for watch in self.walk()
            if watch.flow_run_id and watch.outcome is None and isinstance(watch.failure, (Interrupted, NoneType))
        ]

    def tell_failure(self, error: BaseException) -> None:
        """Say what the flow ends with; a stopped task's error is the stop, and a signal is for whoever hears it."""
        if isinstance(error, (Interrupted, CancelledRun)):
            self.failure = interruption()
        elif isinstance(error, Exception):
            self.failure = error

    def walk(self) -> Iterator[RunWatch]:
        """This one, and those of the flows that it has called."""
        yield self
        for child in self.children:
            yield from child.walk()


_watch: ContextVar[RunWatch | None] = ContextVar("xmerge_run_watch", default=None)


def watch_run(watch: RunWatch) -> None:
    """Let the flow that is called next in this context report to `watch`."""
    _watch.set(watch)


def current_watch() -> RunWatch:
    """Whoever watches the running flow."""
    return _watch.get() or RunWatch()


@contextmanager
def watch_child(parent: RunWatch, series: str = "") -> Iterator[RunWatch]:
    """Let a flow that the running one calls report to the same person, and keep what comes of it apart."""
    child = RunWatch(parent.reporter, series=series)
    parent.children.append(child)
    token = _watch.set(child)
    try:
        yield child
    finally:
        _watch.reset(token)


def find_run_id() -> UUID:
    """The running flow's id."""
    context = FlowRunContext.get()
    assert context is not None and context.flow_run is not None
    return context.flow_run.id
