"""All that is said of two models: the comparison, its summary, and a recipe."""

from __future__ import annotations

from xmerge.architecture import ResolvedModel
from xmerge.compatibility.comparison import Compatibility, compare_models
from xmerge.compatibility.recipe import write_recipe
from xmerge.compatibility.summary import summarize
from xmerge.values import Value


class Report(Value):
    """What `xmerge compat BASE DONOR --json` prints."""

    compatibility: Compatibility
    summary: tuple[str, ...]
    """Sentences for a person."""
    recipe: str | None
    """YAML; None: nothing crosses exactly or by conversion."""


def report_on(base: ResolvedModel, donor: ResolvedModel) -> Report:
    """Compare two models, sum it up, and write a recipe.

    Raises:
        PlanError: Their types differ, and of one of them nobody knows what its tensors do.
    """
    found = compare_models(base, donor)
    return Report(compatibility=found, summary=summarize(found), recipe=write_recipe(found))
