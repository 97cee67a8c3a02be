"""How far the output is from the base, and the picture of it."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.small_merges import RECIPE, load_weights, make_plan, run, write_models
from tests.test_card import fake_results
from tests.test_png import decode
from xmerge.distances import (
    BOUNDS,
    COSINE_BOUNDS,
    COSINES,
    DISTANCES,
    MOST_ROWS,
    PICTURE_NAME,
    Cell,
    choose_rows,
    draw_picture,
    list_cells,
    measure_distance,
)
from xmerge.engine import TensorResult
from xmerge.provenance import read_provenance

VECTORS = st.lists(st.floats(-100, 100, allow_subnormal=False), min_size=3, max_size=3).filter(any)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """The two models of the recipe, and their merge."""
    folder = write_models(tmp_path_factory.mktemp("models"))
    run(folder)
    return folder


@given(VECTORS, VECTORS)
def test_the_distance_follows_from_cosine_and_norm_ratio(base, output):
    """It is the norm of the difference over the base's norm."""
    b, y = torch.tensor(base, dtype=torch.float64), torch.tensor(output, dtype=torch.float64)
    cosine, ratio = float(b @ y / (b.norm() * y.norm())), float(y.norm() / b.norm())
    distance = measure_distance(TensorResult(name="x", cosine=cosine, norm_ratio=ratio))
    assert distance == pytest.approx(float((y - b).norm() / b.norm()), abs=1e-6 * max(1.0, ratio))


def test_what_was_not_compared_has_no_distance():
    """Copied bytes have neither cosine nor norm ratio."""
    assert measure_distance(TensorResult(name="x")) is None


def test_distances_are_those_of_the_weights(models):
    """Over the files themselves: what was merged is as far from the base as provenance.json lets one work out."""
    base, merged = load_weights(models / "llama"), load_weights(models / "out")
    said = (read_provenance(models / "out") or {})["tensors"]
    changed = [name for name in base if not torch.equal(base[name], merged[name])]
    assert changed
    for name in changed:
        outcome = TensorResult(
            name=name, cosine=said[name]["cosine_to_base"], norm_ratio=said[name]["norm_ratio_to_base"]
        )
        b, y = base[name].double(), merged[name].double()
        assert measure_distance(outcome) == pytest.approx(float((y - b).norm() / b.norm()), rel=0.02)


def test_the_picture_lies_in_the_output_and_shows_the_plan(models):
    """Grey where the base's bytes are, a shade where something was merged, nothing where there is no tensor."""
    palette, pixels = decode((models / "out" / PICTURE_NAME).read_bytes())
    _, plan = make_plan(models, RECIPE)
    cells = list_cells(plan, fake_results(plan))
    merged = sum(tensor.decision == "merge" for tensor in plan.tensors)
    assert sum(cell.changed for row in cells.values() for cell in row.values()) == merged == 16
    colours = {palette[pixel] for row in pixels[: len(cells) * 18] for pixel in row}
    assert (225, 225, 225) in colours and (217, 95, 2) not in colours
    assert colours & {(29, 145, 192), (34, 94, 168)}


@settings(max_examples=10)
@given(st.floats(0, 2))
def test_a_shade_for_each_distance(distance):
    """Larger distances never have an earlier shade, and each bound begins a new one."""
    place = len([bound for bound in BOUNDS if bound <= distance])
    assert draw_cell(distance) == draw_cell(math.nextafter(BOUNDS[place], 0) if place < len(BOUNDS) else 9.0)
    assert draw_cell(distance) != draw_cell(BOUNDS[place] if place < len(BOUNDS) else 0.0)


def draw_cell(distance: float) -> list[int]:
    """The pixels of a picture of one component in one layer."""
    return [pixel for row in decode(draw_one({"x": {0: Cell(distance, changed=True)}}))[1] for pixel in row]


def draw_one(cells: dict[str, dict[int, Cell]]) -> bytes:
    """A picture over the smallest plan there is."""

    class Layer:
        index = 0

    class Plan:
        layers = (Layer(),)

    return draw_picture(Plan(), cells, DISTANCES).encode()  # type: ignore[arg-type]


@settings(max_examples=20)
@given(st.dictionaries(st.text(max_size=40), st.booleans(), max_size=MOST_ROWS + 9))
def test_of_many_components_those_are_drawn_that_something_was_done_to(changed):
    """All of them where there is room, and never more rows than that; names of any signs do no harm."""
    cells = {name: {0: Cell(None, each)} for name, each in changed.items()}
    rows = choose_rows(cells)
    assert len(rows) <= MOST_ROWS
    assert rows == [name for name in cells if len(cells) <= MOST_ROWS or changed[name]][:MOST_ROWS]
    decode(draw_one(cells))


def test_the_cosine_of_a_place_is_that_of_the_donor_least_like_the_base(models):
    """Of several tensors and donors in one place the smallest cosine counts, and what was not compared has none."""
    _, plan = make_plan(models, RECIPE)
    results = fake_results(plan)
    index, tensor = next(
        (index, tensor) for index, layer in enumerate(plan.layers) for tensor in layer.tensors if not tensor.is_copied
    )
    outcomes = tuple(
        outcome.model_copy(update={"donor_cosines": (0.8, -0.2)} if outcome.name == tensor.name else {})
        for outcome in results[index].tensors
    )
    results[index] = results[index].model_copy(update={"tensors": outcomes})
    cells = list_cells(plan, results)
    known = {(name, place): cell.cosine for name, row in cells.items() for place, cell in row.items() if cell.cosine}
    assert known[tensor.component, index] == -0.2


@settings(max_examples=10)
@given(st.floats(-1, 1))
def test_the_less_alike_the_darker(cosine):
    """Smaller cosines never have a lighter shade, each bound begins a new one, and no cosine is a colour of its own."""
    place = len([bound for bound in COSINE_BOUNDS if bound <= cosine])
    shades = [COSINES.choose(Cell(None, True, value)) for value in (*reversed(COSINE_BOUNDS), -1.0)]
    assert shades == sorted(set(shades))
    assert COSINES.choose(Cell(None, True, cosine)) == shades[len(COSINE_BOUNDS) - place]
    assert COSINES.choose(Cell(None, changed=True)) not in shades
    assert {colour for colour, _ in COSINES.legend} == {*shades, COSINES.choose(Cell(None, changed=True))}
