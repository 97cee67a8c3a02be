"""The step `publish_merge`: a validated output gets its name, and goes to the Hub if the recipe says so."""

from __future__ import annotations

from typing import Any

from prefect.assets import materialize
from prefect.cache_policies import NO_CACHE
from prefect.logging import get_run_logger
from prefect.tasks import exponential_backoff

from tasks.lineage import UNNAMED
from tasks.pages.output import show_output
from tasks.recipes import Recipe, parse_recipe
from tasks.retrying import is_worth_retrying
from tasks.stopping import cancelled_when_stopped
from xmerge.planning import MergePlan
from xmerge.work import WorkFolder


# A task that materializes assets: the caller says which, with `tasks.lineage`.
@materialize(
    UNNAMED,
    by="xmerge",
    name="publish_merge",
    cache_policy=NO_CACHE,
    persist_result=False,
    retries=3,
    retry_delay_seconds=exponential_backoff(backoff_factor=5),
    retry_jitter_factor=0.5,
    retry_condition_fn=is_worth_retrying,
)
@cancelled_when_stopped
def publish_merge(recipe: Recipe, plan: MergePlan, work: WorkFolder, series: str) -> dict[str, Any]:
    """Put the output in its place, and upload it; what is in its place already is only uploaded."""
    from xmerge.output import publish, upload

    config = parse_recipe(recipe)
    # A retry finds the output in its place, when it was the upload that failed.
    is_new = work.staged.exists()
    publication = publish(work.staged, config, plan, work) if is_new else upload(work.out, config, plan)
    show_output(publication, series)
    get_run_logger().info("the output %s is in its place", work.out.name)
    return publication.model_dump(mode="json")
