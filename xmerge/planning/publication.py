"""What the licences of the models say of the place that a recipe publishes their merge to."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from xmerge.config import MergeConfig
from xmerge.errors import PlanError
from xmerge.licences import NO_ADVICE, Conflict, judge_licences, list_open_conflicts
from xmerge.planning.plan import PlannedModel


def refuse_conflicts(config: MergeConfig, models: Sequence[PlannedModel]) -> None:
    """Refuse to publish what the words of a licence forbid to publish, unless the recipe acknowledges it.

    Raises:
        PlanError: Names each licence, its clause, and how to acknowledge it.
    """
    if config.publish is None:
        return
    verdict = judge_licences([origin.card for model in models for origin in model.origins])
    unacknowledged = list_open_conflicts(verdict.conflicts, config.publish.acknowledge)
    if unacknowledged:
        names = ", ".join(conflict.licence for conflict in unacknowledged)
        raise tell_conflicts(
            unacknowledged, config.source.locate("publish"), f"write `acknowledge: [{names}]` under 'publish'"
        )


def tell_conflicts(conflicts: Sequence[Conflict], where: str, doing: str) -> PlanError:
    """The error for a publication that licences forbid; `doing` is how to acknowledge it."""
    return PlanError(
        "the licences of these models do not allow their merge to be published.",
        where=where,
        why="; ".join(f"{conflict.text} ({conflict.link})" for conflict in conflicts) + ".",
        remedy=f"read them; if you may publish it all the same, {doing}. {NO_ADVICE}",
    )


def warn_of_name(config: MergeConfig, models: Sequence[PlannedModel]) -> Iterator[str]:
    """Whether the name of the repository begins as a licence wants it to."""
    if config.publish is None:
        return
    name = config.publish.repo.rpartition("/")[2]
    for beginning in judge_licences([origin.card for model in models for origin in model.origins]).begins:
        if not _only_letters(name).startswith(_only_letters(beginning)):
            yield (
                f"a licence of these models wants the name of what is published to begin with '{beginning}', and "
                f"'{name}' does not. {NO_ADVICE}"
            )


def _only_letters(name: str) -> str:
    """A name without what people put between its words."""
    return "".join(sign for sign in name.lower() if sign.isalnum())
