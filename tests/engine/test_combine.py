"""Combining: the formula to one rounding, in any blocks, and nothing that is no number."""

from __future__ import annotations

import math
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.engine.bench import Bench, draw, same_bits
from xmerge.errors import CheckpointError, InvalidMergeError

METHODS = [
    ("linear", {"weight": (0.3, 0.7)}),
    ("linear", {"weight": (1.7, -0.7)}),
    ("slerp", {"t": 0.3}),
    ("task_arithmetic", {"weight": (0.0, 0.4), "lambda": 0.9}),
]
FLOATS = [torch.bfloat16, torch.float16, torch.float32]


def expect(method: str, parameters: dict[str, Any], x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """The methods' formulas in float64."""
    x, y = x.double(), y.double()
    if method == "linear":
        weights: tuple[float, float] = parameters["weight"]
        return weights[0] * x + weights[1] * y
    if method == "task_arithmetic":
        return x + 0.9 * 0.4 * (y - x)
    angle = math.acos(float(x @ y / (x.norm() * y.norm())))
    return (math.sin(0.7 * angle) * x + math.sin(0.3 * angle) * y) / math.sin(angle)


@pytest.mark.parametrize(("method", "parameters"), METHODS)
@pytest.mark.parametrize("dtype", FLOATS)
def test_the_result_is_the_formula_to_one_rounding(tmp_path, method, parameters, dtype):
    """Each number is the float64 formula's, rounded once to the output's dtype, up to float32 arithmetic before it."""
    x, y = draw(1, 1000, dtype), draw(2, 1000, dtype)
    bench = Bench(tmp_path, [x, y])
    made, _ = bench.combine(bench.plan(method, **parameters), 64)
    wanted = expect(method, parameters, x, y)
    allowed = torch.finfo(dtype).eps / 2 * wanted.abs() + 8 * torch.finfo(torch.float32).eps
    assert made.dtype == dtype
    assert bool(((made.double() - wanted).abs() <= allowed).all())


@given(
    seed=st.integers(0, 2**32),
    elements=st.integers(1, 40),
    which=st.sampled_from(METHODS),
    dtype=st.sampled_from(FLOATS),
    scale=st.sampled_from([1.0, 1e-3, 1e30, 0.0]),
)
def test_a_tensor_combined_with_itself_is_itself(seed, elements, which, dtype, scale):
    """Every method is idempotent, bit for bit, for numbers of any size."""
    x = (draw(seed, elements, torch.float64) * scale).clamp(-6e4, 6e4).to(dtype)
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder), [x, x])
        made, _ = bench.combine(bench.plan(which[0], **which[1]), 7)
    assert same_bits(made, x)


@pytest.mark.parametrize(("method", "parameters"), METHODS)
def test_the_blocks_do_not_matter(tmp_path, method, parameters):
    """Blocks of 1, of 7 and of all elements give the same numbers; sums over all of them, the same to a rounding."""
    bench = Bench(tmp_path, [draw(1, 1000, torch.float32), draw(2, 1000, torch.float32)])
    plan = bench.plan(method, **parameters)
    made = {block: bench.combine(plan, block) for block in (1, 7, 2**17)}
    first, told = made[1]
    for tensor, result in made.values():
        if plan.layers[0].tensors[0].coefficients is not None:
            assert same_bits(tensor, first)
        torch.testing.assert_close(tensor, first, rtol=2e-7, atol=1e-7)
        assert result.coefficients == pytest.approx(told.coefficients, rel=1e-5)
        assert result.cosine == pytest.approx(told.cosine, abs=1e-5)


@pytest.mark.parametrize(("method", "parameters"), METHODS)
def test_what_is_told_of_a_tensor_is_what_became_of_it(tmp_path, method, parameters):
    """Cosine and norm ratio to the base are those of the tensor that was written."""
    x, y = draw(1, 500, torch.float32), draw(2, 500, torch.float32)
    bench = Bench(tmp_path, [x, y])
    made, result = bench.combine(bench.plan(method, **parameters), 64)
    cosine = torch.nn.functional.cosine_similarity(made.double(), x.double(), dim=0)
    assert result.cosine == pytest.approx(float(cosine), abs=1e-5)
    assert result.norm_ratio == pytest.approx(float(made.double().norm() / x.double().norm()), rel=5e-5)
    if method == "slerp":
        between = torch.nn.functional.cosine_similarity(x.double(), y.double(), dim=0)
        assert result.donor_cosines == pytest.approx((float(between),), abs=1e-5)


def test_a_tensor_of_zeros_has_no_direction(tmp_path):
    """Where there is no angle, none is told, and the interpolation is linear."""
    bench = Bench(tmp_path, [torch.zeros(10), draw(1, 10, torch.float32)])
    made, result = bench.combine(bench.plan("slerp", t=0.5), 4)
    assert (result.cosine, result.norm_ratio, result.donor_cosines) == (None, None, ())
    assert torch.isfinite(made).all()


@pytest.mark.parametrize(("method", "parameters"), METHODS)
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("number", [0, 1])
def test_an_input_that_is_no_number_is_named(tmp_path, method, parameters, bad, number):
    """NaN or infinity in any source is refused with the model, the tensor and the place of the first."""
    tensors = [draw(1, 100), draw(2, 100)]
    tensors[number][[57, 93]] = bad
    bench = Bench(tmp_path, tensors)
    with pytest.raises(CheckpointError) as caught:
        bench.combine(bench.plan(method, **parameters), 8)
    assert str(caught.value) == (
        f"model{number} holds NaN or infinity in piece9, at element 57.\n"
        "  at: for out of the output\n"
        "  do: repair the model, leave the tensor out with a filter, or say 'on_nonfinite: base'."
    )


def test_a_number_too_large_for_the_output_is_named(tmp_path):
    """What the arithmetic cannot bring into the output's dtype is refused with the tensor and the place."""
    x = torch.ones(10)
    x[3] = 60_000.0
    bench = Bench(tmp_path, [x, x])
    plan = bench.plan("linear", dtype="F16", weight=(1.0, 1.0), normalize=0.0)
    with pytest.raises(InvalidMergeError) as caught:
        bench.combine(plan, 4)
    assert str(caught.value).startswith("out overflows F16 at element 3.\n  why: linear gives a number that F16")


def test_a_large_sum_of_small_numbers_is_nobodys_fault(tmp_path):
    """Numbers that are all finite pass, even where their sum is not."""
    x = torch.full((1000,), 3e38)
    bench = Bench(tmp_path, [x, x])
    made, _ = bench.combine(bench.plan("linear", weight=(0.3, 0.7)), 100)
    assert same_bits(made, x)


def test_a_shift_is_added_before_the_arithmetic(tmp_path):
    """A norm of another convention is brought to the base's as it is read."""
    x = draw(1, 50, torch.float32)
    bench = Bench(tmp_path, [x])
    made, _ = bench.combine(bench.plan("passthrough", shift=1.0), 8)
    assert same_bits(made, x + 1.0)
