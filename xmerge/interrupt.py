"""Stopping a run: work in progress looks here between two blocks.

A run is what is done inside `stoppable`: in its thread, in those of `open_pool`, and in all that get a copy of its
context, as Prefect's tasks do. One run may be part of another.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor  # noqa: TID251 - made to hear, below
from contextlib import contextmanager
from contextvars import ContextVar, copy_context
from dataclasses import dataclass
from typing import Any

from xmerge.errors import Interrupted


@dataclass(eq=False)
class _Run:
    within: _Run | None
    name: str
    stops_before: int
    stopped: bool = False

    def is_to_end(self) -> bool:
        """Whether it, or what it is part of, has been told to stop."""
        if self.stopped or self.stops_before < _stops or self.name in _stopped_names:
            return True
        return self.within is not None and self.within.is_to_end()


_stops = 0
"""How many times all runs of this process were told to stop. A number: nothing has to forget it before the next run."""
_stopped_names = set[str]()
_run: ContextVar[_Run | None] = ContextVar("xmerge_run", default=None)


@contextmanager
def stoppable(name: str = "") -> Iterator[None]:
    """Let what is done here be a run; an error that leaves it stops what other threads still do for it.

    Args:
        name: By which `stop_run` finds it, on a worker that does the work of several.
    """
    run = _Run(_run.get(), name, _stops)
    token = _run.set(run)
    try:
        yield
    except BaseException:
        run.stopped = True
        raise
    finally:
        _run.reset(token)


class _RunPool(ThreadPoolExecutor):
    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        return super().submit(copy_context().run, fn, *args, **kwargs)


@contextmanager
def open_pool(threads: int, name: str) -> Iterator[ThreadPoolExecutor]:
    """Threads that work for this run; after an error they are waited for no longer than to their next blocks."""
    with _RunPool(threads, thread_name_prefix=name) as pool, stoppable():
        try:
            yield pool
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def request_stop() -> None:
    """Make every run of this process stop at its next block; those that begin later go on."""
    global _stops  # noqa: PLW0603 - a signal is for the whole process
    _stops += 1


def stop_run(name: str) -> None:
    """Make one run stop at its next block, and what of it is still to come."""
    _stopped_names.add(name)


def check_stop() -> None:
    """Raise `Interrupted` if this run has been told to stop."""
    run = _run.get()
    if run is not None and run.is_to_end():
        raise interruption()


def interruption() -> Interrupted:
    """What an interrupted run says."""
    return Interrupted("the merge was interrupted.", remedy="run the same command again to resume.")
