"""How a task's work gets to the workers of a cluster, and what has become of it comes back.

The task run itself stays in the flow's process, which alone reports to Prefect and writes records.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError, Future, wait
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Protocol, TypeVar

from xmerge.errors import WorkerLostError
from xmerge.interrupt import check_stop
from xmerge.workers import Told

SECONDS_BETWEEN_LOOKS = 0.2
SECONDS_BETWEEN_COUNTS = 5.0
SECONDS_WITHOUT_WORKERS = 60.0
RESUME = "run the same command again when the cluster is back: finished layers are kept."

Value = TypeVar("Value")


class Cluster(Protocol):
    """Processes, here or on other machines, that see the same storage."""

    name: str
    """As people call it."""

    def submit(self, work: Callable[..., Value], *arguments: Any, gpu: bool = False) -> Future[Told[Value]]:
        """Have a worker call a function; another one does, if that worker dies."""

    def ask_all(self, work: Callable[..., Value], *arguments: Any) -> dict[str, Told[Value]]:
        """Call a function on every worker, or on every machine; what each has told, by its address.

        Raises:
            PlanError: There is none, or one does not answer.
        """

    def count_slots(self, device: str) -> int:
        """How many calls can be under way at once; 0 if no worker is there."""

    def count_calls(self) -> dict[str, int]:
        """How many calls that need no GPU can be under way at once at each address of `ask_all`."""

    def explain(self, error: BaseException, what: str) -> WorkerLostError | None:
        """What an error of the cluster's own means; None: it is not the cluster's."""

    def stop(self) -> None:
        """End what this run has under way on the workers, at their next blocks."""


_cluster: ContextVar[Cluster | None] = ContextVar("xmerge_cluster", default=None)


@contextmanager
def work_on(cluster: Cluster | None) -> Iterator[None]:
    """Let the tasks that are submitted here do their work on a cluster; None: in this process."""
    token = _cluster.set(cluster)
    try:
        yield
    finally:
        _cluster.reset(token)


def current_cluster() -> Cluster | None:
    """Where the work of this task is done; None: here."""
    return _cluster.get()


def call_on(cluster: Cluster, what: str, work: Callable[..., Value], *arguments: Any, gpu: bool = False) -> Told[Value]:
    """Have a worker call a function, and wait for it; errors say what it was about.

    Raises:
        Interrupted: A stop was requested meanwhile; the worker ends it at its next block.
        WorkerLostError: Workers die of it, or none is left.
    """
    check_stop()
    future = cluster.submit(work, *arguments, gpu=gpu)
    try:
        _wait_for(future, cluster)
    except BaseException:
        # In this order: a cluster stops what it still has the future of.
        cluster.stop()
        future.cancel()
        raise
    try:
        return future.result()
    except CancelledError:
        check_stop()
        raise WorkerLostError(f"{cluster.name} has dropped {what}.", remedy=RESUME) from None
    except Exception as error:
        # Another call's stop may have ended this one, in the cluster's own words.
        check_stop()
        lost = cluster.explain(error, what)
        if lost is None:
            raise
        raise lost from error


def _wait_for(future: Future[Any], cluster: Cluster) -> None:
    counted_at = seen_at = time.monotonic()
    while not wait([future], SECONDS_BETWEEN_LOOKS).done:
        check_stop()
        now = time.monotonic()
        if now > counted_at + SECONDS_BETWEEN_COUNTS:
            counted_at = now
            seen_at = now if cluster.count_slots("cpu") else seen_at
        if now > seen_at + SECONDS_WITHOUT_WORKERS:
            raise WorkerLostError(f"{cluster.name} has no workers any more.", remedy=RESUME)
