"""What goes to a worker, a process of a cluster, and what comes back: plain values, and errors as values too.

A library that carries exceptions between processes drops what caused them, and each clothes them in its own way.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from xmerge.errors import XmergeError
from xmerge.interrupt import stoppable

Value = TypeVar("Value")


@dataclass(frozen=True)
class Told(Generic[Value]):
    """What has come of a call on a worker."""

    worker: str
    """Host and process."""
    value: Value | None = None
    error: XmergeError | None = None
    cause: OSError | None = None
    """What the error came from, which decides whether it is worth a second try."""

    def take(self) -> Value:
        """The value.

        Raises:
            XmergeError: There is none.
        """
        if self.error is not None:
            raise self.error from self.cause
        assert self.value is not None
        return self.value


def name_worker() -> str:
    """This process, as people call it."""
    return f"{socket.gethostname()} (process {os.getpid()})"


def leave_interrupts() -> None:
    """Leave Ctrl-C of a terminal, which goes to its workers too, to the process that has started this one."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def carry_out(run: str, work: Callable[..., Value], *arguments: Any) -> Told[Value]:
    """Call a function on a worker, as part of a run that can be stopped by its name."""
    with stoppable(run):
        try:
            return Told(name_worker(), work(*arguments))
        except XmergeError as error:
            cause = error.__cause__
            return Told(name_worker(), error=error, cause=cause if isinstance(cause, OSError) else None)


def carry_out_until_interrupted(run: str, work: Callable[..., Value], *arguments: Any) -> Told[Value]:
    """The same where a call is stopped as Ctrl-C would, which what a script starts in the background ignores."""
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, signal.default_int_handler)
    return carry_out(run, work, *arguments)


async def carry_out_aside(run: str, work: Callable[..., Value], *arguments: Any) -> Told[Value]:
    """The same in a thread, because a worker that does not listen is taken for dead."""
    return await asyncio.to_thread(carry_out, run, work, *arguments)
