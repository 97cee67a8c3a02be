"""Brings a file's deployments to a server as `prefect deploy --all` does, but only those that are not there already.

`prefect deploy` replaces what it finds, and with it a schedule that somebody has switched on since.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.actions import DeploymentScheduleCreate, DeploymentUpdate
from prefect.client.schemas.objects import ConcurrencyOptions
from prefect.client.schemas.responses import DeploymentResponse
from prefect.client.schemas.schedules import CronSchedule
from prefect.exceptions import ObjectNotFound
from prefect.flows import Flow, load_flow_from_entrypoint
from prefect.utilities.callables import parameter_schema

PLAIN = (
    "description",
    "entrypoint",
    "job_variables",
    "parameter_openapi_schema",
    "parameters",
    "pull_steps",
    "tags",
    "version",
    "work_pool_name",
)
"""Of a deployment, what the server answers with in the words in which it was told."""


def deploy_all(client: SyncPrefectClient, file: Path) -> Iterator[tuple[str, str]]:
    """Make what a file has and the server has not, and change what differs; each deployment's name, and what was done.

    Schedules are made with a deployment and never changed: from then on they are for people to switch on and off.
    """
    read = yaml.safe_load(file.read_text(encoding="utf-8"))
    for said in read["deployments"]:
        flow: Flow[..., Any] = load_flow_from_entrypoint(said["entrypoint"])
        name = f"{flow.name}/{said['name']}"
        wanted, found = _translate(said, flow, read["pull"]), _find(client, name)
        if found is None:
            client.create_deployment(
                client.create_flow_from_name(flow.name),
                said["name"],
                schedules=[_translate_schedule(each) for each in said.get("schedules", ())],
                enforce_parameter_schema=True,
                **wanted,
            )
            yield name, "made"
        elif _describe(found) == wanted:
            yield name, "there"
        else:
            client.update_deployment(found.id, DeploymentUpdate(**wanted))
            yield name, "changed"


def _translate(said: dict[str, Any], flow: Flow[..., Any], pull: list[dict[str, Any]]) -> dict[str, Any]:
    """What the file says of a deployment, in the API's words."""
    limit = said.get("concurrency_limit")
    return {
        "concurrency_limit": limit["limit"] if limit else None,
        "concurrency_options": ConcurrencyOptions(collision_strategy=limit["collision_strategy"]) if limit else None,
        "description": said["description"],
        "entrypoint": said["entrypoint"],
        "job_variables": said["work_pool"]["job_variables"],
        "parameter_openapi_schema": parameter_schema(flow).model_dump(mode="json", exclude_unset=True),
        "parameters": said.get("parameters", {}),
        "pull_steps": pull,
        "tags": said["tags"],
        "version": said["version"],
        "work_pool_name": said["work_pool"]["name"],
    }


def _translate_schedule(said: dict[str, Any]) -> DeploymentScheduleCreate:
    schedule = CronSchedule(cron=said["cron"], timezone=said["timezone"])
    return DeploymentScheduleCreate(schedule=schedule, active=said["active"], slug=said["slug"])


def _find(client: SyncPrefectClient, name: str) -> DeploymentResponse | None:
    try:
        return client.read_deployment_by_name(name)
    except ObjectNotFound:
        return None


def _describe(found: DeploymentResponse) -> dict[str, Any]:
    """What the server has of a deployment, in the words of `_translate`."""
    limit = found.global_concurrency_limit
    return {
        **{name: getattr(found, name) for name in PLAIN},
        "concurrency_limit": limit.limit if limit else None,
        "concurrency_options": found.concurrency_options,
    }
