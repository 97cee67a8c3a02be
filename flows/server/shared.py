"""The Prefect server of this machine: started by the first command that needs it, shared, and gone after the last.

Two servers on one SQLite file lock each other out, so a database has one. Two locks of the kernel, which end with their
process however that ends, say who is there: every user shares the one on `users`, the server holds that on `server`.
"""

from __future__ import annotations

import atexit
import fcntl
import hashlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import httpx

from xmerge.errors import PlanError, StorageError

PROGRAM = Path(__file__).with_name("process.py")
USERS, SERVER, LOG, PAGES = "users", "server", "log", "pages"
STOP_PATIENCE = 3.0
SECONDS_TO_BE_NAMED = 5.0


@dataclass(frozen=True)
class Address:
    """Where a server of this machine is."""

    port: int
    pid: int

    @property
    def ui(self) -> str:
        """The pages for people."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def api(self) -> str:
        """The API for programs."""
        return f"{self.ui}/api"


class EmbeddedServer:
    """One command's use of the machine's server, which is started at once and awaited when it is needed.

    Args:
        port: Where a new server should listen; elsewhere if something else does, or if it is 0.

    Raises:
        StorageError: Prefect's home cannot be written, or knows no locks.
    """

    def __init__(self, port: int = 0) -> None:
        try:
            self._folder = _make_folder()
            self._use = os.open(self._folder / USERS, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            # A server that is about to end has this lock until it is gone.
            fcntl.flock(self._use, fcntl.LOCK_SH)
            self.address, self.is_new = _find_or_start(self._folder, port)
        except OSError as error:
            raise StorageError(
                f"Prefect's home cannot be used: {error.strerror}.",
                where=str(error.filename) if error.filename else None,
                remedy="set PREFECT_HOME to a folder on a local disk, or merge without Prefect with --direct.",
            ) from error
        atexit.register(self.stop)

    @property
    def api_url(self) -> str:
        """The address of its API."""
        return self.address.api

    def wait(self) -> None:
        """Return when the server answers.

        Raises:
            PlanError: It ended, or did not answer in time.
        """
        from prefect.settings import PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS

        deadline = time.monotonic() + PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS.value()
        with httpx.Client(timeout=1.0, trust_env=False) as client:
            while not _is_healthy(client, self.api_url):
                if not _is_held(self._folder / SERVER) or time.monotonic() > deadline:
                    raise self._explain()
                time.sleep(0.05)

    def stop(self) -> None:
        """Use it no longer, and end it if nobody else does; may be called more than once."""
        atexit.unregister(self.stop)
        if self._use < 0:
            return
        with suppress(BlockingIOError):
            fcntl.flock(self._use, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._end()
        os.close(self._use)
        self._use = -1

    def _end(self) -> None:
        for number in (signal.SIGTERM, signal.SIGKILL):
            deadline = time.monotonic() + STOP_PATIENCE
            # Not the one that was there at first: that may have died, and another command have started this one.
            if _is_held(self._folder / SERVER) and (address := _read_address(self._folder)):
                with suppress(ProcessLookupError):
                    os.kill(address.pid, number)
            while _is_held(self._folder / SERVER) and time.monotonic() < deadline:
                time.sleep(0.02)

    def _explain(self) -> PlanError:
        ended = not _is_held(self._folder / SERVER)
        said = (self._folder / LOG).read_text(encoding="utf-8", errors="replace")
        # A traceback ends in the reason; what follows it says only that the server has ended.
        reasons = re.findall(r"^[\w.]+(?:Error|Exception): .+", said, re.MULTILINE) or said.strip().splitlines()
        return PlanError(
            "the embedded Prefect server has ended." if ended else "the embedded Prefect server is late.",
            where=str(self._folder / LOG),
            why=reasons[-1] if reasons else None,
            remedy="merge without Prefect with --direct, or start a server with 'prefect server start' "
            "and set PREFECT_API_URL to its address.",
        )


def _make_folder() -> Path:
    """Where what is known of the server is kept: one folder for each database and machine that uses this home."""
    from prefect.settings import PREFECT_API_DATABASE_CONNECTION_URL, PREFECT_HOME

    known_by = f"{socket.gethostname()} {PREFECT_API_DATABASE_CONNECTION_URL.value()}"
    folder = Path(PREFECT_HOME.value()) / f"xmerge-{hashlib.sha256(known_by.encode()).hexdigest()[:8]}"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    return folder


def _find_or_start(folder: Path, port: int) -> tuple[Address, bool]:
    """The address of the server that runs, or of a new one; and whether it is new."""
    deadline = time.monotonic() + SECONDS_TO_BE_NAMED
    while time.monotonic() < deadline:
        lock = os.open(folder / SERVER, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return _start(folder, lock, port), True
        except BlockingIOError:
            # Another command may be starting it in this very moment.
            if address := _read_address(folder):
                return address, False
            time.sleep(0.02)
        finally:
            os.close(lock)
    raise TimeoutError(0, "another command has begun to start a server and does not go on", str(folder / SERVER))


def _start(folder: Path, lock: int, port: int) -> Address:
    """Start a server that inherits its lock and a bound socket, so that no other process can take either."""
    os.ftruncate(lock, 0)
    with _listen(port) as listener, (folder / LOG).open("wb") as log:
        number = listener.getsockname()[1]
        started = subprocess.run(
            # -P keeps the folder of the program, and so its neighbours, off the server's import path.
            [sys.executable, "-P", str(PROGRAM), str(listener.fileno()), str(folder / USERS)],
            env=_choose_environment(folder, number),
            pass_fds=[listener.fileno(), lock],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=log,
            start_new_session=True,
            check=True,
        )
    address = Address(number, int(started.stdout))
    os.pwrite(lock, json.dumps(vars(address)).encode(), 0)
    return address


def _listen(port: int) -> socket.socket:
    try:
        return socket.create_server(("127.0.0.1", port))
    except OSError:
        return socket.create_server(("127.0.0.1", 0))


def _choose_environment(folder: Path, port: int) -> dict[str, str]:
    from prefect.settings import get_current_settings

    given = {**os.environ, **get_current_settings().to_environment_variables(exclude_unset=True)}
    # The pages ask the API at its default port unless told, and are else unpacked beside Prefect's code.
    ours = {"PREFECT_UI_API_URL": f"http://127.0.0.1:{port}/api", "PREFECT_UI_STATIC_DIRECTORY": str(folder / PAGES)}
    return {**ours, **given}


def _read_address(folder: Path) -> Address | None:
    """What the running server is known by; None while it is not written, or if it is its predecessor's."""
    try:
        address = Address(**json.loads((folder / SERVER).read_bytes()))
        os.kill(address.pid, 0)
    except (ValueError, ProcessLookupError):
        return None
    return address


def _is_held(path: Path) -> bool:
    """Whether a process holds the lock on a file."""
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def _is_healthy(client: httpx.Client, api_url: str) -> bool:
    try:
        return client.get(f"{api_url}/health").is_success
    except httpx.TransportError:
        return False
