"""What becomes of a call on a cluster, whichever it is."""

from __future__ import annotations

import signal
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

import pytest

from tasks.workers import call_on
from xmerge.errors import Interrupted, WorkerLostError
from xmerge.interrupt import request_stop, stoppable
from xmerge.workers import Told, carry_out_until_interrupted


class CancelledElsewhere(Exception):
    """What a cluster calls the end of a call that another thread has stopped."""


class StoppedCluster:
    """One whose calls are all ended by a stop that comes while they are under way."""

    name = "the cluster"

    def submit(self, work: Callable[..., Any], *arguments: Any, gpu: bool = False) -> Future[Told[Any]]:
        """A call that has been ended."""
        request_stop()
        future = Future[Told[Any]]()
        future.set_exception(CancelledElsewhere())
        return future

    def ask_all(self, work: Callable[..., Any], *arguments: Any) -> dict[str, Told[Any]]:
        """Nobody is there to be asked."""
        return {}

    def count_slots(self, device: str) -> int:
        """Nobody is there."""
        return 0

    def count_calls(self) -> dict[str, int]:
        """Nobody is there."""
        return {}

    def explain(self, error: BaseException, what: str) -> WorkerLostError | None:
        """Nothing that it knows."""
        return None

    def stop(self) -> None:
        """It has stopped already."""


def test_a_call_that_another_ones_stop_has_ended_was_interrupted():
    """Whatever the cluster calls it, it is no bug."""
    with stoppable(), pytest.raises(Interrupted):
        call_on(StoppedCluster(), "layer 1", len, ())


def test_a_worker_of_a_script_in_the_background_can_be_interrupted():
    """A process that was started with SIGINT ignored hears it as soon as it carries out a call."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        assert carry_out_until_interrupted("", signal.getsignal, signal.SIGINT).value is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)
