"""`xmerge merge` as a process of its own, against a server, with layers that take their time."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.servers.processes import clean_environment, spawn

SECONDS_TO_MERGE = 120.0


class Command:
    """One call of the command, under way."""

    def __init__(self, api_url: str, recipe: Path, out: Path) -> None:
        self.log = out.with_suffix(".log")
        environment = {**clean_environment(), "PREFECT_API_URL": api_url, "PREFECT_HOME": str(out.parent / "home")}
        arguments = ["merge", recipe, out, "--workers", "2", "--skip-trial-load", "--json"]
        self._process: subprocess.Popen[bytes] = spawn(
            [sys.executable, "-m", "tests.servers.unhurried", *map(str, arguments)], self.log, environment
        )

    def wait(self) -> tuple[int, list[str]]:
        """Its exit code, and the lines that it printed."""
        code = self._process.wait(SECONDS_TO_MERGE)
        return code, self.log.read_text(encoding="utf-8").splitlines()

    def take_outcome(self) -> dict[str, Any]:
        """What it says of the merge, which must have gone well."""
        code, lines = self.wait()
        assert code == 0, lines
        return dict(json.loads(lines[-1]))
