"""The page `layers`: what each layer has become, where, and how long it took."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from prefect.artifacts import create_table_artifact

from tasks.markdown import escape, show_cell
from tasks.pages.showing import name_key, try_to_show
from xmerge.planning import MergePlan
from xmerge.planning.table import show_bytes

if TYPE_CHECKING:
    from xmerge.engine import LayerResult

MOST_ROWS = 1000
LAYER_COLUMNS = ("layer", "shard", "MB", "seconds", "device", "reused", "notes")


def show_layers(plan: MergePlan, results: Sequence[LayerResult], series: str) -> None:
    """Show a row for each layer of the output."""
    try_to_show(
        "table of layers",
        lambda: create_table_artifact(
            draw_layers(plan, results), key=name_key("layers", series), description=describe_layers(results)
        ),
    )


def draw_layers(plan: MergePlan, results: Sequence[LayerResult]) -> list[dict[str, str]]:
    """The table's rows by column, the last of which says how many more there are."""
    rows = [
        dict(zip(LAYER_COLUMNS, _draw_layer(plan.shard_name(index), result), strict=True))
        for index, result in enumerate(results[:MOST_ROWS])
    ]
    if len(results) > MOST_ROWS:
        rows.append(dict.fromkeys(LAYER_COLUMNS, "") | {"layer": f"and {len(results) - MOST_ROWS} more"})
    return rows


def describe_layers(results: Sequence[LayerResult]) -> str:
    """Markdown: how many were made, and what that took."""
    made = [result for result in results if not result.reused]
    told = f"{len(results)} layers, {len(results) - len(made)} of them reused from an earlier run."
    if made:
        size, seconds = sum(result.bytes for result in made), sum(result.seconds for result in made)
        told += f" {show_bytes(size)} were made in {seconds:.1f} s of work, summed over all workers."
    return escape(told)


def _draw_layer(shard: str, result: LayerResult) -> tuple[str, ...]:
    return (
        show_cell(result.label),
        shard,
        f"{result.bytes / 1e6:.3f}",
        f"{result.seconds:.2f}",
        show_cell(result.device),
        "yes" if result.reused else "no",
        show_cell("; ".join(result.notes)),
    )
