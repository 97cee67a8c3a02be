"""`xmerge serve`: runs that are started through the API, as the form of the pages does."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import FlowRun
from prefect.settings import PREFECT_API_URL

from flows.catalogue import FLOWS
from flows.server.zombies import NAME
from tests.flows.calls import Call
from tests.flows.tiny import Bench
from tests.servers.holding import holding
from tests.servers.processes import ROOT, list_descendants, wait_until
from tests.servers.reporting import reporting_to
from tests.servers.runs import find_deployment, start_run

pytestmark = pytest.mark.slow

SECONDS_TO_STOP = 10.0 * (3 if "CI" in os.environ or "PYTEST_XDIST_WORKER" in os.environ else 1)


@dataclass
class Serving:
    """A process that serves, and what it has said of itself."""

    call: Call
    said: dict[str, Any]

    def start(self, flow: str, **parameters: Any) -> FlowRun:
        """Ask for a run."""
        deployment = next(name for name in self.said["deployments"] if name.startswith(f"{flow}/"))
        return look(start_run(find_deployment(deployment), **parameters))


def look(run: Any) -> FlowRun:
    """A run as the server knows it now."""
    with get_client(sync_client=True) as client:
        return client.read_flow_run(run)


@pytest.fixture(scope="module")
def serving(tmp_path_factory) -> Iterator[Serving]:
    """The command on a machine on which nothing is set up."""
    place = Path(tmp_path_factory.mktemp("serving"))
    call = Call(place / "home", place / "serve.log", "serve", "--port", "0", "--limit", "2", "--json")
    try:
        said = call.wait_for_json()
        with reporting_to({PREFECT_API_URL: said["api"]}):
            yield Serving(call, said)
    finally:
        call.kill()


def test_a_run_is_carried_out_where_serve_was_started(bench: Bench, serving):
    """Every flow is offered; a merge with relative paths begins in the folder of the command, and completes."""
    assert len(serving.said["deployments"]) == len(FLOWS)
    run = serving.start("merge_models", recipe=bench.recipe(), out=os.path.relpath(bench.out, ROOT), trial=False)
    wait_until(lambda: look(run.id).state_type == "COMPLETED", "the run completes")
    assert (bench.out / "config.json").is_file()


def test_killed_runs_are_looked_for(serving):
    """The server has the automation that ends runs without a heartbeat."""
    with get_client(sync_client=True) as client:
        assert client.find_automation(NAME) is not None


def test_the_end_of_serving_stops_what_runs(bench: Bench, serving):
    """Ctrl-C ends the command within seconds with exit 0; all runs are cancelled, and their finished layers stay."""
    outs = bench.out, bench.place / "other"
    with holding(bench) as wait_for_middle:
        runs = [serving.start("merge_models", recipe=bench.recipe(), out=str(out), trial=False) for out in outs]
        wait_for_middle(*(out.name for out in outs))
        started = list_descendants(serving.call.process.pid)
        # Somebody looks at the pages meanwhile, and so the server stays.
        pages = Call(serving.call.log.parent / "home", bench.place / "ui.log", "ui", "--port", "0", "--json")
        try:
            pages.wait_for_json()
            begun = time.monotonic()
            assert serving.call.end_as_a_terminal_does() == 0
            assert time.monotonic() - begun < SECONDS_TO_STOP
            assert not [pid for pid in started if Path(f"/proc/{pid}").exists()]
            assert [look(run.id).state_type for run in runs] == ["CANCELLED"] * 2
        finally:
            pages.kill()
    for out in outs:
        assert not out.exists()
        assert list(bench.place.glob(f".{out.name}.xmerge/store/*/*.safetensors"))
    assert "Traceback" not in "\n".join(serving.call.read())
