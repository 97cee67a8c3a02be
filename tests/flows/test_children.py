"""Processes of runs, which end with the one that has started them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from uuid import UUID, uuid4

import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import State
from prefect.settings import PREFECT_API_URL, temporary_settings
from prefect.states import Completed, Running

from flows.server import children
from flows.verify import verify_model
from tests.flows.notes import Notes
from tests.servers.runs import read_run

pytestmark = pytest.mark.slow

DEAF = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(flush=True); time.sleep(60)"
HEARING = "import time; print(flush=True); time.sleep(60)"


def start(code: str, run: UUID) -> subprocess.Popen[bytes]:
    """A process that carries out a run, as far as Prefect's variables say; it is under way."""
    environment = os.environ | {"PREFECT__FLOW_RUN_ID": str(run)}
    process = subprocess.Popen([sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE)
    assert process.stdout is not None
    with process.stdout as told:
        told.readline()
    return process


def make_run(state: State[None]) -> UUID:
    """A run of one of the flows that the server knows in this state."""
    with get_client(sync_client=True) as client:
        run = client.create_flow_run(verify_model, parameters={"folder": "x"})
        client.set_flow_run_state(run.id, state, force=True)
    return run.id


@pytest.mark.usefixtures("api_url")
def test_runs_are_ended_and_said_to_be_cancelled():
    """All are told at once; a run that had completed stays so."""
    runs = make_run(Running()), make_run(Completed()), make_run(Running())
    processes = [start(HEARING, run) for run in runs]
    notes = Notes()
    children.end_runs(notes)
    assert [process.wait(1) for process in processes] == [-signal.SIGTERM] * 3
    assert [read_run(run).state_name for run in runs] == ["Cancelled", "Completed", "Cancelled"]
    assert notes.said == []


def test_a_run_that_does_not_hear_is_killed_also_without_a_server(monkeypatch):
    """After its time it gets SIGKILL; that nobody could be told is said."""
    monkeypatch.setattr(children, "SECONDS_TO_STOP", 0.5)
    process, notes = start(DEAF, uuid4()), Notes()
    with temporary_settings({PREFECT_API_URL: "http://127.0.0.1:9/api"}):
        children.end_runs(notes)
    assert process.wait(1) == -signal.SIGKILL
    assert notes.said[0].startswith("the Prefect server could not be told which runs were stopped: ")
