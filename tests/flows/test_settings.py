"""What Prefect runs with."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from prefect.settings import PREFECT_API_URL, PREFECT_CLIENT_MAX_RETRIES, temporary_settings

from flows.reporting import LogReporter
from flows.server.api import RETRIES, open_api
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


@pytest.mark.slow
@pytest.mark.parametrize(("said", "retries"), [(None, RETRIES), ("8", 8)])
def test_a_busy_database_is_asked_again(monkeypatch, api_url, said, retries):
    """Against a server of its own a command asks several times, or as often as the environment says."""
    monkeypatch.delenv("PREFECT_CLIENT_MAX_RETRIES", raising=False)
    if said:
        monkeypatch.setenv("PREFECT_CLIENT_MAX_RETRIES", said)
    before = {PREFECT_API_URL: None, PREFECT_CLIENT_MAX_RETRIES: int(said or 5)}
    with temporary_settings(updates=before), open_api(LogReporter()) as api:
        assert api.url == api_url
        assert PREFECT_CLIENT_MAX_RETRIES.value() == retries
