from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from datetime import timedelta
from uuid import UUID

import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import DeploymentScheduleCreate, DeploymentUpdate
from prefect.client.schemas.objects import StateType
from prefect.client.schemas.schedules import CronSchedule
from prefect.events import emit_event
from prefect.states import Crashed, Running

from flows.server.zombies import end_zombies
from tests.deployments.preparing import list_deployments, prepare, run_prepare, take_stock
from tests.flows.tiny import LAYERS, Bench
from tests.servers.processes import ROOT, clean_environment, wait_until
from tests.servers.runs import UNHURRIED, deploy, has_ended, make_pool, read_run, start_run, tell, wait_for_end
from tests.servers.server import Server
from tests.servers.worker import Worker

pytestmark = pytest.mark.slow

POOLS = ("--pool", "process", "--pool", "docker", "--pool", "kubernetes")


def test_an_empty_server_gets_everything_and_is_told_so(prepared: list[str]):
    """Each work pool, each deployment and the automation is made, and the next step is named."""
    made = [line for line in prepared if line.endswith(": made")]
    assert sorted(line.split()[0] for line in made) == ["automation", *["deployment"] * 17, *["work"] * 3]
    assert prepared[-3:] == [
        f"its runs wait for a worker: prefect worker start --pool {pool}"
        for pool in ("xmerge", "xmerge-docker", "xmerge-kubernetes")
    ]


def test_a_second_time_changes_nothing(server: Server, prepared):
    """A server that is prepared stays as it is, to the time at which each thing was changed last."""
    before = take_stock()
    said = run_prepare(server.url, *POOLS)
    assert [line.replace(": made", ": there") for line in prepared] == said
    assert take_stock() == before


