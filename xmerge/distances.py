"""How far the output is from the base, and the donors are, component by component and layer by layer; and pictures."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from xmerge.files import write_bytes
from xmerge.planning.plan import MergePlan, TensorPlan
from xmerge.png import Canvas, Colour, measure_text

if TYPE_CHECKING:
    from xmerge.engine.results import LayerResult, TensorResult

PICTURE_NAME = "distance_from_base.png"
MOST_ROWS = 48
BOUNDS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
"""Where one shade ends and the next begins; the same in every picture, so that pictures can be compared."""
COSINE_BOUNDS = (0.0, 0.1, 0.3, 0.5, 0.7, 0.9, 0.99)
"""The same for the cosine between the base and a donor, whose darkest shade is below the first."""

_WHITE, _INK, _KEPT, _DONOR, _FIRST_SHADE = range(5)
_PALETTE: tuple[Colour, ...] = (
    (255, 255, 255), (60, 60, 60), (225, 225, 225), (217, 95, 2),
    (255, 255, 190), (237, 248, 177), (199, 233, 180), (127, 205, 187), (65, 182, 196), (29, 145, 192), (34, 94, 168),
    (12, 44, 132),
)  # fmt: skip
_LINE, _MARGIN, _GAP = 18, 10, 1  # Pixels: the height of a row, around everything, between cells.
_WIDTH, _WIDEST_CELL, _LONGEST_NAME = 960, 28, 24


@dataclass(frozen=True)
class Cell:
    """One component in one layer."""

    distance: float | None
    """Of the farthest of its tensors; None: none was compared with the base."""
    changed: bool
    """Whether anything in it is not the base's."""
    cosine: float | None = None
    """Between the base and the donor that is least like it; None: the method did not look."""


@dataclass(frozen=True)
class Scale:
    """What the colours of a picture mean."""

    choose: Callable[[Cell], int]
    legend: tuple[tuple[int, str], ...]


def measure_distance(outcome: TensorResult) -> float | None:
    """Norm of (output - base) over the base's norm; None where the two were not compared."""
    if outcome.cosine is None or outcome.norm_ratio is None:
        return None
    squared = 1.0 + outcome.norm_ratio**2 - 2.0 * outcome.norm_ratio * outcome.cosine
    return math.sqrt(max(squared, 0.0))


def list_cells(plan: MergePlan, results: Sequence[LayerResult]) -> dict[str, dict[int, Cell]]:
    """Component -> place among the plan's layers -> cell."""
    cells: dict[str, dict[int, Cell]] = {}
    for place, (layer, result) in enumerate(zip(plan.layers, results, strict=True)):
        for tensor, outcome in zip(layer.tensors, result.tensors, strict=True):
            row = cells.setdefault(tensor.component, {})
            cosine = min(outcome.donor_cosines, default=None)
            cell = Cell(measure_distance(outcome), _is_changed(plan, tensor, outcome), cosine)
            row[place] = _join(row[place], cell) if place in row else cell
    return cells


def choose_rows(cells: Mapping[str, Mapping[int, Cell]]) -> list[str]:
    """The components that the picture shows: all, or where they are many those that something was done to."""
    if len(cells) <= MOST_ROWS:
        return list(cells)
    return [name for name, row in cells.items() if any(cell.changed for cell in row.values())][:MOST_ROWS]


def write_picture(folder: Path, plan: MergePlan, results: Sequence[LayerResult]) -> None:
    """Write the picture into an output that is being assembled."""
    write_bytes(folder / PICTURE_NAME, draw_picture(plan, list_cells(plan, results), DISTANCES).encode())


