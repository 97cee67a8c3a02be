"""The command `python -m deployments.prepare`, and what it leaves in a server."""

from __future__ import annotations

from typing import Any

from click.testing import CliRunner, Result
from prefect.client.orchestration import get_client
from prefect.client.schemas.responses import DeploymentResponse
from prefect.settings import PREFECT_API_URL, temporary_settings

from deployments.prepare import main


def prepare(url: str, *options: str) -> Result:
    """Give the command to a server."""
    with temporary_settings(updates={PREFECT_API_URL: url}):
        return CliRunner().invoke(main, options)


def run_prepare(url: str, *options: str) -> list[str]:
    """What the command says when it succeeds."""
    ran = prepare(url, *options)
    assert ran.exit_code == 0, ran.output
    return ran.stdout.splitlines()


def list_deployments() -> dict[str, DeploymentResponse]:
    """The deployments of the server that this process talks to, by name."""
    with get_client(sync_client=True) as client:
        return {each.name: each for each in client.read_deployments()}


def take_stock() -> list[dict[str, Any]]:
    """Everything that the command makes, as the server has it, with the times at which it was changed."""
    with get_client(sync_client=True) as client:
        made = [*client.read_deployments(), *client.read_work_pools(), *client.read_automations()]
    # When a worker was seen last says nothing of who changed what.
    passing = {"last_polled", "status"}
    return sorted((each.model_dump(mode="json", exclude=passing) for each in made), key=lambda each: str(each["id"]))