def test_prefect_deploys_the_same_from_the_root_of_the_checkout(server: Server, prepared):
    """`prefect deploy --all` needs no answer and no option, and leaves what the command leaves."""
    command = [sys.executable, "-m", "prefect", "deploy", "--all", "--prefect-file", "deployments/prefect.yaml"]
    environment = clean_environment() | {"PREFECT_API_URL": server.url, "DO_NOT_TRACK": "1"}
    ran = subprocess.run(
        command, cwd=ROOT, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert ran.stdout.count("successfully created") == 6
    assert not [line for line in run_prepare(server.url) if line.endswith((": made", ": changed"))]


def test_what_differs_from_the_file_is_put_right_and_schedules_are_left(server: Server, prepared):
    """A deployment becomes what its file says again; a schedule that somebody has switched on stays on."""
    watch = list_deployments()["watch"]
    with get_client(sync_client=True) as client:
        (nightly,) = watch.schedules
        client.update_deployment_schedule(watch.id, nightly.id, active=True)
        late = DeploymentScheduleCreate(schedule=CronSchedule(cron="0 5 * * *"), active=False)
        client.create_deployment_schedules(watch.id, [late])
        client.update_deployment(watch.id, DeploymentUpdate(tags=["mine"], concurrency_limit=None))
    assert "deployment watch_sources/watch: changed" in run_prepare(server.url)
    after = list_deployments()["watch"]
    assert after.tags == ["xmerge"]
    assert after.global_concurrency_limit is not None and after.global_concurrency_limit.limit == 1
    schedules = {each.slug: each for each in after.schedules}
    assert {slug: each.active for slug, each in schedules.items()} == {"nightly": True, None: False}
    with get_client(sync_client=True) as client:
        client.update_deployment_schedule(after.id, schedules["nightly"].id, active=False)
        client.delete_deployment_schedule(after.id, schedules[None].id)


def test_deployments_have_their_forms_schedules_and_limits(prepared):
    """What the file says of a deployment is what the server does."""
    found = list_deployments()
    form = found["merge"].parameter_openapi_schema
    assert form is not None and set(form["properties"]) >= {"recipe", "out", "device", "workers"}
    (nightly,) = found["watch"].schedules
    assert (nightly.schedule, nightly.active) == (CronSchedule(cron="0 3 * * *", timezone="UTC"), False)
    gpu = found["merge-gpu0"]
    assert gpu.global_concurrency_limit is not None and gpu.concurrency_options is not None
    assert (gpu.global_concurrency_limit.limit, gpu.concurrency_options.collision_strategy) == (1, "ENQUEUE")
    assert gpu.job_variables["env"]["CUDA_VISIBLE_DEVICES"] == "0"
    assert found["merge"].job_variables["env"]["CUDA_VISIBLE_DEVICES"] == ""


def test_a_worker_merges_and_a_watch_finds_nothing_new(bench: Bench, worker, prepared):
    """Deployed runs complete, a relative path begins where the worker is told, and what has not moved is not merged."""
    found = list_deployments()
    recipe, watched = bench.recipe(), str(bench.place / "watched")
    merged, first = wait_for_end(
        start_run(found["merge"].id, recipe=recipe, out="merged", trial=False),
        start_run(found["watch"].id, recipe=recipe, out=watched, trial=False),
    )
    assert (merged.state_name, first.state_name) == ("Completed", "Completed"), (tell(merged), tell(first))
    assert len(list((worker / "merged").glob("*.safetensors"))) > LAYERS
    (again,) = wait_for_end(start_run(found["watch"].id, recipe=recipe, out=watched, trial=False))
    assert tell(again).startswith("nothing new: latest is ")


@pytest.fixture(scope="module")
def unhurried(server: Server) -> UUID:
    """A deployment of the flow with layers that take their time, in a pool of its own."""
    make_pool()
    return deploy(UNHURRIED, "unhurried")


@pytest.fixture
def doomed(server: Server, unhurried, tmp_path) -> Iterator[Worker]:
    """A worker of that pool, which a test may kill."""
    worker = Worker(tmp_path, server.url, "xmerge-tests")
    worker.start()
    try:
        yield worker
    finally:
        worker.kill()


def start_and_wait_for_a_layer(deployment: UUID, bench: Bench) -> UUID:
    """A run that is half-way through its layers."""
    run = start_run(deployment, recipe=bench.recipe(), out=str(bench.out), trial=False)
    wait_until(lambda: list(bench.place.glob(".out.xmerge/store/*/*.json")), "a layer is in the store")
    return run


def test_a_run_that_is_killed_with_its_worker_has_crashed(bench: Bench, doomed: Worker, unhurried: UUID):
    """When its heartbeats stay away, a run of ours ends as crashed and says what to do; another flow's does not."""
    with get_client(sync_client=True) as client:
        assert end_zombies(client, timedelta(seconds=10)) in {"made", "changed"}
        # First, so that its time is up when that of ours is.
        other = begin_run_of_another_flow()
        run = start_and_wait_for_a_layer(unhurried, bench)
        doomed.kill()
        wait_until(lambda: has_ended(run), "the killed run has ended")
        assert read_run(run).state_type == StateType.CRASHED
        assert tell(read_run(run)) == (
            "No heartbeat for 10 s: its process or its machine is gone. Run it again to resume."
        )
        assert read_run(other).state_type == StateType.RUNNING
        assert end_zombies(client) == "changed"
        assert end_zombies(client) == "there"


def test_a_run_that_was_taken_for_dead_ends_as_what_it_is(bench: Bench, doomed: Worker, unhurried: UUID):
    """A run whose heartbeats did not get through, as while a server is away, goes on and is shown as completed."""
    run = start_and_wait_for_a_layer(unhurried, bench)
    with get_client(sync_client=True) as client:
        client.set_flow_run_state(run, Crashed(message="No heartbeat"))
    assert read_run(run).state_type == StateType.CRASHED
    wait_until(lambda: read_run(run).state_type == StateType.COMPLETED, "the run has completed")
    assert (bench.out / "provenance.json").is_file()


def begin_run_of_another_flow() -> UUID:
    """A run that lives elsewhere, of which the server hears one heartbeat and nothing more."""
    with get_client(sync_client=True) as client:
        flow = client.create_flow_from_name("another")
        body = {"flow_id": str(flow), "state": Running().model_dump(mode="json", include={"type", "name"})}
        run = UUID(client.request("POST", "/flow_runs/", json=body).json()["id"])
    emit_event(
        event="prefect.flow-run.heartbeat",
        resource={"prefect.resource.id": f"prefect.flow-run.{run}"},
        related=[
            {
                "prefect.resource.id": f"prefect.flow.{flow}",
                "prefect.resource.role": "flow",
                "prefect.resource.name": "another",
            }
        ],
    )
    return run


def test_a_server_that_is_not_there_is_an_error_that_names_it():
    """A wrong address ends with exit 2, after the time that was given for waiting, and says what to look at."""
    ran = prepare("http://127.0.0.1:9/api", "--wait", "1")
    assert ran.exit_code == 2
    assert ran.stderr == (
        "PlanError: the Prefect server at http://127.0.0.1:9/api cannot be used.\n"
        "  at: PREFECT_API_URL\n"
        "  why: [Errno 111] Connection refused\n"
        "  do: see that the address ends in /api, that 'prefect server start' runs there, and, where it asks for a "
        "password, that PREFECT_API_AUTH_STRING has it.\n"
    )


def test_an_address_of_something_else_is_not_waited_for(server: Server):
    """A server that answers without being Prefect's API is refused at once."""
    ran = prepare(server.url.removesuffix("/api"), "--wait", "600")
    assert ran.exit_code == 2
    assert "404" in ran.stderr


def test_no_address_is_an_error_that_says_what_to_set(tmp_path):
    """Without a server's address the command ends with exit 2, and starts none of its own."""
    ran = subprocess.run(
        [sys.executable, "-m", "deployments.prepare"],
        cwd=ROOT,
        env=clean_environment() | {"PREFECT_HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 2
    assert ran.stderr == (
        "ConfigError: no Prefect server is named.\n"
        "  at: PREFECT_API_URL\n"
        "  do: start one with 'prefect server start' and set PREFECT_API_URL to its address, "
        "such as http://127.0.0.1:4200/api.\n"
    )
