"""The step `resolve_architecture`: whose architecture the output has."""

from __future__ import annotations

from prefect import task
from prefect.cache_policies import NO_CACHE
from prefect.logging import get_run_logger

from tasks.recipes import Recipe, parse_recipe
from tasks.retrying import is_worth_retrying
from tasks.stopping import cancelled_when_stopped
from xmerge.architecture import ForeseenModel, ResolvedArchitecture, resolve


# Its result stays in the process: what the models are is asked anew in every run, since a branch moves.
@task(
    cache_policy=NO_CACHE,
    persist_result=False,
    retries=3,
    retry_delay_seconds=[2, 5, 15],
    retry_jitter_factor=0.5,
    retry_condition_fn=is_worth_retrying,
)
@cancelled_when_stopped
def resolve_architecture(recipe: Recipe, foreseen: dict[str, ForeseenModel]) -> ResolvedArchitecture:
    """Find the models and decide the output's architecture, from their configs and headers.

    Those that earlier stages are going to make are given by name.
    """
    architecture = resolve(parse_recipe(recipe), foreseen)
    get_run_logger().info("the output has the architecture of %s", architecture.target.label)
    return architecture
