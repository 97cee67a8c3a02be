"""Runs whose process was killed: each says which process it is, so that others can find out that it has ended.

Prefect itself leaves them running for ever, unless an automation listens for heartbeats.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import httpx
from prefect import Flow
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import (
    FlowFilter,
    FlowFilterName,
    FlowRunFilter,
    FlowRunFilterId,
    FlowRunFilterState,
    FlowRunFilterStateType,
    TaskRunFilter,
    TaskRunFilterState,
    TaskRunFilterStateType,
)
from prefect.client.schemas.objects import FlowRun, State, StateType
from prefect.exceptions import PrefectException
from prefect.states import Crashed

from flows.catalogue import FLOW_NAMES
from tasks.pages.showing import try_to_show
from xmerge.processes import Process, describe_self
from xmerge.progress import Reporter

LABEL = "xmerge.process"
UNDER_WAY = [StateType.RUNNING, StateType.CANCELLING]
TIME_TO_SIGN = timedelta(seconds=10)


def sign_run(flow: Flow[..., Any], flow_run: FlowRun, state: State[Any]) -> None:
    """Write down which process carries out a run; a hook of every flow."""
    label: dict[str, bool | int | float | str] = {LABEL: describe_self().model_dump_json()}
    try_to_show("run's process", lambda: get_client(sync_client=True).update_flow_run_labels(flow_run.id, label))


def settle_dead_runs(reporter: Reporter) -> None:
    """Set runs to Crashed whose process on this machine is gone, and name them; no command fails for it."""
    try:
        with get_client(sync_client=True) as client:
            for run, process in _find_dead(client):
                _settle(client, run, process)
                reporter.note(f"an earlier run has crashed: {run.name}")
    except (httpx.HTTPError, PrefectException) as error:
        reporter.note(f"runs that were killed could not be looked for: {error}")


def _find_dead(client: SyncPrefectClient) -> list[tuple[FlowRun, Process]]:
    runs = client.read_flow_runs(
        flow_filter=FlowFilter(name=FlowFilterName(any_=FLOW_NAMES)),
        flow_run_filter=FlowRunFilter(state=FlowRunFilterState(type=FlowRunFilterStateType(any_=UNDER_WAY))),
    )
    signed = [(run, _read_label(run.labels.get(LABEL))) for run in runs if not _may_be_unsigned(run)]
    return [(run, process) for run, process in signed if process is not None and process.is_dead()]


def _may_be_unsigned(run: FlowRun) -> bool:
    """Whether a run has just begun once more, and so may still bear the sign of the process that had it before."""
    assert run.state is not None
    return run.run_count > 1 and datetime.now(UTC) - run.state.timestamp < TIME_TO_SIGN


def _read_label(label: object) -> Process | None:
    try:
        return Process.model_validate_json(str(label))
    except ValueError:
        return None


def _settle(client: SyncPrefectClient, run: FlowRun, process: Process) -> None:
    told = f"{process} has ended without a word; run the same again to resume."
    end_run(client, run.id, Crashed(message=told))


def end_run(client: SyncPrefectClient, run: UUID, state: State[Any]) -> None:
    """Set a run of which no process is left to its last state, and what it has left unfinished to Crashed."""
    unfinished = TaskRunFilter(
        state=TaskRunFilterState(type=TaskRunFilterStateType(any_=[StateType.PENDING, StateType.RUNNING]))
    )
    this = FlowRunFilter(id=FlowRunFilterId(any_=[run]))
    for task in client.read_task_runs(flow_run_filter=this, task_run_filter=unfinished):
        client.set_task_run_state(task.id, Crashed(message=state.message), force=True)
    client.set_flow_run_state(run, state, force=True)
