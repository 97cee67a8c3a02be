"""The page `plan`: what is going to happen, before any weight is read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from itertools import islice

from prefect.artifacts import create_table_artifact

from tasks.markdown import escape, show_cell
from tasks.pages.showing import name_key, try_to_show
from xmerge.planning import PLAN_COLUMNS, MergePlan, draw_plan, summarize_plan
from xmerge.planning.table import tell_layer_map

MOST_ROWS = 500
MOST_LINES = 12
"""Of each kind, in what is said above the table."""


def show_plan(plan: MergePlan, series: str) -> None:
    """Show a row for each component and run of layers that is treated alike, and what it comes to."""
    try_to_show(
        "plan",
        lambda: create_table_artifact(draw_rows(plan), key=name_key("plan", series), description=describe_plan(plan)),
    )


def draw_rows(plan: MergePlan) -> list[dict[str, str]]:
    """The table's rows by column, the last of which says how many more there are."""
    rows = [dict(zip(PLAN_COLUMNS, map(show_cell, row), strict=True)) for row in draw_plan(plan)]
    if len(rows) > MOST_ROWS:
        more = f"and {len(rows) - MOST_ROWS} more rows"
        rows = [*rows[:MOST_ROWS], dict.fromkeys(PLAN_COLUMNS, "") | {PLAN_COLUMNS[0]: more}]
    return rows


def describe_plan(plan: MergePlan) -> str:
    """Markdown: the warnings first, then sizes, classes, and what is left out."""
    lines = [
        *_cut([f"**Warning:** {escape(warning)}" for warning in plan.warnings]),
        *(f"{escape(name)}: {escape(value)}" for name, value in summarize_plan(plan)),
        f"classes: {escape(_count_classes(plan))}",
        *_cut([f"layers of {escape(line)}" for line in tell_layer_map(plan)]),
        *_cut(list(_tell_dropped(plan))),
    ]
    return "\n".join([f"**{escape(plan.title)}**", "", *(f"- {line}" for line in lines)])


def _cut(lines: list[str]) -> Iterator[str]:
    yield from islice(lines, MOST_LINES)
    if len(lines) > MOST_LINES:
        yield f"and {len(lines) - MOST_LINES} more"


def _count_classes(plan: MergePlan) -> str:
    """How many tensors with a donor's weights are of each class."""
    crossing = (each for each in plan.tensors if any(source.model != plan.target for source in each.sources))
    counts = sorted(Counter(tensor.fit for tensor in crossing).items())
    return ", ".join(f"{count} tensors {fit}" for fit, count in counts) or "no donor gives weights"


def _tell_dropped(plan: MergePlan) -> Iterator[str]:
    """For each model, the components that the output has no place for."""
    for model in plan.models:
        if model.dropped:
            yield f"dropped of {escape(model.label)}: {escape(', '.join(model.dropped))}"
