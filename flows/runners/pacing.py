"""How many units of work run at a time."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import wait
from typing import Any, TypeVar

from prefect.futures import PrefectConcurrentFuture, PrefectFuture, as_completed

from xmerge.planning import MergePlan
from xmerge.planning.memory import fit_workers

UNITS_PER_GPU = 2
"""One computes while the other reads or writes."""

Unit = TypeVar("Unit")


def count_slots(plan: MergePlan, device: str, workers: int) -> int:
    """How many units may be in work at once on a device.

    Raises:
        PlanError: This machine has no such device, or too little memory for one unit.
    """
    from xmerge.engine.devices import choose_device

    kind = choose_device(device).type
    return fit_workers(plan, kind, workers if kind == "cpu" else min(workers, UNITS_PER_GPU))


def wait_for_all(futures: Iterable[PrefectFuture[Any]]) -> None:
    """Return when these tasks, in threads of this process, have ended in whatever way."""
    wait([future.wrapped_future for future in futures if isinstance(future, PrefectConcurrentFuture)])


def keep_busy(
    units: Iterable[Unit], submit: Callable[[Unit], PrefectFuture[Any]], slots: Callable[[], int]
) -> Iterator[tuple[Unit, PrefectFuture[Any]]]:
    """Submit units so that at most `slots()` are in work; yield each with its future when it has ended.

    A queue in front of the task runner rather than a limit inside the tasks: what has not begun is on no page,
    costs nothing when the run is stopped, and `slots()` may grow and shrink with a cluster, as a task runner cannot.
    """
    waiting, running = deque(units), dict[PrefectFuture[Any], Unit]()

    def fill() -> None:
        # One at least: without any, nobody would notice that a cluster has workers again.
        most = max(1, slots())
        while waiting and len(running) < most:
            unit = waiting.popleft()
            running[submit(unit)] = unit

    fill()
    while running:
        ended = next(as_completed(list(running)))
        unit = running.pop(ended)
        # Before the yield, so that no worker waits while the caller tells others about this one.
        fill()
        yield unit, ended
