"""Processes that a test starts, kills, and never leaves behind."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SECONDS_TO_END = 10.0
SECONDS_TO_HAPPEN = 120.0


def spawn(
    command: Sequence[str | Path],
    log: Path,
    environment: Mapping[str, str] | None = None,
    *,
    user: str | None = None,
    end: str = "KILL",
) -> subprocess.Popen[bytes]:
    """Start a process that writes to `log`, and gets the signal `end` when this one ends in whatever way."""
    with log.open("ab") as output:
        return subprocess.Popen(
            [shutil.which("setpriv") or "setpriv", "--pdeathsig", end, *map(str, command)],
            cwd=ROOT,
            env=None if environment is None else dict(environment),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            user=user,
            extra_groups=None if user is None else [],
        )


def clean_environment() -> dict[str, str]:
    """The variables of this process without what would lead another one to a Prefect of this machine."""
    return {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}


def stop(process: subprocess.Popen[bytes], by: int = signal.SIGTERM) -> None:
    """End a process, and kill it if it takes too long."""
    with contextlib.suppress(ProcessLookupError):
        process.send_signal(by)
    try:
        process.wait(SECONDS_TO_END)
    except subprocess.TimeoutExpired:
        kill_all(process)


def kill_all(process: subprocess.Popen[bytes]) -> None:
    """SIGKILL for a process and everything that it has started, all at once."""
    # The parent is stopped first, so that it neither starts another nor reports that one is gone.
    for pid in (process.pid, *list_descendants(process.pid)):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGSTOP)
    for pid in (process.pid, *list_descendants(process.pid)):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    process.wait()


def list_descendants(pid: int) -> list[int]:
    """The processes that one has started, and those that these have."""
    found = list[int]()
    for children in Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(OSError):
            for child in map(int, children.read_text(encoding="ascii").split()):
                found += [child, *list_descendants(child)]
    return found


def find_port() -> int:
    """A port of this machine that nobody listens at."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def wait_until(holds: Callable[[], object], what: str, seconds: float = SECONDS_TO_HAPPEN) -> None:
    """Return as soon as something holds; a failure that says what was waited for."""
    for _ in ticks(seconds):
        if holds():
            return
    raise AssertionError(f"not after {seconds:.0f} s: {what}")


def ticks(seconds: float) -> Iterator[None]:
    """Ten times a second for so long."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        yield
        time.sleep(0.1)
