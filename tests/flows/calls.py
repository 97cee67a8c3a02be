"""`xmerge` as a process of its own, with a Prefect home of its own, and layers that take their time."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from tests.servers.processes import ROOT, clean_environment, kill_all, list_descendants, spawn, wait_until

SECONDS_TO_END = 240.0
SECONDS_BETWEEN_SIGNALS = 1.0
UNHURRIED_RUNS = """\
import os
import sys

if "PREFECT__FLOW_RUN_ID" in os.environ:
    sys.path.append({root!r})
    import tests.servers.unhurried
"""


class Call:
    """One call of the command, under way."""

    def __init__(self, home: Path, log: Path, *words: object, api_url: str = "") -> None:
        self.log = log
        environment = {**clean_environment(), "PREFECT_HOME": str(home), "PYTHONPATH": str(write_site(home))}
        if api_url:
            environment["PREFECT_API_URL"] = api_url
        command = [sys.executable, "-m", "tests.servers.unhurried", *map(str, words)]
        self.process: subprocess.Popen[bytes] = spawn(command, log, environment)

    def read(self) -> list[str]:
        """What it has said so far."""
        return self.log.read_text(encoding="utf-8").splitlines()

    def wait_for_json(self) -> dict[str, Any]:
        """The line for machines, as soon as it is there."""
        wait_until(
            lambda: any(line.startswith("{") for line in self.read()), f"{self.log} has a line of JSON", SECONDS_TO_END
        )
        return dict(json.loads(next(line for line in self.read() if line.startswith("{"))))

    def end(self) -> int:
        """Its exit code after a Ctrl-C."""
        self.process.send_signal(signal.SIGINT)
        return self.wait()

    def end_as_a_terminal_does(self) -> int:
        """Its exit code after a Ctrl-C, which reaches whatever the command has started too, and first as it may."""
        for pid in list_descendants(self.process.pid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGINT)
        time.sleep(SECONDS_BETWEEN_SIGNALS)
        return self.end()

    def wait(self) -> int:
        """Its exit code."""
        return self.process.wait(SECONDS_TO_END)

    def kill(self) -> None:
        """SIGKILL, for what it has started too."""
        kill_all(self.process)


def write_site(home: Path) -> Path:
    """A folder that makes the layers of every flow run under this home take their time."""
    site = home.parent / "site"
    site.mkdir(exist_ok=True)
    (site / "sitecustomize.py").write_text(UNHURRIED_RUNS.format(root=str(ROOT)), encoding="utf-8")
    return site
