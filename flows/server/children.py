"""The processes of runs that this one has started, and which must not go on without it."""

from __future__ import annotations

import os
import signal
import time
from contextlib import suppress
from pathlib import Path
from uuid import UUID

import httpx
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import StateType
from prefect.exceptions import PrefectException
from prefect.settings import PREFECT_CLIENT_MAX_RETRIES, temporary_settings
from prefect.states import Cancelled

from flows.server.history import LAST_WORDS
from flows.server.leftovers import end_run
from xmerge.progress import Reporter

RUN = b"PREFECT__FLOW_RUN_ID="
"""How Prefect tells a process which run it carries out."""
SECONDS_TO_STOP = 20.0
SECONDS_TO_DIE = 3.0
SECONDS_TO_ANSWER = 2.0
ENDED_BY_ITSELF = (StateType.COMPLETED, StateType.FAILED, StateType.CANCELLED)


def end_runs(reporter: Reporter) -> None:
    """End all runs at once, by force those that take too long, and have the server say that they were cancelled."""
    if ended := _end_processes():
        _report_cancelled(sorted(ended), reporter)


def _end_processes() -> set[UUID]:
    """End every process; the runs that they carried out."""
    deadline, asked, ended = time.monotonic() + SECONDS_TO_STOP, set[int](), set[UUID]()
    while (left := _find_processes()) and time.monotonic() < deadline + SECONDS_TO_DIE:
        late = time.monotonic() > deadline
        for pid, run in left.items():
            if late or pid not in asked:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL if late else signal.SIGTERM)
            asked.add(pid)
            ended.add(run)
        time.sleep(0.1)
    return ended


def _find_processes() -> dict[int, UUID]:
    """Process -> run, of the children that still live: one that has ended has no environment any more."""
    found = dict[int, UUID]()
    for children in Path("/proc/self/task").glob("*/children"):
        # Threads and processes end while they are looked at.
        with suppress(OSError):
            for pid in map(int, children.read_text(encoding="ascii").split()):
                if run := _read_run(pid):
                    found[pid] = run
    return found


def _read_run(pid: int) -> UUID | None:
    try:
        variables = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return None
    return next((UUID(each.removeprefix(RUN).decode()) for each in variables if each.startswith(RUN)), None)


def _report_cancelled(runs: list[UUID], reporter: Reporter) -> None:
    """Say so of the runs that have not ended by themselves; a run that was told to end calls that a crash."""
    try:
        with (
            temporary_settings({PREFECT_CLIENT_MAX_RETRIES: 1}),
            get_client(sync_client=True, httpx_settings={"timeout": SECONDS_TO_ANSWER}) as client,
        ):
            for run in runs:
                state = client.read_flow_run(run).state
                if state is None or state.type not in ENDED_BY_ITSELF:
                    end_run(client, run, Cancelled(message=LAST_WORDS))
    except (httpx.HTTPError, PrefectException) as error:
        reporter.note(f"the Prefect server could not be told which runs were stopped: {error}")
