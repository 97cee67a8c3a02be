"""An embedded Prefect server: a child process on a free port of this machine, gone when this process is."""

from __future__ import annotations

import atexit
import os
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import httpx

from xmerge.errors import PlanError

PROGRAM = Path(__file__).with_name("server_process.py")
STOP_PATIENCE = 3.0


class EmbeddedServer:
    """Prefect's API for one process, started at once and awaited when it is needed."""

    def __init__(self) -> None:
        self._output = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the process that writes to it
        # The socket is bound here and inherited, so that no other process can take the port in between.
        with socket.create_server(("127.0.0.1", 0)) as listener:
            self.api_url = f"http://127.0.0.1:{listener.getsockname()[1]}/api"
            self._process = _spawn(listener.fileno(), self._output.fileno())
        atexit.register(self.stop)

    def wait(self) -> None:
        """Return when the server answers.

        Raises:
            PlanError: It ended, or did not answer in time.
        """
        from prefect.settings import PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS

        deadline = time.monotonic() + PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS.value()
        with httpx.Client(timeout=1.0, trust_env=False) as client:
            while not _is_healthy(client, self.api_url):
                if self._process.poll() is not None or time.monotonic() > deadline:
                    raise self._explain()
                time.sleep(0.05)

    def stop(self) -> None:
        """End the server; it may be called more than once."""
        atexit.unregister(self.stop)
        self._process.terminate()
        try:
            self._process.wait(STOP_PATIENCE)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        if self._process.stdin:
            self._process.stdin.close()
        self._output.close()

    def _explain(self) -> PlanError:
        ended = self._process.poll() is not None
        self._output.seek(0)
        last_words = self._output.read().decode(errors="replace").strip().splitlines()[-1:]
        return PlanError(
            "the embedded Prefect server ended while it started." if ended else "the embedded Prefect server is late.",
            why=last_words[0] if last_words else None,
            remedy="merge without Prefect with --direct, or start a server with 'prefect server start' "
            "and set PREFECT_API_URL to its address.",
        )


def _spawn(listener: int, output: int) -> subprocess.Popen[bytes]:
    from prefect.settings import get_current_settings

    return subprocess.Popen(
        # -P keeps the folder of the program, and so its neighbours, off the server's import path.
        [sys.executable, "-P", str(PROGRAM), str(listener)],
        env={**os.environ, **get_current_settings().to_environment_variables(exclude_unset=True)},
        pass_fds=[listener],
        stdin=subprocess.PIPE,
        stdout=output,
        stderr=output,
        start_new_session=True,
    )


def _is_healthy(client: httpx.Client, api_url: str) -> bool:
    try:
        return client.get(f"{api_url}/health").is_success
    except httpx.TransportError:
        return False
