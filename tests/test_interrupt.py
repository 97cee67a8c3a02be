"""Who is stopped by what."""

from __future__ import annotations

import threading
import time
from concurrent.futures import Future

import pytest

from xmerge.errors import Interrupted
from xmerge.interrupt import check_stop, open_pool, request_stop, stop_run, stoppable


def is_stopped() -> bool:
    """Whether work of this run is to end."""
    try:
        check_stop()
    except Interrupted:
        return True
    return False


def wait_for_stop() -> None:
    """Work that goes on until it is stopped, for seconds."""
    for _ in range(1000):
        check_stop()
        time.sleep(0.01)


def test_a_stop_ends_the_runs_that_are_under_way():
    """A signal ends a run, and those that are part of it."""
    with stoppable():
        assert not is_stopped()
        with stoppable():
            request_stop()
            assert is_stopped()
        assert is_stopped()


def test_a_stop_is_forgotten_by_the_next_run():
    """What begins after a signal goes on, unless it is part of what was stopped."""
    with stoppable():
        request_stop()
        with stoppable():
            assert is_stopped()
    with stoppable():
        assert not is_stopped()
    assert not is_stopped()


def test_an_error_stops_what_a_pool_does():
    """The first error is told; what was under way ends, what was waiting does not begin, and the run goes on."""
    begun = threading.Event()

    def go_on() -> None:
        begun.set()
        wait_for_stop()

    def fail() -> None:
        begun.wait()
        raise ValueError("first")

    submitted = list[Future[None]]()

    def work() -> None:
        with open_pool(2, "work") as pool:
            submitted.extend(map(pool.submit, (go_on, fail, wait_for_stop)))
            submitted[1].result()

    with stoppable():
        with pytest.raises(ValueError, match="first"):
            work()
        assert isinstance(submitted[0].exception(), Interrupted)
        assert submitted[2].cancelled() or isinstance(submitted[2].exception(), Interrupted)
        assert not is_stopped()


def test_an_error_stops_no_other_run():
    """Two runs of one process are apart: the one that fails leaves the other alone."""
    failed, seen = threading.Event(), list[bool]()

    def other() -> None:
        with stoppable(), open_pool(1, "work") as pool:
            failed.wait()
            seen.append(pool.submit(is_stopped).result())

    thread = threading.Thread(target=other)
    thread.start()
    with pytest.raises(ValueError, match="of one"), stoppable():
        raise ValueError("of one")
    failed.set()
    thread.join()
    assert seen == [False]


def test_a_run_is_stopped_by_its_name():
    """On a worker that does the work of several runs, one ends, also what of it begins later."""
    with stoppable("one of two"):
        stop_run("one of two")
        assert is_stopped()
    with stoppable("one of two"):
        assert is_stopped()
    with stoppable("another"):
        assert not is_stopped()
    with stoppable():
        assert not is_stopped()
