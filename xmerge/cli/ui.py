"""`xmerge ui`: Prefect's pages on this machine, with the runs that were made here."""

from __future__ import annotations

import json
from typing import Any

import click

from xmerge.cli.orchestration import load_flow_module
from xmerge.cli.progress import LineReporter

port_option = click.option(
    "--port",
    type=click.IntRange(0, 65535),
    default=4200,
    show_default=True,
    help="Where a new server listens; another port is taken if it is in use.",
)


@click.command()
@port_option
@click.option("--json", "as_json", is_flag=True, help="Print the addresses as one line of JSON.")
def ui(port: int, as_json: bool) -> None:
    """Show past and present runs in a browser, until Ctrl-C.

    A server that PREFECT_API_URL or a profile names is found, and left alone; else one is started on this machine only.
    Merges that are started meanwhile use it too. A server that a merge has started keeps its port.
    """

    def tell(pages: dict[str, Any]) -> None:
        click.echo(json.dumps(pages) if as_json else _tell(pages))

    load_flow_module("ui").show_pages(port, tell, LineReporter())


def _tell(pages: dict[str, Any]) -> str:
    last = pages["last_run"]
    lines = [f"pages: {pages['ui']}", f"API: {pages['api']}"]
    return "\n".join([*lines, f"last run: {last['name']}, {last['state']}: {last['url']}" if last else "no run yet"])
