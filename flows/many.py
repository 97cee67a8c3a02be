"""The flow `merge_many`: many recipes one after the other, with one store; what fails does not stop the rest."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from prefect import flow, runtime
from prefect.client.schemas.objects import State
from prefect.exceptions import CancelledRun
from prefect.logging import get_run_logger
from prefect.states import Cancelled, Completed, Failed
from pydantic import Field

from flows.merge import DEVICES, merge_models
from flows.naming import name_series
from flows.reporting import current_watch, find_run_id, watch_child
from flows.runners.runner import open_runner
from flows.server.leftovers import sign_run
from tasks.pages.summary import show_summary
from xmerge.errors import XmergeError
from xmerge.many import (
    BatchOutcome,
    PlacedRecipe,
    RecipeOutcome,
    describe_failure,
    describe_success,
    open_batch,
    place_recipes,
    sum_up,
)
from xmerge.planning.downloads import FetchMode


@flow(
    name="merge_many",
    flow_run_name="merge many into {out}",
    persist_result=False,
    result_serializer="json",
    on_running=[sign_run],
)
def merge_many(
    recipes: list[str],
    out: str,
    device: Annotated[str, Field(json_schema_extra={"enum": DEVICES})] = "auto",
    workers: Annotated[int, Field(ge=1)] = 2,
    store: str = "",
    trial: bool = True,
    fetch: FetchMode = "shards",
    task_runner: str = "thread",
) -> State[Any]:
    """Merge many recipes, each into a folder of its own; layers and downloads that they share are made once.

    Args:
        recipes: Paths of recipes, and of folders that hold some.
        out: The folder of the outputs, each under the name of its recipe's file.
        device: Where to compute: auto, cpu, cuda, or one GPU such as cuda:0.
        workers: How many layers are merged at the same time.
        store: A folder that keeps merged layers; default: one beside the outputs, which goes when all are made.
        trial: Load each output with transformers, where it is installed, before it appears.
        fetch: From the Hub, whole shards, which later recipes find in the cache, or only the tensors that one reads.
        task_runner: Where layers are merged: thread, dask or ray; dask:ADDRESS or ray:ADDRESS for a running cluster.
    """
    watch = current_watch()
    watch.flow_run_id, watch.flow_run_name = str(find_run_id()), runtime.flow_run.name
    options = {"device": device, "workers": workers, "trial": trial, "fetch": fetch, "task_runner": task_runner}
    try:
        outcome = _merge_all([Path(each) for each in recipes], Path(out), Path(store) if store else None, options)
    except CancelledRun as error:
        watch.failure = next((child.failure for child in reversed(watch.children) if child.failure), error)
        return Cancelled(name="Interrupted", message=str(watch.failure))
    except Exception as error:
        watch.failure = error
        raise
    watch.outcome = {**outcome.model_dump(mode="json"), "exit_code": outcome.exit_code}
    told = f"{len(outcome.recipes) - len(outcome.failed)} of {len(outcome.recipes)} recipes are merged"
    if outcome.failed:
        return Failed(message=f"{told}; failed: {', '.join(each.recipe for each in outcome.failed)}")
    return Completed(message=told, data=watch.outcome)


def _merge_all(given: list[Path], out: Path, store: Path | None, options: dict[str, Any]) -> BatchOutcome:
    placed = place_recipes(given, out)
    # One cluster for all of them, if they are merged by one.
    with open_batch(out, store) as batch, open_runner(options["task_runner"]):
        outcomes = [_merge_one(each, batch.store, options) for each in placed]
        summed = sum_up(outcomes, placed, batch.store)
        show_summary(summed, name_series(current_watch(), out))
        batch.complete = not summed.failed
    return summed


def _merge_one(placed: PlacedRecipe, store: Path, options: dict[str, Any]) -> RecipeOutcome:
    """Merge one recipe as a flow run of its own; an error is what has come of it."""
    watch = current_watch()
    watch.reporter.stage(placed.recipe.name)
    # Prefect lists a flow that another calls among that one's tasks.
    watch.task_runs += 1
    with watch_child(watch):
        try:
            made = merge_models(str(placed.recipe), out=str(placed.out), store=str(store), **options)
        except CancelledRun:
            raise
        except XmergeError as error:
            get_run_logger().error("%s: %s", placed.recipe.name, error)
            return describe_failure(placed, error)
        except Exception as error:  # noqa: BLE001 - a bug that one recipe meets is no reason to leave out the others
            get_run_logger().exception("%s: a bug", placed.recipe.name)
            return describe_failure(placed, error)
    assert isinstance(made, dict)
    return describe_success(placed, made["layers"], made["reused"], merged=made["report"] is not None)
