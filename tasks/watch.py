"""The step `look_at_sources`: whether there is anything to merge again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from prefect import task
from prefect.cache_policies import NO_CACHE
from prefect.logging import get_run_logger

from tasks.recipes import parse_recipe, read_recipe
from tasks.retrying import is_worth_retrying
from xmerge import watching


# Never cached: it is there to ask again.
@task(
    cache_policy=NO_CACHE,
    persist_result=False,
    retries=3,
    retry_delay_seconds=[2, 5, 15],
    retry_jitter_factor=0.5,
    retry_condition_fn=is_worth_retrying,
)
def look_at_sources(recipe: str, seed: int | None, out: str) -> dict[str, Any]:
    """Plan the recipe with its sources as they are now; the fields of `xmerge.watching.Sighting`."""
    stages = [parse_recipe(stage) for stage in read_recipe(recipe, seed)]
    seen = watching.look_at_sources(stages, Path(out))
    get_run_logger().info("%s", "; ".join(seen.moved) or "nothing new")
    return seen.model_dump(mode="json")
