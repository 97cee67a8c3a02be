"""Layers on the workers of a cluster: real Dask and Ray processes, killed, stopped and cut off from the storage."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from prefect.exceptions import CancelledRun

from tests.flows import unhurried_workers
from tests.flows.history import last_run
from tests.flows.tiny import LAYERS, Bench, digest
from tests.flows.unhurried_workers import DEADLY, ENDLESS, SECONDS_A_UNIT
from tests.servers.processes import find_port, list_descendants
from xmerge.config import parse_config
from xmerge.errors import PlanError, StorageError, WorkerLostError
from xmerge.interrupt import request_stop
from xmerge.run import merge
from xmerge.runners import RunnerName

if TYPE_CHECKING:
    from distributed import Client

pytestmark = [
    pytest.mark.slow,
    pytest.mark.usefixtures("api_url"),
]

UNITS = LAYERS + 2
TASKS = UNITS + 7
"""One more than in threads: `check_storage`."""
DEATHS_ALLOWED = 1
UNSHARE = shutil.which("unshare") or ""
CAN_HIDE = bool(UNSHARE) and subprocess.run([UNSHARE, "--mount", "true"], check=False).returncode == 0
ROOT = Path(__file__).resolve().parents[2]
WORKER = "distributed.cli.dask_worker"


@pytest.fixture(scope="module")
def dask_cluster() -> Iterator[Client]:
    """Two worker processes with unhurried layers, each started again when it dies."""
    import dask
    from distributed import Client, LocalCluster

    from flows.runners.dask import LOCAL

    with (
        dask.config.set({"distributed.scheduler.allowed-failures": DEATHS_ALLOWED}),
        # Without TLS, whose certificates a worker from elsewhere would need.
        LocalCluster(**LOCAL | {"security": None}, n_workers=2, preload=[unhurried_workers.__file__]) as cluster,
        Client(cluster, set_as_default=False) as client,
    ):
        yield client


@pytest.fixture
def workers(dask_cluster) -> Client:
    """The same, when both are there."""
    dask_cluster.wait_for_workers(2, timeout=120)
    return dask_cluster


@pytest.fixture(scope="module")
def ray_workers() -> Iterator[None]:
    """Two workers of a Ray cluster in this process's care, with unhurried layers; the flow takes them as they are."""
    import ray

    from flows.runners.ray import LOCAL, QUIET

    hook = {"worker_process_setup_hook": unhurried_workers.slow_down}
    ray.init(**LOCAL, **QUIET, num_cpus=2, runtime_env=hook)
    yield
    ray.shutdown()


@pytest.fixture(scope="module")
def expected(models, tmp_path_factory) -> str:
    """The digest of the same merge by the plain loop."""
    bench = Bench(models, tmp_path_factory.mktemp("expected"))
    merge(parse_config(bench.recipe(), "the recipe"), bench.out, trial=False)
    return digest(bench.out)


def name_of(cluster: Client) -> str:
    """What `--task-runner` calls a running cluster."""
    return f"dask:{cluster.scheduler.address}"


@contextmanager
def when_done(count: int, act: Callable[[], object]) -> Iterator[None]:
    """Let a flow that is called meanwhile do something when so many layers are done."""
    from flows.reporting import LogReporter, RunWatch, watch_run

    class Reporter(LogReporter):
        def layer_done(self, result: Any, done: int, total: int) -> None:
            if done == count:
                act()

    watch_run(RunWatch(Reporter()))
    try:
        yield
    finally:
        watch_run(RunWatch())


def test_workers_of_a_cluster_make_the_bytes_of_the_plain_loop(bench: Bench, workers, expected):
    """The output is the same to the byte, and the pages of the run show each step, with the worker in the log."""
    bench.merge(task_runner=name_of(workers))
    assert digest(bench.out) == expected
    run = last_run(TASKS)
    assert run.layer_states == {"Completed": UNITS}
    assert "check_storage" in run.names


