"""What Prefect runs with."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from flows.server.settings import EMBEDDED_SETTINGS, apply_settings


def test_the_settings_do_not_overrule_a_person(monkeypatch):
    """What stands in the environment stays; what does not is set."""
    name, other = list(EMBEDDED_SETTINGS)[:2]
    monkeypatch.setenv(name, "7")
    monkeypatch.delenv(other)
    apply_settings()
    assert os.environ[name] == "7"
    assert os.environ[other] == EMBEDDED_SETTINGS[other]


@pytest.mark.slow
def test_the_settings_come_before_prefect():
    """The command can set the environment before Prefect reads it: importing it does not import Prefect."""
    code = "import flows.server.settings, flows.command, flows.merge_many, sys; sys.exit('prefect' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.slow
def test_listing_the_flows_does_not_load_torch():
    """Whoever deploys or serves the flows imports them, and does not wait for torch."""
    flows = ", ".join(f"flows.{name}" for name in ("many", "merge", "publish", "verify", "watch"))
    code = f"import {flows}, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
