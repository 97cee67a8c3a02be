"""`xmerge serve`: merges that are started from a browser, on this machine."""

from __future__ import annotations

import json
from typing import Any

import click

from xmerge.cli.orchestration import load_flow_module
from xmerge.cli.progress import LineReporter
from xmerge.cli.ui import port_option


@click.command()
@port_option
@click.option(
    "--limit", type=click.IntRange(min=1), default=1, show_default=True, help="Runs under way at once; others wait."
)
@click.option("--json", "as_json", is_flag=True, help="Print the addresses as one line of JSON.")
def serve(port: int, limit: int, as_json: bool) -> None:
    """Carry out merges that are started from a browser, until Ctrl-C.

    They are offered on the server that PREFECT_API_URL or a profile names, else on one that is started on this machine
    only. Relative paths in the form begin in the folder in which this command was started.
    """

    def tell(served: dict[str, Any]) -> None:
        click.echo(json.dumps(served) if as_json else _tell(served))

    load_flow_module("serving").serve_flows(port, limit, tell, LineReporter())


def _tell(served: dict[str, Any]) -> str:
    names = [f"  {name}" for name in served["deployments"]]
    return "\n".join([f"start a merge: {served['ui']}/deployments", "serving, until Ctrl-C:", *names])