def test_the_layers_of_a_killed_worker_are_made_by_another(bench: Bench, workers, expected):
    """After SIGKILL of a worker that merges a layer, the run goes on to the same bytes."""
    killed = list[int]()

    def kill() -> None:
        assert wait_until(lambda: any(workers.processing().values()))
        busy = next(address for address, keys in workers.processing().items() if keys)
        killed.append(workers.run(os.getpid, workers=[busy])[busy])
        os.kill(killed[0], signal.SIGKILL)

    with when_done(2, kill):
        bench.merge(task_runner=name_of(workers))
    assert not Path(f"/proc/{killed[0]}").exists()
    assert digest(bench.out) == expected


def test_a_layer_that_kills_every_worker_is_named(bench: Bench, workers, expected):
    """It fails the run after some deaths, with what to look at; the rest is kept, and the next run ends well."""
    bench.store.mkdir()
    deadly = bench.store / f"{DEADLY}3"
    deadly.touch()
    with pytest.raises(WorkerLostError) as caught:
        bench.merge(store=str(bench.store), task_runner=name_of(workers))
    assert str(caught.value).startswith("workers die of layer 2, again and again.")
    assert f"{DEATHS_ALLOWED + 1} workers have died" in str(caught.value)
    assert "memory" in (caught.value.remedy or "")
    deadly.unlink()
    workers.wait_for_workers(2, timeout=120)
    assert bench.merge(store=str(bench.store), task_runner=name_of(workers))["reused"] > 0
    assert digest(bench.out) == expected


def test_a_stop_reaches_the_workers_and_leaves_them_alive(bench: Bench, workers, expected):
    """What the workers have under way ends soon, the cluster goes on, and the same call resumes."""

    def stop_soon() -> None:
        (bench.store / ENDLESS).touch()
        threading.Timer(5 * SECONDS_A_UNIT, request_stop).start()

    with when_done(2, stop_soon), pytest.raises(CancelledRun):
        bench.merge(store=str(bench.store), task_runner=name_of(workers))
    assert wait_until(lambda: not any(workers.run(count_under_way).values()))
    (bench.store / ENDLESS).unlink()
    assert bench.merge(store=str(bench.store), task_runner=name_of(workers))["reused"] >= 2
    assert digest(bench.out) == expected


def test_a_scheduler_that_dies_is_told(bench: Bench, monkeypatch):
    """The run fails with what to do, not with what a broken connection says."""
    import dask

    from tasks import workers

    monkeypatch.setattr(workers, "SECONDS_BETWEEN_COUNTS", 0.5)
    monkeypatch.setattr(workers, "SECONDS_WITHOUT_WORKERS", 1.0)
    address = f"tcp://127.0.0.1:{find_port()}"
    dask_command = [sys.executable, "-m", "distributed.cli.dask_scheduler", "--no-dashboard", "--no-show"]
    worker = [sys.executable, "-m", WORKER, address, "--no-nanny", "--nthreads", "1", "--no-dashboard"]
    started = [
        subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=ROOT)
        for command in (
            [*dask_command, "--host", address],
            [*worker, "--preload", unhurried_workers.__file__],
        )
    ]
    bench.store.mkdir()

    def kill() -> None:
        (bench.store / ENDLESS).touch()
        started[0].kill()

    try:
        assert wait_until(lambda: answers(address))
        with (
            dask.config.set({"distributed.comm.timeouts.connect": "1s"}),
            when_done(1, kill),
            pytest.raises(WorkerLostError) as caught,
        ):
            bench.merge(store=str(bench.store), task_runner=f"dask:{address}")
    finally:
        for process in started:
            process.kill()
            process.wait()
    assert "run the same command again" in (caught.value.remedy or "")


