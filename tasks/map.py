"""The step `map_slices`: every output tensor's sources, before any weight is read."""

from __future__ import annotations

from prefect import task
from prefect.cache_policies import NO_CACHE
from prefect.logging import get_run_logger

from tasks.pages.plan import show_plan
from tasks.recipes import Recipe, parse_recipe
from xmerge.architecture import ResolvedArchitecture
from xmerge.stages import Stage, plan_stage


@task(cache_policy=NO_CACHE, persist_result=False)
def map_slices(recipe: Recipe, architecture: ResolvedArchitecture, series: str) -> Stage:
    """Make the plan of a stage, and show it."""
    stage = plan_stage(parse_recipe(recipe), architecture)
    plan = stage.plan
    get_run_logger().info("plan %s: %s, %d shards", plan.fingerprint[:12], plan.title, len(plan.layers))
    show_plan(plan, series)
    return stage
