"""`python -m deployments.prepare`: what a Prefect server needs to run xmerge, made where it is missing.

Work pools, deployments with their limits and schedules, and the automation that ends zombies. What is there and as it
should be is left alone, so it may be run as often as one likes: after an upgrade, or whenever a machine starts.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import yaml

from xmerge.cli.orchestration import put_flows_on_path
from xmerge.errors import ConfigError, PlanError, StorageError, XmergeError

if TYPE_CHECKING:
    from prefect.client.orchestration import SyncPrefectClient
    from prefect.client.schemas.responses import DeploymentResponse
    from prefect.flows import Flow

FOLDER = Path(__file__).resolve().parent
SECONDS_BETWEEN_QUESTIONS = 0.5
SECONDS_TO_ANSWER = 5.0


@dataclass(frozen=True)
class Pool:
    """A work pool, and the file of the deployments that run in it."""

    name: str
    type: str
    file: Path
    template: Path | None = None
    """How a worker starts a run, where Prefect's own way does not do."""


POOLS = {
    "process": Pool("xmerge", "process", FOLDER / "prefect.yaml"),
    "docker": Pool("xmerge-docker", "docker", FOLDER / "prefect-docker.yaml"),
    "kubernetes": Pool(
        "xmerge-kubernetes",
        "kubernetes",
        FOLDER / "prefect-kubernetes.yaml",
        FOLDER / "kubernetes" / "job-template.json",
    ),
}


@click.command()
@click.option(
    "--pool",
    "kinds",
    multiple=True,
    type=click.Choice(sorted(POOLS)),
    default=("process",),
    show_default=True,
    help="How runs are started; may be given more than once.",
)
@click.option(
    "--wait",
    type=click.FloatRange(min=0),
    default=60.0,
    show_default=True,
    help="Seconds to wait for the server to answer.",
)
def main(kinds: tuple[str, ...], wait: float) -> None:
    """Make what the Prefect server at PREFECT_API_URL needs for xmerge, where it is missing."""
    try:
        prepare([POOLS[kind] for kind in kinds], wait, click.echo)
    except XmergeError as error:
        click.echo(f"{type(error).__name__}: {error}", err=True)
        sys.exit(error.exit_code)


def prepare(pools: list[Pool], wait: float, say: Callable[[str], None]) -> None:
    """Wait for the server, and make in it what is missing.

    Args:
        pools: The work pools, with what runs in them.
        wait: How long the server may take to answer, in seconds.
        say: Is told of each thing whether it was made, changed or there.

    Raises:
        XmergeError: There is no such server, or it did not take something.
    """
    folder = put_flows_on_path()
    from flows.settings import apply_settings

    apply_settings()
    from prefect.client.orchestration import get_client

    from flows.zombies import NAME, end_zombies

    wait_for_server(wait)
    with get_client(sync_client=True) as client:
        say(f"server {client.api_url}: answers")
        for pool in pools:
            say(f"work pool {pool.name} ({pool.type}): {make_pool(client, pool)}")
            for name, outcome in deploy(client, pool, folder):
                say(f"deployment {name}: {outcome}")
        say(f"automation '{NAME}': {end_zombies(client)}")
    for pool in pools:
        say(f"next, on each machine that merges: prefect worker start --pool {pool.name}")


def wait_for_server(wait: float) -> None:
    """Return when the server of PREFECT_API_URL answers.

    Raises:
        ConfigError: None is named.
        PlanError: It does not answer in time, or not to us.
    """
    import httpx
    from prefect.client.orchestration import get_client
    from prefect.exceptions import PrefectHTTPStatusError
    from prefect.settings import PREFECT_API_URL, PREFECT_CLIENT_MAX_RETRIES, temporary_settings

    url = PREFECT_API_URL.value()
    if not url:
        raise ConfigError(
            "no Prefect server is named.",
            where="PREFECT_API_URL",
            remedy="start one with 'prefect server start' and set PREFECT_API_URL to its address, "
            "such as http://127.0.0.1:4200/api.",
        )
    deadline = time.monotonic() + wait
    while True:
        try:
            # One question at a time: the waiting is done here, where it has an end.
            with (
                temporary_settings({PREFECT_CLIENT_MAX_RETRIES: 0}),
                get_client(sync_client=True, httpx_settings={"timeout": SECONDS_TO_ANSWER}) as client,
            ):
                client.read_flows(limit=1)
            return
        except (httpx.TransportError, httpx.InvalidURL, PrefectHTTPStatusError) as error:
            if time.monotonic() >= deadline or _is_final(error):
                raise _explain(url, error) from error
        time.sleep(SECONDS_BETWEEN_QUESTIONS)


def _is_final(error: Exception) -> bool:
    """Whether asking again is of no use: it has answered, and not as a server does that is about to start."""
    response = getattr(error, "response", None)
    return not hasattr(error, "request") if response is None else response.status_code < 500


def _explain(url: str, error: Exception) -> PlanError:
    return PlanError(
        f"the Prefect server at {url} cannot be used.",
        where="PREFECT_API_URL",
        why=next(iter(str(error).splitlines()), "") or type(error).__name__,
        remedy="see that the address ends in /api, that 'prefect server start' runs there, and, where it asks for a "
        "password, that PREFECT_API_AUTH_STRING has it.",
    )