@pytest.mark.parametrize("kind", ["dask", "ray"])
def test_whoever_takes_the_call_and_says_nothing_is_named(bench: Bench, monkeypatch, kind):
    """A port where something else listens refuses the run in seconds."""
    monkeypatch.setattr(import_module(f"flows.runners.{kind}"), "SECONDS_TO_CONNECT", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = f"127.0.0.1:{listener.getsockname()[1]}"
        with pytest.raises(PlanError) as caught:
            bench.merge(task_runner=f"{kind}:{address}")
    assert caught.value.what == f"the {kind.title()} cluster at {address} does not answer as {kind.title()} does."


@pytest.mark.skipif(not CAN_HIDE, reason="a worker cannot be given a file system of its own here (unshare -m)")
def test_a_worker_without_the_storage_is_named(bench: Bench, workers):
    """A worker whose machine has other folders in the places of ours fails the run before any weight is read."""
    script = 'mount -t tmpfs none "$1" && shift && exec "$@"'
    hidden = [UNSHARE, "--mount", "sh", "-c", script, "sh", str(bench.place), sys.executable, "-m", WORKER]
    with one_more_worker(workers, hidden, ROOT), pytest.raises(StorageError) as caught:
        bench.merge(task_runner=name_of(workers))
    assert "does not see the storage of this merge" in caught.value.what
    assert str(bench.place) in (caught.value.where or "")
    assert "docs/scaling.md" in (caught.value.remedy or "")
    assert not bench.out.exists()


def test_a_worker_needs_nothing_but_xmerge(bench: Bench, workers, expected):
    """One that has the library, and neither flows nor tasks on its path, is asked and merges like the others."""
    (bench.place / "path").mkdir()
    (bench.place / "path" / "xmerge").symlink_to(ROOT / "xmerge")
    script = "import runpy, sys; sys.path[:] = [sys.argv.pop(1), *(each for each in sys.path if each != sys.argv[1])]; "
    script += f"del sys.argv[1]; runpy.run_module({WORKER!r}, run_name='__main__')"
    command = [sys.executable, "-c", script, str(bench.place / "path"), str(ROOT)]
    with one_more_worker(workers, command, bench.place) as address:
        assert workers.run(find_spec, "flows", workers=[address]) == {address: None}
        bench.merge(task_runner=name_of(workers))
    assert digest(bench.out) == expected


def test_a_recipe_that_fails_on_a_cluster_does_not_stop_the_next(bench: Bench, workers, expected):
    """Layers of it that are under way end; those of the next recipe are not among them."""
    from safetensors.torch import load_file, save_file

    from flows.many import merge_many

    shutil.copytree(bench.models / "donor", bench.place / "bad")
    weights = load_file(bench.place / "bad" / "model.safetensors")
    weights["model.layers.0.mlp.up_proj.weight"][0, 0] = float("nan")
    save_file(weights, bench.place / "bad" / "model.safetensors", metadata={"format": "pt"})
    bad, good = bench.place / "bad.yml", bench.place / "good.yml"
    good.write_text(bench.recipe(), encoding="utf-8")
    bad.write_text(bench.recipe().replace(str(bench.models / "donor"), str(bench.place / "bad")), encoding="utf-8")
    state = merge_many(
        [str(bad), str(good)], str(bench.out), trial=False, task_runner=name_of(workers), return_state=True
    )
    assert state.is_failed()
    assert state.message == "1 of 2 recipes are merged; failed: bad.yml"
    assert digest(bench.out / "good") == expected


def test_many_recipes_share_one_cluster(bench: Bench, workers, monkeypatch, expected):
    """A cluster of this machine's is started once for all of them, not at all where nothing is to be done, and ends.

    Its workers leave Ctrl-C to this process.
    """
    from flows.many import merge_many
    from flows.runners import dask as dask_workers

    before, opened, real = list_dask_workers(), list[int](), dask_workers.open_dask
    deaf = list[bool]()

    @contextmanager
    def count(name: RunnerName, workers: int) -> Iterator[Any]:
        opened.append(workers)
        with real(name, workers) as cluster:
            deaf.extend(ignores_interrupts(pid) for pid in list_dask_workers() if pid not in before)
            yield cluster

    monkeypatch.setattr(dask_workers, "open_dask", count)
    recipes = [bench.place / "one.yml", bench.place / "two.yml"]
    for recipe, t in zip(recipes, (0.3, 0.6), strict=True):
        recipe.write_text(bench.recipe(t), encoding="utf-8")
    for _ in range(2):
        state = merge_many(
            list(map(str, recipes)), str(bench.out), workers=1, trial=False, task_runner="dask", return_state=True
        )
        assert state.is_completed()
    assert (opened, deaf) == ([1], [True])
    assert digest(bench.out / "one") == expected
    assert list_dask_workers() == before


def test_ray_gives_the_layers_of_a_killed_worker_to_another(bench: Bench, ray_workers, expected):
    """After SIGKILL of a worker that merges a layer, the run goes on to the bytes of the plain loop."""
    killed = list[int]()

    def kill() -> None:
        assert wait_until(lambda: bool(list_ray_workers()))
        killed.append(list_ray_workers()[0])
        os.kill(killed[0], signal.SIGKILL)

    with when_done(2, kill):
        bench.merge(task_runner="ray")
    assert killed[0] not in list_ray_workers()
    assert last_run(TASKS).layer_states == {"Completed": UNITS}
    assert digest(bench.out) == expected


def test_a_process_in_a_ray_cluster_does_not_go_to_another(ray_workers):
    """An address is not passed over in favour of the cluster that is there."""
    from flows.runners.ray import open_ray

    with pytest.raises(PlanError, match="in a Ray cluster already"), open_ray(RunnerName(kind="ray", address="h:1"), 1):
        pass


def test_a_stop_reaches_the_workers_of_ray(bench: Bench, ray_workers, expected):
    """What they have under way ends soon, and the same call resumes."""

    def stop_soon() -> None:
        (bench.store / ENDLESS).touch()
        threading.Timer(5 * SECONDS_A_UNIT, request_stop).start()

    with when_done(2, stop_soon), pytest.raises(CancelledRun):
        bench.merge(store=str(bench.store), task_runner="ray")
    assert wait_until(lambda: not list_ray_workers())
    (bench.store / ENDLESS).unlink()
    assert bench.merge(store=str(bench.store), task_runner="ray")["reused"] >= 2
    assert digest(bench.out) == expected


def list_dask_workers() -> list[int]:
    """The worker processes that this one has started, by way of multiprocessing."""
    return sorted(pid for pid in list_descendants(os.getpid()) if b"spawn_main" in read_command(pid))


def ignores_interrupts(pid: int) -> bool:
    """Whether SIGINT passes a process by."""
    status = Path(f"/proc/{pid}/status").read_text(encoding="ascii")
    ignored = next(line.split()[1] for line in status.splitlines() if line.startswith("SigIgn:"))
    return bool(int(ignored, 16) >> (signal.SIGINT - 1) & 1)


def list_ray_workers() -> list[int]:
    """The processes of this one's cluster that merge a layer; Ray names a process after what it does."""
    return [pid for pid in list_descendants(os.getpid()) if b"ray::merge_unit" in read_command(pid)]


def read_command(pid: int) -> bytes:
    """The command line of a process; empty if it has ended."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


@contextmanager
def one_more_worker(cluster: Client, command: list[str], folder: Path) -> Iterator[str]:
    """One that a command starts in a folder; its address."""
    before = set(cluster.nthreads())
    worker = subprocess.Popen(
        [*command, cluster.scheduler.address, "--no-nanny", "--nthreads", "1", "--no-dashboard"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        cwd=folder,
    )
    try:
        assert wait_until(lambda: len(cluster.nthreads()) == 3)
        yield next(address for address in cluster.nthreads() if address not in before)
    finally:
        worker.kill()
        worker.wait()
        assert wait_until(lambda: len(cluster.nthreads()) == 2)


def answers(address: str) -> bool:
    """Whether somebody listens there."""
    host, port = address.removeprefix("tcp://").split(":")
    try:
        socket.create_connection((host, int(port)), 1).close()
    except OSError:
        return False
    return True


def count_under_way(dask_worker: Any) -> int:
    """How many calls a worker is carrying out."""
    return int(dask_worker.state.executing_count)


def wait_until(true: Callable[[], bool], patience: float = 30.0) -> bool:
    """Whether something becomes true before patience ends."""
    deadline = time.monotonic() + patience
    while not true():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True
