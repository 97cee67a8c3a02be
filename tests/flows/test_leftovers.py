"""Runs whose process is gone, as the next command finds them."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import FlowRun, State
from prefect.states import AwaitingRetry, Running, Scheduled

from flows.server import leftovers
from flows.server.api import ConfiguredApi
from flows.ui import find_last_run
from flows.verify import verify_model
from tests.flows.notes import Notes
from tests.servers.runs import read_run
from xmerge.processes import describe_self

pytestmark = pytest.mark.slow


def begin_dead_run(name: str) -> FlowRun:
    """A run that is Running, signed by a process that has ended."""
    dead = describe_self().model_copy(update={"started": "0"})
    with get_client(sync_client=True) as client:
        run = client.create_flow_run(verify_model, parameters={"folder": "x"}, name=name, state=Scheduled())
        client.update_flow_run_labels(run.id, {leftovers.LABEL: dead.model_dump_json()})
        client.set_flow_run_state(run.id, Running(), force=True)
    return run


def settle() -> list[str]:
    """What a command says of runs that it has found dead."""
    notes = Notes()
    leftovers.settle_dead_runs(notes)
    return notes.said


@pytest.mark.usefixtures("api_url")
def test_a_run_that_has_just_begun_again_may_have_no_new_sign_yet(monkeypatch):
    """Begun once, a run with a dead process has crashed at once; begun again, only after the time that a sign takes."""
    dead, retried = begin_dead_run("dead"), begin_dead_run("retried")
    with get_client(sync_client=True) as client:
        client.set_flow_run_state(retried.id, AwaitingRetry(), force=True)
        client.set_flow_run_state(retried.id, Running(), force=True)
    said = settle()
    assert read_run(dead.id).state_name == "Crashed"
    assert read_run(retried.id).state_name == "Running"
    assert "an earlier run has crashed: dead" in said
    assert "an earlier run has crashed: retried" not in said
    monkeypatch.setattr(leftovers, "TIME_TO_SIGN", timedelta(0))
    assert "an earlier run has crashed: retried" in settle()
    assert read_run(retried.id).state_name == "Crashed"


def test_the_last_run_has_begun(api_url):
    """A run that a schedule has planned for later is not the last one."""
    begun = begin_dead_run("begun")
    with get_client(sync_client=True) as client:
        planned: State[Any] = Scheduled(scheduled_time=datetime.now(UTC) + timedelta(days=1))
        later = client.create_flow_run(verify_model, parameters={"folder": "x"}, name="planned", state=planned)
    last = find_last_run(ConfiguredApi(api_url))
    with get_client(sync_client=True) as client:
        client.delete_flow_run(later.id)
        client.delete_flow_run(begun.id)
    assert last is not None
    assert last["name"] == "begun"
