"""The flow `watch_sources`, for a schedule: merges a recipe again when one of its sources has moved."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any

from prefect import flow
from prefect.client.schemas.objects import State
from prefect.exceptions import CancelledRun
from prefect.states import Cancelled, Completed
from pydantic import Field

from flows.merge import DEVICES, merge_models
from flows.reporting import current_watch, watch_child
from flows.secrets import token_from_block
from flows.server.leftovers import sign_run
from tasks.watch import look_at_sources
from xmerge.hub.faults import quiet_loggers
from xmerge.planning.downloads import FetchMode
from xmerge.watching import LATEST, set_latest


@flow(
    name="watch_sources",
    flow_run_name="watch for {out}",
    persist_result=False,
    result_serializer="json",
    on_running=[sign_run],
)
def watch_sources(
    recipe: str,
    out: str,
    device: Annotated[str, Field(json_schema_extra={"enum": DEVICES})] = "auto",
    workers: Annotated[int, Field(ge=1)] = 2,
    store: str = "",
    seed: Annotated[int, Field(ge=0)] | None = None,
    trial: bool = True,
    fetch: FetchMode = "auto",
    task_runner: str = "thread",
) -> State[Any]:
    """Merge a recipe again if one of its sources has moved since the last time, else do nothing.

    Args:
        recipe: The path of a configuration, or its YAML text.
        out: A folder of outputs: each merge makes a new one there, and `latest` leads to the newest.
        device: Where to compute: auto, cpu, cuda, or one GPU such as cuda:0.
        workers: How many layers are merged at the same time.
        store: A folder that keeps merged layers, so that the next merge makes only those that changed.
        seed: Takes the place of the recipe's random_seed.
        trial: Load each output with transformers, where it is installed, before it appears.
        fetch: From the Hub, whole shards, only the tensors that are read, or whichever is less (auto).
        task_runner: Where layers are merged: thread, dask or ray; dask:ADDRESS or ray:ADDRESS for a running cluster.
    """
    quiet_loggers()
    with token_from_block():
        seen = look_at_sources(recipe, seed, out)
    if not seen["is_new"]:
        told = f"nothing new: {LATEST} is {seen['output']}, the merge of the sources as they are."
        return Completed(message=told, data=seen)
    place = Path(out) / seen["output"]
    try:
        with watch_child(current_watch(), series=Path(os.path.abspath(out)).name):
            merge_models(
                recipe,
                out=str(place),
                device=device,
                workers=workers,
                store=store,
                seed=seed,
                trial=trial,
                fetch=fetch,
                task_runner=task_runner,
            )
    except CancelledRun as error:
        return Cancelled(name="Interrupted", message=str(error))
    set_latest(Path(out), seen["output"])
    return Completed(message=f"merged to {seen['output']}: {'; '.join(seen['moved'])}", data=seen)
