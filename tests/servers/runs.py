"""Deployments and their runs, through Prefect's API, as its pages use it."""

from __future__ import annotations

import logging
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import DeploymentScheduleCreate, WorkPoolCreate
from prefect.client.schemas.filters import (
    ArtifactFilter,
    ArtifactFilterFlowRunId,
    ArtifactFilterKey,
    DeploymentFilter,
    DeploymentFilterId,
    FlowRunFilter,
    FlowRunFilterId,
    LogFilter,
    LogFilterFlowRunId,
)
from prefect.client.schemas.objects import Artifact, FlowRun, Log, TaskRun
from prefect.client.schemas.schedules import IntervalSchedule
from prefect.client.schemas.sorting import FlowRunSort
from prefect.flows import Flow, load_flow_from_entrypoint
from prefect.utilities.callables import parameter_schema

from flows.server.history import wait_for_history
from tests.flows.tiny import LAYERS
from tests.servers.processes import wait_until

POOL = "xmerge-tests"
UNHURRIED = "tests.servers.unhurried.merge_models"
LAYER_RUNS = LAYERS + 2
"""Of one merge of the tiny models: the layers, and what stands before and after them."""
TASKS = LAYER_RUNS + 6


def make_pool() -> None:
    """A process work pool."""
    with get_client(sync_client=True) as client:
        client.create_work_pool(WorkPoolCreate(name=POOL, type="process"))


def deploy(entrypoint: str, name: str, pool: str = POOL, **options: Any) -> UUID:
    """Make a flow startable through the API."""
    flow: Flow[..., Any] = load_flow_from_entrypoint(entrypoint)
    with get_client(sync_client=True) as client:
        return client.create_deployment(
            flow_id=client.create_flow(flow),
            name=name,
            work_pool_name=pool,
            entrypoint=entrypoint,
            parameter_openapi_schema=parameter_schema(flow).model_dump_for_openapi(),
            enforce_parameter_schema=True,
            **options,
        )


def start_run(deployment: UUID, **parameters: Any) -> UUID:
    """Ask for a run, as the form does."""
    with get_client(sync_client=True) as client:
        return client.create_flow_run_from_deployment(deployment, parameters=parameters).id


def find_deployment(name: str) -> UUID:
    """The deployment of a name `flow/deployment`."""
    with get_client(sync_client=True) as client:
        return client.read_deployment_by_name(name).id


def add_schedule(deployment: UUID, every: timedelta, **parameters: Any) -> None:
    """Have a deployment run at intervals, from the next second on."""
    schedule = IntervalSchedule(interval=every, anchor_date=datetime.now(UTC) + timedelta(seconds=1))
    with get_client(sync_client=True) as client:
        client.create_deployment_schedules(
            deployment, [DeploymentScheduleCreate(schedule=schedule, parameters=parameters)]
        )


def list_completed(deployment: UUID) -> list[FlowRun]:
    """The completed runs of a deployment, the first one first."""
    mine = DeploymentFilter(id=DeploymentFilterId(any_=[deployment]))
    with get_client(sync_client=True) as client:
        found = client.read_flow_runs(deployment_filter=mine, sort=FlowRunSort.START_TIME_ASC)
    return [run for run in found if run.state_name == "Completed"]


def remove(deployment: UUID) -> None:
    """Take a deployment away, and with it what its schedule has planned."""
    with get_client(sync_client=True) as client:
        client.delete_deployment(deployment)


def list_states(run: UUID) -> list[str]:
    """The names of the states that a run has been in, in order."""
    with get_client(sync_client=True) as client:
        return [str(state.name) for state in client.read_flow_run_states(run)]


def read_artifacts(run: UUID, key: str) -> list[Artifact]:
    """What a run's page shows under a key."""
    mine = ArtifactFilter(flow_run_id=ArtifactFilterFlowRunId(any_=[run]), key=ArtifactFilterKey(any_=[key]))
    with get_client(sync_client=True) as client:
        return client.read_artifacts(artifact_filter=mine)


def read_run(run: UUID) -> FlowRun:
    """What the API knows of a run."""
    with get_client(sync_client=True) as client:
        return client.read_flow_run(run)


def wait_for_end(*runs: UUID) -> list[FlowRun]:
    """The runs, when all of them have ended."""
    wait_until(lambda: all(has_ended(run) for run in runs), "the runs have ended")
    return [read_run(run) for run in runs]


def tell(run: FlowRun) -> str:
    """What a run's page says of how it ended."""
    assert run.state is not None
    return str(run.state.message)


def has_ended(run: UUID) -> bool:
    """Whether a run is in a state that it stays in."""
    state = read_run(run).state
    return state is not None and state.is_final()


def read_tasks(run: UUID, count: int) -> list[TaskRun]:
    """The task runs of a flow run, when the server has recorded the end of so many: it does so after the run."""
    assert wait_for_history(str(run), count, patience=15)
    with get_client(sync_client=True) as client:
        return client.read_task_runs(flow_run_filter=FlowRunFilter(id=FlowRunFilterId(any_=[run])))


def read_complaints(run: UUID) -> list[str]:
    """What a run has logged as a warning or worse."""
    return read_logs(run, logging.WARNING)


def read_logs(run: UUID, level: int = logging.NOTSET) -> list[str]:
    """What a run has logged from a level on."""
    with get_client(sync_client=True) as client:
        logs: list[Log] = client.read_logs(LogFilter(flow_run_id=LogFilterFlowRunId(any_=[run])))
    return [log.message for log in logs if log.level >= level]
