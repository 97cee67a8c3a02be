"""What is killed half-way, the server or the worker with its run, costs no finished layer."""

from __future__ import annotations

from collections import Counter
from datetime import UTC, datetime, timedelta
from uuid import UUID

import pytest
from prefect.client.orchestration import get_client

from deployments.prepare import POOLS
from flows.server.zombies import NAME, end_zombies
from tests.flows.tiny import Bench, digest
from tests.servers.command import Command
from tests.servers.holding import count_layers, holding
from tests.servers.processes import wait_until
from tests.servers.runs import (
    LAYER_RUNS,
    TASKS,
    UNHURRIED,
    deploy,
    has_ended,
    read_logs,
    read_run,
    read_tasks,
    start_run,
    tell,
    wait_for_end,
)
from tests.servers.server import Server
from tests.servers.worker import Worker

pytestmark = pytest.mark.slow

SECONDS_BETWEEN_HEARTBEATS = 30
"""The fewest that Prefect takes."""
SECONDS_WITHOUT_HEARTBEAT = 45


def test_a_server_that_is_killed_and_comes_back_is_told_everything(
    bench: Bench, server: Server, worker, unhurried: UUID, wanted
):
    """The command and the deployed run, both half-way, go on without it; afterwards it knows each task of both."""
    with holding(bench) as wait_for_middle:
        command = Command(server.url, bench.recipe_file(), bench.place / "typed")
        run = start_run(unhurried, recipe=bench.recipe(), out=str(bench.place / "deployed"), trial=False)
        wait_for_middle("typed", "deployed")
        server.kill()
        server.start()
    outcome = command.take_outcome()
    wait_for_end(run)
    for each, name in ((UUID(outcome["flow_run"]["id"]), "typed"), (run, "deployed")):
        assert digest(bench.place / name) == wanted
        assert read_run(each).state_name == "Completed"
        assert Counter(task.state_name for task in read_tasks(each, TASKS)) == {"Completed": TASKS}


def test_a_worker_that_is_killed_with_its_run_is_replaced(bench: Bench, worker: Worker, wanted):
    """While it lives the run is left alone; then it ends as crashed, and a new worker merges only what is missing."""
    parameters = {"recipe": bench.recipe(), "out": str(bench.out), "trial": False}
    env = {"PREFECT_FLOWS_HEARTBEAT_FREQUENCY": str(SECONDS_BETWEEN_HEARTBEATS)}
    heard = deploy(UNHURRIED, "heard", POOLS["process"].name, job_variables={"env": env})
    with get_client(sync_client=True) as client:
        end_zombies(client, within=timedelta(seconds=SECONDS_WITHOUT_HEARTBEAT))
        with holding(bench) as wait_for_middle:
            killed = start_run(heard, **parameters)
            wait_for_middle("out")
            wait_until(lambda: count_seconds(killed) > SECONDS_WITHOUT_HEARTBEAT + 5, "one heartbeat was not enough")
            assert not has_ended(killed)
            worker.kill()
        kept = count_layers(bench, "out")
        assert not bench.out.exists()
        worker.start()
        wait_until(lambda: has_ended(killed), "the run that nobody speaks for has crashed")
        automation = client.find_automation(NAME)
        assert automation is not None
        client.delete_automation(automation.id)
    assert read_run(killed).state_name == "Crashed"
    assert "Run it again to resume" in tell(read_run(killed))
    (again,) = wait_for_end(start_run(heard, **parameters))
    assert again.state_name == "Completed"
    assert digest(bench.out) == wanted
    # A log comes later than the state.
    wait_until(lambda: f"{kept} of {LAYER_RUNS} layers reused" in read_logs(again.id), f"{kept} layers are reused", 20)


def count_seconds(run: UUID) -> float:
    """How long ago a run began to work."""
    began = read_run(run).start_time
    assert began is not None
    return (datetime.now(UTC) - began).total_seconds()