def make_pool(client: SyncPrefectClient, pool: Pool) -> str:
    """Make a work pool if it is not there.

    Raises:
        PlanError: One of that name is of another type.
    """
    import asyncio

    from prefect.client.schemas.actions import WorkPoolCreate
    from prefect.exceptions import ObjectNotFound
    from prefect.workers.utilities import get_default_base_job_template_for_infrastructure_type

    try:
        found = client.read_work_pool(pool.name)
    except ObjectNotFound:
        if pool.template:
            template = json.loads(pool.template.read_text(encoding="utf-8"))
        else:
            template = asyncio.run(get_default_base_job_template_for_infrastructure_type(pool.type))
        client.create_work_pool(WorkPoolCreate(name=pool.name, type=pool.type, base_job_template=template or {}))
        return "made"
    if found.type != pool.type:
        raise PlanError(
            f"the work pool {pool.name} is of type {found.type}, not {pool.type}.",
            remedy=f"remove it with 'prefect work-pool delete {pool.name}', with the deployments that use it.",
        )
    return "there"


def deploy(client: SyncPrefectClient, pool: Pool, folder: Path) -> Iterator[tuple[str, str]]:
    """Bring a file's deployments to the server, those that are missing or not as the file has them; what was done.

    Args:
        client: Of the server.
        pool: Names the file.
        folder: What carries `flows` and `tasks`.

    Raises:
        StorageError: Prefect could not do it.
    """
    wanted = read_deployments(pool.file)
    found = {name: _find(client, name) for name in wanted}
    outcomes = {name: _compare(found[name], said) for name, said in wanted.items()}
    stale = [name for name, outcome in outcomes.items() if outcome != "there"]
    if stale:
        _run_prefect_deploy(pool.file, stale, folder)
    for name in stale:
        if before := found[name]:
            _keep_schedules(client, name, before)
    yield from outcomes.items()


def read_deployments(file: Path) -> dict[str, dict[str, Any]]:
    """What a file says of each of its deployments, by the name `flow/deployment`."""
    from prefect.flows import load_flow_from_entrypoint
    from prefect.utilities.callables import parameter_schema

    read = yaml.safe_load(file.read_text(encoding="utf-8"))
    wanted = {}
    for said in read["deployments"]:
        flow: Flow[..., Any] = load_flow_from_entrypoint(said["entrypoint"])
        limit = said.get("concurrency_limit", {})
        wanted[f"{flow.name}/{said['name']}"] = {
            "version": said["version"],
            "entrypoint": said["entrypoint"],
            "description": said["description"],
            "tags": sorted(said["tags"]),
            "parameters": said.get("parameters", {}),
            "pull_steps": read["pull"],
            "work_pool": said["work_pool"]["name"],
            "job_variables": said["work_pool"]["job_variables"],
            "limit": limit.get("limit"),
            "collision": limit.get("collision_strategy"),
            "schema": parameter_schema(flow).model_dump(mode="json", exclude_unset=True),
        }
    return wanted


def _find(client: SyncPrefectClient, name: str) -> DeploymentResponse | None:
    from prefect.exceptions import ObjectNotFound

    try:
        return client.read_deployment_by_name(name)
    except ObjectNotFound:
        return None


def _compare(found: DeploymentResponse | None, wanted: dict[str, Any]) -> str:
    if found is None:
        return "made"
    return "there" if _describe(found) == wanted else "changed"


def _describe(found: DeploymentResponse) -> dict[str, Any]:
    """What the server says of a deployment, in the terms of `read_deployments`; its schedules are a person's matter."""
    limit, options = found.global_concurrency_limit, found.concurrency_options
    return {
        "version": found.version,
        "entrypoint": found.entrypoint,
        "description": found.description,
        "tags": sorted(found.tags),
        "parameters": found.parameters,
        "pull_steps": found.pull_steps,
        "work_pool": found.work_pool_name,
        "job_variables": found.job_variables,
        "limit": limit.limit if limit else None,
        "collision": options.collision_strategy.value if options else None,
        "schema": found.parameter_openapi_schema,
    }


def _run_prefect_deploy(file: Path, names: list[str], folder: Path) -> None:
    chosen = [word for name in names for word in ("--name", name.partition("/")[2])]
    command = [sys.executable, "-m", "prefect", "--no-prompt", "deploy", "--prefect-file", str(file), *chosen]
    path = os.pathsep.join([str(folder), *filter(None, [os.environ.get("PYTHONPATH")])])
    ran = subprocess.run(
        command, cwd=FOLDER.parent, env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True, check=False
    )
    if ran.returncode:
        raise StorageError(
            f"'prefect deploy' could not deploy {', '.join(names)}.",
            where=str(file),
            why=next(iter((ran.stderr or ran.stdout).strip().splitlines()[-1:]), None),
        )


def _keep_schedules(client: SyncPrefectClient, name: str, before: DeploymentResponse) -> None:
    """Put back the schedules that a deployment had: Prefect has replaced them, also those that a person switched on."""
    from prefect.client.schemas.actions import DeploymentScheduleCreate

    deployed = client.read_deployment_by_name(name)
    for schedule in deployed.schedules:
        client.delete_deployment_schedule(deployed.id, schedule.id)
    kept = [each.model_dump(include=set(DeploymentScheduleCreate.model_fields)) for each in before.schedules]
    if kept:
        client.create_deployment_schedules(deployed.id, [DeploymentScheduleCreate(**each) for each in kept])


if __name__ == "__main__":
    main()
