"""`python -m deployments.prepare`: what a Prefect server needs to run xmerge, made where it is missing.

Work pools, deployments with their limits and schedules, and the automation that ends zombies. What is there and as it
should be is left alone, so it may be run as often as one likes: after an upgrade, or whenever a machine starts.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from xmerge.cli.orchestration import put_flows_on_path
from xmerge.errors import ConfigError, PlanError, XmergeError

if TYPE_CHECKING:
    from prefect.client.orchestration import SyncPrefectClient

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
    put_flows_on_path()
    from flows.server.settings import apply_settings

    # Before Prefect is imported, which is when it reads them.
    apply_settings()
    from prefect.client.orchestration import get_client

    from deployments.deploy import deploy_all
    from flows.server.zombies import NAME, end_zombies

    wait_for_server(wait)
    with get_client(sync_client=True) as client:
        say(f"server {client.api_url}: answers")
        for pool in pools:
            say(f"work pool {pool.name} ({pool.type}): {make_pool(client, pool)}")
            for name, outcome in deploy_all(client, pool.file):
                say(f"deployment {name}: {outcome}")
        say(f"automation '{NAME}': {end_zombies(client)}")
    for pool in pools:
        say(f"its runs wait for a worker: prefect worker start --pool {pool.name}")


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


if __name__ == "__main__":
    main()
