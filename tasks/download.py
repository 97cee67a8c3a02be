"""The step `download_model`: what a plan reads of one model, on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from prefect import task
from prefect.cache_policies import NO_CACHE
from prefect.logging import get_run_logger
from prefect.tasks import exponential_backoff

from tasks.retrying import is_worth_retrying
from tasks.stopping import cancelled_when_stopped
from xmerge.fetching import fetch_model
from xmerge.planning.downloads import FetchMode
from xmerge.units import read_plan


# Never cached: a record of a download outlives the files, and asking again costs milliseconds.
@task(
    task_run_name="download {model}",
    cache_policy=NO_CACHE,
    persist_result=False,
    retries=4,
    retry_delay_seconds=exponential_backoff(backoff_factor=2),
    retry_jitter_factor=0.5,
    retry_condition_fn=is_worth_retrying,
)
@cancelled_when_stopped
def download_model(
    plan_file: str, fingerprint: str, index: int, model: str, parts_folder: str, fetch: FetchMode
) -> dict[str, Any]:
    """Fetch what the plan reads of one model; the fields of `xmerge.fetching.FetchedModel`."""
    fetched = fetch_model(read_plan(plan_file, fingerprint), index, Path(parts_folder), fetch)
    for note in fetched.notes:
        get_run_logger().warning("%s", note)
    get_run_logger().info("model %s is in place", model)
    return fetched.model_dump(mode="json")
