"""Before the command ends: wait until the server has taken and recorded what the run has done."""

from __future__ import annotations

import time
from uuid import UUID

import httpx
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import (
    FlowRunFilter,
    FlowRunFilterId,
    TaskRunFilter,
    TaskRunFilterState,
    TaskRunFilterStateType,
)
from prefect.client.schemas.objects import TERMINAL_STATES
from prefect.events.worker import EventsWorker
from prefect.exceptions import PrefectException
from prefect.logging.handlers import APILogWorker
from prefect.states import Cancelled

SECONDS_FOR_LAST_WORDS = 0.5
LAST_WORDS = "the merge was interrupted; run the same again to resume."


def send_what_is_left(patience: float) -> bool:
    """Whether the API has taken, before patience ends, the events and log lines that this process still holds."""
    deadline = time.monotonic() + patience
    for worker in (EventsWorker, APILogWorker):
        drained = worker.drain_all(timeout=max(0.0, deadline - time.monotonic()))
        # A coroutine only where an event loop runs.
        if not isinstance(drained, tuple) or drained[1]:
            return False
    return True


def report_interruption(flow_run: str) -> bool:
    """Whether the API has taken that a run was interrupted, for a run that has no time left to say so itself."""
    try:
        with get_client(sync_client=True, httpx_settings={"timeout": SECONDS_FOR_LAST_WORDS}) as client:
            client.set_flow_run_state(UUID(flow_run), Cancelled(name="Interrupted", message=LAST_WORDS), force=True)
    except (httpx.HTTPError, PrefectException):
        return False
    return True


def wait_for_history(flow_run: str, task_runs: int, patience: float) -> bool:
    """Whether the server knows the end of every task run; asked until it does or patience ends.

    An embedded server dies with what it has not recorded: of a run of 128 cached tasks it had 7 to 27 when the flow
    returned. Each batch is recorded about a second after it came.
    """
    deadline = time.monotonic() + patience
    try:
        with get_client(sync_client=True) as client:
            while _count_ended(client, UUID(flow_run)) < task_runs:
                if time.monotonic() > deadline:
                    return False
                time.sleep(0.1)
    except (httpx.HTTPError, PrefectException):
        return False
    return True


def _count_ended(client: SyncPrefectClient, flow_run: UUID) -> int:
    body = {
        "flow_runs": FlowRunFilter(id=FlowRunFilterId(any_=[flow_run])).model_dump(mode="json"),
        "task_runs": TaskRunFilter(
            state=TaskRunFilterState(type=TaskRunFilterStateType(any_=sorted(TERMINAL_STATES)))
        ).model_dump(mode="json"),
    }
    return int(client.request("POST", "/task_runs/count", json=body).json())
