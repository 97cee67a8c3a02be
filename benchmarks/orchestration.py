"""Time what orchestration costs a merge: whole commands over tiny layers, in which there is little else.

Usage: python benchmarks/orchestration.py FOLDER [ROUNDS], in a checkout. It writes two pairs of small models, one that
is merged by 4 tasks and one by 32, starts Prefect servers on SQLite and, where it is installed, on PostgreSQL, and
calls the command in each way in turns. What a task and what a run costs follows from the two medians.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.servers.postgres import find_programs, running_postgres
from tests.servers.server import Server
from tests.small_merges import write_model
from xmerge.architecture import resolve
from xmerge.config import parse_config
from xmerge.planning import map_slices

LAYERS = {4: 2, 32: 30}
"""Layer tasks -> layers of the model; before and after the layers is one task more each."""
ROUNDS = 5
RECIPE = """\
merge_method: slerp
base_model: base-{tasks}
models: [{{model: base-{tasks}}}, {{model: donor-{tasks}}}]
parameters: {{t: 0.3}}
"""
EMPTY_TASKS = """
import sys
from prefect import flow, task
from prefect_dask import DaskTaskRunner

@task
def nothing(number): return number

cluster = {"n_workers": 2, "threads_per_worker": 1, "dashboard_address": "127.0.0.1:0"}

@flow(task_runner=DaskTaskRunner(cluster_kwargs=cluster))
def many(count): return [future.result() for future in [nothing.submit(number) for number in range(count)]]

if __name__ == "__main__":
    many(int(sys.argv[1]))
"""


@dataclass(frozen=True)
class Way:
    """A way to carry out a merge."""

    name: str
    options: tuple[str, ...] = ()
    api: str | None = None
    """The address of a running server."""
    program: Path | None = None
    """What is called instead of a merge."""


def main(folder: Path, rounds: int) -> None:
    """Time every way, and print a table."""
    folder.mkdir(parents=True, exist_ok=True)
    for tasks, layers in LAYERS.items():
        write_pair(folder, tasks, layers)
    with contextlib.ExitStack() as servers:
        ways = list_ways(folder, servers)
        for way in ways:  # Not counted: databases and caches fill.
            call(way, folder, min(LAYERS))
        seconds = {(way.name, tasks): list[float]() for way in ways for tasks in LAYERS}
        for _ in range(rounds):
            for way in ways:
                for tasks in LAYERS:
                    seconds[way.name, tasks].append(call(way, folder, tasks))
        sys.stdout.write(f"{draw_table(ways, seconds)}\n")


def write_pair(folder: Path, tasks: int, layers: int) -> None:
    """Two models and a recipe that merges them by so many layer tasks."""
    for seed, name in enumerate((f"base-{tasks}", f"donor-{tasks}")):
        shutil.rmtree(folder / name, ignore_errors=True)
        write_model(folder / name, seed=seed, num_hidden_layers=layers)
    recipe = RECIPE.format(tasks=tasks)
    (folder / f"{tasks}.yml").write_text(recipe, encoding="utf-8")
    config = parse_config(recipe, "recipe", folder)
    assert len(map_slices(config, resolve(config)).layers) == tasks


def list_ways(folder: Path, servers: contextlib.ExitStack) -> list[Way]:
    """Every way there is on this machine, with the servers that some of them need."""
    lite = servers.enter_context(running_server(folder / "sqlite", f"sqlite+aiosqlite:///{folder}/sqlite/prefect.db"))
    ways = [
        Way("`--direct`, without Prefect", ("--direct",)),
        Way("embedded server (SQLite)"),
        Way("server on SQLite", api=lite),
    ]
    programs = find_programs()
    if programs is not None:
        database = servers.enter_context(running_postgres(programs))
        ways.append(Way("server on PostgreSQL", api=servers.enter_context(running_server(folder / "pg", database))))
    empty = folder / "empty_tasks.py"
    empty.write_text(EMPTY_TASKS, encoding="utf-8")
    return [
        *ways,
        Way("`--task-runner dask`, server on SQLite", ("--task-runner", "dask"), lite),
        Way("`--task-runner ray`, server on SQLite", ("--task-runner", "ray"), lite),
        Way("empty task runs on Dask's workers (prefect-dask), server on SQLite", api=lite, program=empty),
    ]


@contextlib.contextmanager
def running_server(home: Path, database: str) -> Iterator[str]:
    """The address of a Prefect server."""
    shutil.rmtree(home, ignore_errors=True)
    home.mkdir()
    server = Server(home, database)
    server.start()
    try:
        yield server.url
    finally:
        server.stop()


def call(way: Way, folder: Path, tasks: int) -> float:
    """Seconds that one command takes, from its start to its end."""
    out = folder / "out"
    shutil.rmtree(out, ignore_errors=True)
    command = [sys.executable, "-m", "xmerge", "merge", f"{tasks}.yml", str(out), "--workers", "2"]
    command += ["--skip-trial-load", "--quiet", *way.options]
    if way.program is not None:
        command = [sys.executable, str(way.program), str(tasks)]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
    environment |= {"PREFECT_HOME": str(folder / "home"), "DO_NOT_TRACK": "1"}
    environment |= {"PREFECT_API_URL": way.api} if way.api else {}
    started = time.perf_counter()
    subprocess.run(command, cwd=folder, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, check=True)
    seconds = time.perf_counter() - started
    sys.stderr.write(f"{way.name}, {tasks} layer tasks: {seconds:.2f} s\n")
    return seconds


def draw_table(ways: list[Way], seconds: dict[tuple[str, int], list[float]]) -> str:
    """Medians and ranges, and what follows from them, in Markdown."""
    few, many = LAYERS
    lines = [
        f"| way | {few} layer tasks, s | {many} layer tasks, s | each layer task, ms | the rest of a run, s |",
        "| --- | --- | --- | --- | --- |",
    ]
    for way in ways:
        less, more = seconds[way.name, few], seconds[way.name, many]
        each = (statistics.median(more) - statistics.median(less)) / (many - few)
        rest = statistics.median(less) - few * each
        lines.append(f"| {way.name} | {tell(less)} | {tell(more)} | {1000 * each:.0f} | {rest:.1f} |")
    return "\n".join(lines)


def tell(values: list[float]) -> str:
    """Median and range."""
    return f"{statistics.median(values):.2f} ({min(values):.2f} to {max(values):.2f})"


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve(), int(sys.argv[2]) if len(sys.argv) > 2 else ROUNDS)
