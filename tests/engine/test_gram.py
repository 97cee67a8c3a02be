"""Inner products of whole tensors, rows and columns, and what is done with a coefficient for each of them."""

from __future__ import annotations

import math
from collections.abc import Iterator

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.engine.bench import Bench, draw, make, same_bits
from tests.methods.grams import gram_of
from xmerge.engine.gram import InnerProducts, arrange_slices
from xmerge.engine.weighting import Weighting, average, multiply
from xmerge.errors import CheckpointError

CPU = torch.device("cpu")
axes = st.sampled_from([None, -1, 0])
shapes = st.sampled_from([(1,), (9,), (4, 6), (1, 5), (5, 1), (2, 3, 4), (2, 1, 3), (0,), (0, 3), (3, 0), ()])


class Reader:
    """Blocks of tensors in float64, whole rows or parts of one, as the engine reads them; it counts the readings."""

    def __init__(self, tensors: list[torch.Tensor], block: int) -> None:
        self.tensors, self.block, self.readings = tensors, block, 0

    def __call__(self, row: int) -> Iterator[tuple[int, list[torch.Tensor]]]:
        """All blocks in order."""
        self.readings += 1
        flat = [each.reshape(-1).double() for each in self.tensors]
        part = max(self.block // max(row, 1) * row, 0) or max(row, 1)
        for first in range(0, flat[0].numel(), part):
            last = min(first + part, flat[0].numel())
            for start in range(first, last, self.block):
                yield start, [each[start : min(start + self.block, last)].clone() for each in flat]


@given(shape=shapes, axis=axes, deltas=st.booleans(), count=st.integers(1, 4), block=st.sampled_from([1, 2, 5, 12, 99]))
def test_inner_products_are_those_of_the_slices(shape: tuple[int, ...], axis, deltas: bool, count: int, block: int):
    """For every pair of sources and every slice, whatever blocks they are read in."""
    tensors = [draw(n, math.prod(shape), torch.float32).view(shape) for n in range(count)]
    products = InnerProducts(shape, count, Reader(tensors, block), CPU)
    found = products.measure(deltas=deltas, axis=axis)
    gram = gram_of(tensors)
    slices = (gram.deltas if deltas else gram).slices(axis)
    for i in range(count):
        for j in range(count):
            wanted = slices.dot(i, j)
            torch.testing.assert_close(found[i, j], wanted, rtol=1e-12, atol=1e-12)


def test_each_kind_is_read_once():
    """What has been asked for is kept, and what has not is not computed."""
    reader = Reader([draw(1, 6, torch.float32).view(2, 3)], 99)
    products = InnerProducts((2, 3), 1, reader, CPU)
    assert (reader.readings, products.whole) == (0, None)
    products.measure(deltas=False, axis=-1)
    assert (reader.readings, products.whole) == (1, None)
    for _ in range(2):
        products.measure(deltas=False, axis=None)
    assert reader.readings == 2
    assert products.whole is not None
    assert products.whole[0][0] == pytest.approx(float(draw(1, 6, torch.float64).square().sum()), rel=1e-6)


def test_differences_are_taken_before_they_are_multiplied():
    """Task vectors a million times smaller than the weights have their angle to the last digit."""
    base = 1.0 + draw(1, 1000, torch.float32).double()
    moves = [1e-6 * draw(n, 1000, torch.float32).double() for n in (2, 3)]
    tensors = [base, *((base + move) for move in moves)]
    found = InnerProducts((1000,), 3, Reader(tensors, 128), CPU).measure(deltas=True, axis=None)
    deltas = [each - base for each in tensors[1:]]
    cosine = float(found[1, 2] / (found[1, 1] * found[2, 2]).sqrt())
    assert cosine == pytest.approx(float(deltas[0] @ deltas[1] / deltas[0].norm() / deltas[1].norm()), rel=1e-12)


@pytest.mark.parametrize(
    ("shape", "axis", "row", "slices"),
    [
        ((4, 6), None, 24, (1, 1)),
        ((4, 6), -1, 6, (4, 1)),
        ((4, 6), 0, 6, (1, 6)),
        ((2, 3, 4), -1, 4, (6, 1)),
        ((2, 3, 4), 0, 12, (1, 12)),
        ((7,), -1, 7, (1, 1)),
        ((7,), 0, 7, (1, 1)),
        ((7, 1), 0, 7, (1, 1)),
        ((), -1, 1, (1, 1)),
    ],
)
def test_slices_of_any_shape(shape: tuple[int, ...], axis, row: int, slices: tuple[int, int]):
    """Along the last axis a slice is a row, along the first what is left of the other axes counts the slices."""
    assert arrange_slices(shape, axis) == (row, slices)


@given(rows=st.integers(2, 5), columns=st.integers(2, 5), start=st.integers(0, 4), by_column=st.booleans())
def test_coefficients_are_cut_to_the_block(rows: int, columns: int, start: int, by_column: bool):
    """Of whole rows each number has its own, of a part of a row too, in float32."""
    numbers = torch.arange(1.0, 1 + (columns if by_column else rows), dtype=torch.float64)
    sliced = numbers.view(1, -1) if by_column else numbers.view(-1, 1)
    weighting = Weighting([sliced, 0.5], rows * columns, CPU)
    assert weighting.columns == columns
    wide = sliced.expand(rows, columns).reshape(-1)
    first = min(start, rows - 1)
    for begin, end in ((first * columns, rows * columns), (first * columns + 1, (first + 1) * columns)):
        (one, other), total = weighting.cut(begin, end - begin)
        for cut, wanted in ((one, wide), (other, torch.full_like(wide, 0.5)), (total, wide + 0.5)):
            assert isinstance(cut, torch.Tensor)
            assert cut.dtype == torch.float32
            assert torch.equal(multiply(torch.ones(end - begin), cut), wanted[begin:end].float())


def test_a_sum_that_is_1_but_for_rounding_multiplies_nothing():
    """Shares sum to 1, whatever float64 makes of them, so that equal inputs come back bit for bit."""
    assert Weighting([0.1] * 10, 5, CPU).cut(0, 5)[1] == 1.0
    assert Weighting([0.5, 0.5 + 1e-9], 5, CPU).cut(0, 5)[1] != 1.0


def test_what_stands_for_a_coefficient_of_many_slices_is_their_mean(tmp_path):
    """The report has one number for each source: the mean over rows, and cosine and norms of what was written."""
    x, y = torch.tensor([[1.0, 0.0], [0.0, 2.0]]), torch.tensor([[0.0, 1.0], [0.0, 4.0]])
    bench = Bench(tmp_path, [x, y])
    made, result = bench.combine(bench.plan("nuslerp", weight=(0.5, 0.5), nuslerp_flatten=0.0))
    turned = math.sin(math.pi / 4)
    assert made.flatten().tolist() == pytest.approx([turned, turned, 0.0, 3.0])
    assert result.coefficients == pytest.approx([(turned + 0.5) / 2] * 2, abs=1e-6)
    assert result.norm_ratio == pytest.approx(math.sqrt(10 / 5), rel=1e-4)
    assert result.cosine == pytest.approx((turned + 6) / math.sqrt(50), rel=1e-4)
    assert average(torch.zeros(0, 1)) == 0.0


@pytest.mark.parametrize(
    "parameters", [{}, {"nuslerp_flatten": 0.0}, {"nuslerp_flatten": 0.0, "nuslerp_row_wise": 1.0}]
)
@pytest.mark.parametrize("number", [0, 1, 2])
@pytest.mark.parametrize("block", [2, 5, 64])
def test_an_input_that_is_no_number_is_named(tmp_path, parameters, number: int, block: int):
    """In task vectors, rows and columns too, the blame is the input's and at its place."""
    tensors = [draw(n, 24, torch.float32).view(4, 6) for n in range(3)]
    tensors[number][2, 3] = math.nan
    bench = Bench(tmp_path, tensors)
    plan = bench.plan("nuslerp", has_base=True, weight=(0.0, 0.5, 0.5), **parameters)
    with pytest.raises(CheckpointError, match=rf"^model{number} holds NaN or infinity in piece9, at element 15\.\n"):
        bench.combine(plan, block)


@pytest.mark.slow
@pytest.mark.parametrize("axis", ["nuslerp_flatten", "nuslerp_row_wise"])
@given(seed=st.integers(0, 99), rows=st.integers(1, 9), columns=st.integers(1, 9))
def test_blocks_that_end_anywhere_make_no_difference(axis: str, seed: int, rows: int, columns: int):
    """Blocks smaller than a row, of several rows and of everything give the same, to float32's last rounding."""
    tensors = [draw(seed + n, rows * columns, torch.float32).view(rows, columns) for n in range(3)]
    parameters = {"nuslerp_flatten": 0.0, axis: float(axis == "nuslerp_row_wise")}
    made = [
        make("nuslerp", tensors, block, has_base=True, weight=(0.0, 0.4, 0.6), **parameters)
        for block in (1, 7, 30, 2**18)
    ]
    for each in made[1:]:
        torch.testing.assert_close(each, made[0], rtol=1e-5, atol=1e-6)


def test_one_large_row_is_cut_in_blocks():
    """Rows longer than a block are merged like short ones."""
    x, y = draw(1, 3000, torch.bfloat16).view(3, 1000), draw(2, 3000, torch.bfloat16).view(3, 1000)
    parameters = {"weight": (0.3, 0.7), "nuslerp_flatten": 0.0}
    assert same_bits(make("nuslerp", [x, y], 64, **parameters), make("nuslerp", [x, y], 2**17, **parameters))
