"""A `prefect worker start` as a process of its own: it starts a process for each run of a deployment."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from tests.servers.processes import clean_environment, kill_all, list_descendants, spawn


class Worker:
    """A worker of a process work pool, and the runs that it has started."""

    def __init__(self, folder: Path, api_url: str, pool: str, settings: Mapping[str, str] | None = None) -> None:
        self.log = folder / "worker.log"
        self._environment = {
            **clean_environment(),
            "DO_NOT_TRACK": "1",
            "PREFECT_HOME": str(folder),
            "PREFECT_API_URL": api_url,
            "PREFECT_WORKER_QUERY_SECONDS": "1",
            **(settings or {}),
        }
        self._pool = pool
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Begin to look for runs."""
        command = [sys.executable, "-m", "prefect", "--no-prompt", "worker", "start", "--pool", self._pool]
        self._process = spawn([*command, "--type", "process"], self.log, self._environment)

    def kill(self) -> None:
        """SIGKILL for it and for every run that it has started."""
        assert self._process is not None
        kill_all(self._process)

    def kill_runs(self) -> None:
        """SIGKILL for every run that it has started, and not for itself."""
        assert self._process is not None
        for pid in list_descendants(self._process.pid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
