"""Which process this is, in a way that another one can find out later whether it still lives."""

from __future__ import annotations

import os
import socket
from pathlib import Path

from xmerge.values import Value

PROC = Path("/proc")


class Process(Value):
    """A process of a machine; ids are given again, so its start belongs to it."""

    pid: int
    host: str
    started: str | None
    """Clock ticks since the machine's start; None where the system does not say."""
    machine: str | None
    """The machine since its last start, and which numbering of processes on it."""

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}"

    def is_dead(self) -> bool:
        """Whether it is known to have ended; of a process elsewhere nothing is known."""
        if self.machine is None or self.machine != _name_machine():
            return False
        return _find_start(self.pid) != self.started


def describe_self() -> Process:
    """This process."""
    pid = os.getpid()
    return Process(pid=pid, host=socket.gethostname(), started=_find_start(pid), machine=_name_machine())


def _name_machine() -> str | None:
    try:
        boot = (PROC / "sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot} {os.readlink(PROC / 'self/ns/pid')}"
    except OSError:
        return None


def _find_start(pid: int) -> str | None:
    """When a process started; None if it has ended, also if nobody has asked for its end yet."""
    try:
        told = (PROC / str(pid) / "stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    # The name, in parentheses, may hold anything.
    state, *fields = told.rpartition(")")[2].split()
    return None if state in ("Z", "X") else fields[18]
