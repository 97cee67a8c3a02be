"""Stopping a run on a signal: work in progress looks here between two blocks."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from xmerge.errors import Interrupted

_stop = threading.Event()
_stopped_runs = set[str]()
_run: ContextVar[str | None] = ContextVar("xmerge_run", default=None)


def request_stop() -> None:
    """Make every running layer stop at its next block."""
    _stop.set()


def clear_stop() -> None:
    """Forget an earlier request, before a new run."""
    _stop.clear()


@contextmanager
def part_of(run: str) -> Iterator[None]:
    """Let what is done here belong to a run, on a worker that may do the work of several."""
    token = _run.set(run)
    try:
        yield
    finally:
        _run.reset(token)


def stop_run(run: str) -> None:
    """Make the layers of one run stop at their next block, and those of it that are still to come."""
    _stopped_runs.add(run)


def check_stop() -> None:
    """Raise `Interrupted` if a stop has been requested."""
    if _stop.is_set() or _run.get() in _stopped_runs:
        raise Interrupted("the merge was interrupted.", remedy="run the same command again to resume.")
