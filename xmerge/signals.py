"""Ctrl-C and SIGTERM: the layers in work stop at their next block, and the command ends soon after."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from xmerge.errors import Interrupted
from xmerge.interrupt import interruption, request_stop, stoppable

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StopSignals:
    """What to do when a signal comes, and whether one has come."""

    def __init__(self) -> None:
        self.came = False
        self.interrupts = True
        """Whether the main thread is interrupted where it is; else it looks at `came` by itself."""

    def hear(self, *_: object) -> None:
        """Stop the work; a second signal ends the process where it stands."""
        if self.came:
            os._exit(Interrupted.exit_code)
        self.came = True
        request_stop()
        if self.interrupts:
            # Not Interrupted, which is an Exception: libraries catch those while they are imported.
            raise KeyboardInterrupt


@contextmanager
def stop_on_signals() -> Iterator[StopSignals]:
    """Hear SIGINT and SIGTERM; outside the main thread, where Python delivers none, nothing changes.

    Raises:
        Interrupted: A signal came, in the place of what it has interrupted.
    """
    signals = StopSignals()
    if threading.current_thread() is not threading.main_thread():
        yield signals
        return
    before = {number: signal.signal(number, signals.hear) for number in SIGNALS}
    try:
        with stoppable():
            yield signals
    except KeyboardInterrupt:
        raise interruption() from None
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def leave_anyway(exit_code: int) -> None:
    """End the process when its main thread ends, although other threads go on.

    Python would wait for a download that cannot be stopped, and Prefect, for minutes, for a server that is gone.
    What the merge has written survives this as it survives a kill.
    """

    def leave() -> None:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        os._exit(exit_code)

    # The ones registered last run first: before Prefect's, and before those of thread pools. atexit is after all.
    threading._register_atexit(leave)  # type: ignore[attr-defined]  # noqa: SLF001
