"""The flow `merge_models`: a merge as six steps that Prefect retries, resumes, schedules and shows.

resolve_architecture -> map_slices -> download_model (each model) -> merge_layer (each unit) -> validate_merge
-> publish_merge; of a recipe with several stages, all are planned first.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

from prefect import flow
from prefect.client.schemas.objects import State
from prefect.exceptions import CancelledRun
from prefect.futures import PrefectFuture
from prefect.logging import get_run_logger
from prefect.states import Cancelled
from prefect.task_runners import TaskRunner, ThreadPoolTaskRunner
from prefect.utilities.annotations import opaque, quote
from pydantic import Field

from flows.naming import name_run, name_series, name_unplanned
from flows.reporting import RunWatch, current_watch, find_run_id
from flows.runners.runner import open_runner
from flows.secrets import token_from_block
from flows.server.leftovers import sign_run
from flows.steps import MergeSteps, RunOptions
from tasks.map import map_slices
from tasks.pages.failure import show_failure
from tasks.recipes import Recipe, parse_recipe, read_recipe
from tasks.resolve import resolve_architecture
from xmerge.config import DEFAULT_METHOD, MergeForm, take_recipe
from xmerge.errors import Interrupted
from xmerge.hub.faults import quiet_loggers
from xmerge.interrupt import stoppable
from xmerge.methods import list_methods
from xmerge.planning.downloads import FetchMode
from xmerge.stages import Stage, foresee_needed, open_stage, sweep_stages
from xmerge.work import open_work_folder

THREADS: TaskRunner[Any] = ThreadPoolTaskRunner(max_workers=512)
"""Wide enough for any `workers`, and for a cluster, for whose workers threads here wait: how many layers are in work
at once is decided for each run, in flows.runners.pacing."""

DEVICES = ["auto", "cpu", "cuda", *(f"cuda:{number}" for number in range(16))]
"""What Prefect's form offers as a menu, and all that its API takes; the library says whether there is such a one."""

METHODS = [method.name for method in list_methods()]
"""The same for methods."""


@flow(
    name="merge_models",
    flow_run_name=name_unplanned,
    task_runner=THREADS,
    persist_result=False,
    result_serializer="json",
    on_running=[sign_run],
)
def merge_models(
    recipe: str = "",
    *,
    out: str,
    base: str = "",
    donors: tuple[str, ...] = (),
    method: Annotated[str, Field(json_schema_extra={"enum": METHODS})] = DEFAULT_METHOD,
    parameters: dict[str, Any] = {},  # noqa: B006 - a form needs a default that JSON can say; nobody changes it
    settings: dict[str, Any] = {},  # noqa: B006 - as for parameters
    device: Annotated[str, Field(json_schema_extra={"enum": DEVICES})] = "auto",
    workers: Annotated[int, Field(ge=1)] = 2,
    store: str = "",
    seed: Annotated[int, Field(ge=0)] | None = None,
    trial: bool = True,
    fetch: FetchMode = "auto",
    task_runner: str = "thread",
) -> dict[str, Any] | State[Any]:
    """Merge the weights of language models into one checkpoint of the base's architecture.

    Args:
        recipe: The path of a recipe, or its YAML text; mergekit's work too. Leave it empty to say below what to merge.
        out: The folder to make. It appears whole or not at all; run the same again to resume.
        base: The model whose architecture the output has: a folder, or org/name[@revision] on the Hub.
        donors: The other models, named in the same way.
        method: How the models are combined; the command "xmerge methods NAME" says what each does.
        parameters: Of the method, such as {"t": 0.3} for slerp or {"weight": 0.5, "density": 0.6} for ties.
            One that differs between models: {"weight": {"org/donor": 0.7, "org/other": 0.3}}.
        settings: Other keys of a recipe, such as {"on_mismatch": "base", "layer_map": "proportional"}.
        device: Where to compute: auto, cpu, cuda, or one GPU such as cuda:0.
        workers: How many layers are merged at the same time.
        store: A folder that keeps merged layers for later merges that share them.
        seed: Takes the place of the recipe's random_seed.
        trial: Load the output with transformers, where it is installed, before it appears.
        fetch: From the Hub, whole shards, only the tensors that are read, or whichever is less (auto).
        task_runner: Where layers are merged: thread, dask or ray; dask:ADDRESS or ray:ADDRESS for a running cluster.
    """
    watch = current_watch()
    watch.flow_run_id = str(find_run_id())
    quiet_loggers()
    try:
        form = MergeForm(
            recipe=recipe, base=base, donors=donors, method=method, parameters=parameters, settings=settings
        )
        given = take_recipe(form)
        if not recipe:
            get_run_logger().info("the recipe that the form describes:\n%s", given)
        stages = read_recipe(given, seed)
        with token_from_block(), open_runner(task_runner) as runner, stoppable():
            options = RunOptions(device, workers, trial, fetch, runner)
            watch.outcome = _merge(watch, stages, Path(out), Path(store) if store else None, options)
    except (Interrupted, CancelledRun) as error:
        watch.tell_failure(error)
        return Cancelled(name="Interrupted", message=str(watch.failure))
    except Exception as error:
        watch.tell_failure(error)
        show_failure(error, name_series(watch, Path(out)))
        raise
    return watch.outcome


def _merge(
    watch: RunWatch, recipes: Sequence[Recipe], out: Path, store: Path | None, options: RunOptions
) -> dict[str, Any]:
    series = name_series(watch, out)
    stages, planned = _plan(watch, recipes, out, series)
    last = stages[-1]
    watch.flow_run_name = name_run(last.plan, series, options.device, options.runner.name)
    with open_work_folder(out, last.plan, store) as work:
        earlier, made, after = () if work.finished else stages[:-1], list[dict[str, Any]](), list(planned)
        sweep_stages(earlier, work)
        for recipe, stage in zip(recipes, earlier, strict=False):
            watch.reporter.stage(f"stage {stage.name}")
            watch.reporter.plan_ready(stage.plan)
            with open_stage(stage, work) as inner:
                steps = MergeSteps(recipe, stage.plan, inner, watch, f"{series} {stage.name}", stage.name)
                made.append(steps.carry_out(after, replace(options, trial=False)))
            after = steps.submitted[-1:]
        watch.reporter.plan_ready(last.plan)
        outcome = MergeSteps(recipes[-1], last.plan, work, watch, series).carry_out(after, options)
    return outcome | {key: sum(each[key] for each in (*made, outcome)) for key in ("layers", "reused")}


def _plan(
    watch: RunWatch, recipes: Sequence[Recipe], out: Path, series: str
) -> tuple[list[Stage], list[PrefectFuture[Any]]]:
    """Plan every stage before any weight is read; the stages, and the last task run of each."""
    planned, futures = dict[str, Stage](), list[PrefectFuture[Any]]()
    for recipe in recipes:
        watch.reporter.stage("resolve_architecture")
        config = parse_recipe(recipe)
        # quote and opaque: Prefect would look for futures in every tensor of every model.
        foreseen = quote(foresee_needed(config, planned, out))
        architecture: PrefectFuture[Any] = resolve_architecture.submit(
            recipe, foreseen, wait_for=futures[-1:], return_state=False
        )
        architecture.result()
        watch.reporter.stage("map_slices")
        made: PrefectFuture[Stage] = map_slices.submit(
            recipe,
            opaque(architecture),
            series if recipe is recipes[-1] else f"{series} {config.name}",
            return_state=False,
        )
        watch.task_runs += 2
        stage = made.result()
        planned[stage.name] = stage
        futures.append(made)
    return list(planned.values()), futures
