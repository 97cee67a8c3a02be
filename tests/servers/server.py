"""A `prefect server start` as a process of its own, which can be killed and started again."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import httpx

from flows.server.settings import EMBEDDED_SETTINGS
from tests.servers.processes import clean_environment, find_port, kill_all, spawn, stop, wait_until

SECONDS_TO_START = 180.0


class Server:
    """Prefect's API at one address and on one database, in as many lives as a test gives it."""

    def __init__(self, folder: Path, database: str, settings: Mapping[str, str] | None = None) -> None:
        self.port = find_port()
        self.url = f"http://127.0.0.1:{self.port}/api"
        self.log = folder / "server.log"
        self._environment = {
            **clean_environment(),
            **EMBEDDED_SETTINGS,
            "DO_NOT_TRACK": "1",
            "PREFECT_HOME": str(folder),
            "PREFECT_API_DATABASE_CONNECTION_URL": database,
            "PREFECT_SERVER_UI_ENABLED": "false",
            # The pages ask this address, and not the one that a server has by default.
            "PREFECT_UI_API_URL": self.url,
            **(settings or {}),
        }
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Return when it answers."""
        command = [sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(self.port)]
        self._process = spawn(command, self.log, self._environment)
        wait_until(self._answers, f"the server answers: {self.log}", SECONDS_TO_START)

    def kill(self) -> None:
        """SIGKILL."""
        assert self._process is not None
        kill_all(self._process)

    def stop(self) -> None:
        """End it as a person would."""
        assert self._process is not None
        stop(self._process)

    def _answers(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, self.log.read_text(encoding="utf-8")
        try:
            return httpx.get(f"{self.url}/health", timeout=1.0, trust_env=False).is_success
        except httpx.TransportError:
            return False