def draw_picture(plan: MergePlan, cells: Mapping[str, Mapping[int, Cell]], scale: Scale) -> Canvas:
    """A picture with a row for each component and a column for each layer."""
    names = choose_rows(cells)
    label_width = max((measure_text(_shorten(name)) for name in names), default=0) + _MARGIN
    cell_width = max(1, min(_WIDEST_CELL, _WIDTH // len(plan.layers)))
    left, top = _MARGIN + label_width, _MARGIN + _LINE
    width = max(left + cell_width * len(plan.layers), _measure_legend(scale)) + _MARGIN
    canvas = Canvas(width, top + _LINE * (len(names) + 2) + _MARGIN, _PALETTE)
    _number_layers(canvas, plan, left, cell_width)
    for row, name in enumerate(names):
        canvas.write(_MARGIN, top + row * _LINE + 2, _shorten(name), _INK)
        for place, cell in cells[name].items():
            colour = scale.choose(cell)
            gap = _GAP if cell_width > 2 else 0
            canvas.fill(left + place * cell_width, top + row * _LINE, cell_width - gap, _LINE - _GAP, colour)
    _draw_legend(canvas, scale, top + _LINE * (len(names) + 1))
    return canvas


def _join(one: Cell, other: Cell) -> Cell:
    """The two as one: of several tensors in one place the farthest counts."""
    distances = [cell.distance for cell in (one, other) if cell.distance is not None]
    cosines = [cell.cosine for cell in (one, other) if cell.cosine is not None]
    return Cell(max(distances, default=None), one.changed or other.changed, min(cosines, default=None))


def _is_changed(plan: MergePlan, tensor: TensorPlan, outcome: TensorResult) -> bool:
    if tensor.decision == "keep" or outcome.replaced:
        return False
    return tensor.decision == "merge" or any(source.model != plan.target for source in tensor.sources)


def _shade_distance(cell: Cell) -> int:
    if not cell.changed:
        return _KEPT
    return _DONOR if cell.distance is None else _FIRST_SHADE + bisect_right(BOUNDS, cell.distance)


def _shade_cosine(cell: Cell) -> int:
    if cell.cosine is None:
        return _KEPT
    return _FIRST_SHADE + len(COSINE_BOUNDS) - bisect_right(COSINE_BOUNDS, cell.cosine)


DISTANCES = Scale(
    _shade_distance,
    (
        (_KEPT, "base"),
        *((_FIRST_SHADE + shade, f"<{bound:g}") for shade, bound in enumerate(BOUNDS)),
        (_FIRST_SHADE + len(BOUNDS), f">={BOUNDS[-1]:g}"),
        (_DONOR, "donor"),
    ),
)
"""How far the output is from the base."""
COSINES = Scale(
    _shade_cosine,
    (
        (_KEPT, "not compared"),
        (_FIRST_SHADE, f">={COSINE_BOUNDS[-1]:g}"),
        *((_FIRST_SHADE + 1 + shade, f"<{bound:g}") for shade, bound in enumerate(reversed(COSINE_BOUNDS))),
    ),
)
"""How much a donor is like the base."""


def _shorten(name: str) -> str:
    return name if len(name) <= _LONGEST_NAME else f"{name[: _LONGEST_NAME - 2]}.."


def _number_layers(canvas: Canvas, plan: MergePlan, left: int, cell_width: int) -> None:
    """The numbers of as many layers as there is room for."""
    widest = max((measure_text(str(layer.index)) for layer in plan.layers if layer.index is not None), default=1)
    step = next(each for each in (1, 2, 5, 10, 20, 50, 100, 1000, 10_000, 100_000) if each * cell_width > widest + 8)
    for place, layer in enumerate(plan.layers):
        if layer.index is not None and layer.index % step == 0:
            canvas.write(left + place * cell_width, _MARGIN, str(layer.index), _INK)


def _measure_legend(scale: Scale) -> int:
    return _MARGIN + sum(_LINE + 4 + measure_text(text) + _MARGIN for _, text in scale.legend)


def _draw_legend(canvas: Canvas, scale: Scale, top: int) -> None:
    left = _MARGIN
    for colour, text in scale.legend:
        canvas.fill(left, top, _LINE - 4, _LINE - 4, _INK)
        canvas.fill(left + 1, top + 1, _LINE - 6, _LINE - 6, colour)
        canvas.write(left + _LINE, top, text, _INK)
        left += _LINE + 4 + measure_text(text) + _MARGIN
