"""How far the output is from the base, component by component and layer by layer; and a picture of it."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Mapping, Sequence
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
            row[place] = _join(row.get(place), measure_distance(outcome), _is_changed(plan, tensor, outcome))
    return cells


def choose_rows(cells: Mapping[str, Mapping[int, Cell]]) -> list[str]:
    """The components that the picture shows: all, or where they are many those that something was done to."""
    if len(cells) <= MOST_ROWS:
        return list(cells)
    return [name for name, row in cells.items() if any(cell.changed for cell in row.values())][:MOST_ROWS]


def write_picture(folder: Path, plan: MergePlan, results: Sequence[LayerResult]) -> None:
    """Write the picture into an output that is being assembled."""
    write_bytes(folder / PICTURE_NAME, draw_picture(plan, list_cells(plan, results)))


def draw_picture(plan: MergePlan, cells: Mapping[str, Mapping[int, Cell]]) -> bytes:
    """A PNG with a row for each component and a column for each layer."""
    names = choose_rows(cells)
    label_width = max((measure_text(_shorten(name)) for name in names), default=0) + _MARGIN
    cell_width = max(1, min(_WIDEST_CELL, _WIDTH // len(plan.layers)))
    left, top = _MARGIN + label_width, _MARGIN + _LINE
    width = max(left + cell_width * len(plan.layers), _measure_legend()) + _MARGIN
    canvas = Canvas(width, top + _LINE * (len(names) + 2) + _MARGIN, _PALETTE)
    _number_layers(canvas, plan, left, cell_width)
    for row, name in enumerate(names):
        canvas.write(_MARGIN, top + row * _LINE + 2, _shorten(name), _INK)
        for place, cell in cells[name].items():
            colour = _choose_colour(cell)
            gap = _GAP if cell_width > 2 else 0
            canvas.fill(left + place * cell_width, top + row * _LINE, cell_width - gap, _LINE - _GAP, colour)
    _draw_legend(canvas, top + _LINE * (len(names) + 1))
    return canvas.encode()


def _join(cell: Cell | None, distance: float | None, changed: bool) -> Cell:
    if cell is None:
        return Cell(distance, changed)
    known = [each for each in (cell.distance, distance) if each is not None]
    return Cell(max(known, default=None), cell.changed or changed)


def _is_changed(plan: MergePlan, tensor: TensorPlan, outcome: TensorResult) -> bool:
    if tensor.decision == "keep" or outcome.replaced:
        return False
    return tensor.decision == "merge" or any(source.model != plan.target for source in tensor.sources)


def _choose_colour(cell: Cell) -> int:
    if not cell.changed:
        return _KEPT
    return _DONOR if cell.distance is None else _FIRST_SHADE + bisect_right(BOUNDS, cell.distance)


def _shorten(name: str) -> str:
    return name if len(name) <= _LONGEST_NAME else f"{name[: _LONGEST_NAME - 2]}.."


def _number_layers(canvas: Canvas, plan: MergePlan, left: int, cell_width: int) -> None:
    """The numbers of as many layers as there is room for."""
    widest = max((measure_text(str(layer.index)) for layer in plan.layers if layer.index is not None), default=1)
    step = next(each for each in (1, 2, 5, 10, 20, 50, 100, 1000, 10_000, 100_000) if each * cell_width > widest + 8)
    for place, layer in enumerate(plan.layers):
        if layer.index is not None and layer.index % step == 0:
            canvas.write(left + place * cell_width, _MARGIN, str(layer.index), _INK)


def _list_legend() -> list[tuple[int, str]]:
    shades = [f"<{bound:g}" for bound in BOUNDS] + [f">={BOUNDS[-1]:g}"]
    return [(_KEPT, "base"), *((_FIRST_SHADE + shade, text) for shade, text in enumerate(shades)), (_DONOR, "donor")]


def _measure_legend() -> int:
    return _MARGIN + sum(_LINE + 4 + measure_text(text) + _MARGIN for _, text in _list_legend())


def _draw_legend(canvas: Canvas, top: int) -> None:
    left = _MARGIN
    for colour, text in _list_legend():
        canvas.fill(left, top, _LINE - 4, _LINE - 4, _INK)
        canvas.fill(left + 1, top + 1, _LINE - 6, _LINE - 6, colour)
        canvas.write(left + _LINE, top, text, _INK)
        left += _LINE + 4 + measure_text(text) + _MARGIN
