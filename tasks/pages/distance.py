"""The page `distance`: two pictures of layers by components, and the same in numbers.

Prefect's own image artifact wants a public address; what both of its user interfaces render without one is an image
in Markdown that carries its data with it.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from prefect.artifacts import create_markdown_artifact

from tasks.markdown import draw_table
from tasks.pages.showing import name_key, try_to_show
from xmerge.distances import COSINES, DISTANCES, Cell, Scale, choose_rows, draw_picture, list_cells
from xmerge.planning import MergePlan

if TYPE_CHECKING:
    from xmerge.engine import LayerResult

Cells = Mapping[str, Mapping[int, Cell]]


def show_distance(plan: MergePlan, results: Sequence[LayerResult], series: str) -> None:
    """Show how far each component of each layer is from the base, and how much the donors are like it."""
    key, told = name_key("distance", series), "Layers by components: how far the output is from the base"
    try_to_show(
        "picture",
        lambda: create_markdown_artifact(draw_distance(plan, list_cells(plan, results)), key=key, description=told),
    )


DISTANCE_TOLD = (
    "A row for each component, a column for each layer, from left to right in the order of the shards. Distance: "
    "the norm of what was changed over the norm of the base's tensor. Grey: the base's own; orange: a donor's, not "
    "compared with the base. Of several tensors in one place the farthest counts."
)
COSINE_TOLD = (
    "Cosine between the base's tensor and the donor's that is least like it: 1 where they are the same, 0 where they "
    "have nothing in common. Grey: the method did not compare them."
)


def draw_distance(plan: MergePlan, cells: Cells) -> str:
    """The page as Markdown."""
    lines = [
        "## How far the output is from the base",
        "",
        _embed(plan, cells, DISTANCES, "The distance from the base of every component in every layer"),
        "",
        DISTANCE_TOLD,
        "",
    ]
    if any(cell.cosine is not None for row in cells.values() for cell in row.values()):
        lines += [
            "## How much the donors are like the base",
            "",
            _embed(plan, cells, COSINES, "The cosine between base and donor of every component in every layer"),
            "",
            COSINE_TOLD,
            "",
        ]
    return "\n".join([*lines, "## The same in numbers", "", *_tell_numbers(cells)])


def _embed(plan: MergePlan, cells: Cells, scale: Scale, told: str) -> str:
    data = base64.b64encode(draw_picture(plan, cells, scale).encode(compress=True)).decode("ascii")
    return f"![{told}](data:image/png;base64,{data})"


def _tell_numbers(cells: Cells) -> Iterator[str]:
    """A table of the rows that are drawn, for those who cannot see or tell apart the colours."""
    names = choose_rows(cells)
    rows = [_tell_row(name, list(cells[name].values())) for name in names]
    yield draw_table(("component", "layers changed", "distance", "cosine base to donor"), rows)
    if len(names) < len(cells):
        yield f"\n{len(cells) - len(names)} more components are not drawn."


def _tell_row(name: str, row: Sequence[Cell]) -> tuple[str, ...]:
    changed = sum(cell.changed for cell in row)
    distances = _tell_range(cell.distance for cell in row if cell.changed)
    return (name, f"{changed} of {len(row)}", distances, _tell_range(cell.cosine for cell in row))


def _tell_range(values: Iterable[float | None]) -> str:
    """`0.01 to 0.5, mean 0.2`, or a dash where nothing is known."""
    known = [value for value in values if value is not None]
    if not known:
        return "-"
    return f"{min(known):.3g} to {max(known):.3g}, mean {sum(known) / len(known):.3g}"
