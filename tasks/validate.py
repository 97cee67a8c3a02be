"""The step `validate_merge`: nothing is called done before it has been looked at."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from prefect import task
from prefect.cache_policies import NO_CACHE
from prefect.logging import get_run_logger

from tasks.pages.distance import show_distance
from tasks.pages.layers import show_layers
from tasks.pages.validation import show_validation
from tasks.recipes import Recipe, parse_recipe
from tasks.stopping import cancelled_when_stopped
from xmerge import validation
from xmerge.planning import MergePlan
from xmerge.work import WorkFolder

if TYPE_CHECKING:
    from xmerge.engine import LayerResult


# No retry: the same bytes are as wrong the second time.
@task(cache_policy=NO_CACHE, persist_result=False)
@cancelled_when_stopped
def validate_merge(
    recipe: Recipe, plan: MergePlan, results: list[LayerResult], work: WorkFolder, series: str, trial: bool = True
) -> dict[str, Any]:
    """Put the output together in the work folder, and compare it with the plan."""
    from xmerge.output import assemble

    show_layers(plan, results, series)
    show_distance(plan, results, series)
    staged = assemble(plan, parse_recipe(recipe), results, work)
    report = validation.validate(staged, plan, results, trial=trial)
    show_validation(report, series)
    get_run_logger().info("the output has %d findings", len(report.findings))
    report.raise_if_invalid()
    return report.model_dump(mode="json")
