"""Spherical interpolation of two models or of their task vectors, whole, by rows or by columns."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.engine.bench import draw, make, same_bits
from tests.methods.grams import combine, gram_of
from xmerge.methods import find_method
from xmerge.methods.contract import Gram, GramUnknownError

NUSLERP = find_method("nuslerp")
AXES: dict[int | None, dict[str, Any]] = {
    None: {},
    -1: {"nuslerp_flatten": 0.0},
    0: {"nuslerp_flatten": 0.0, "nuslerp_row_wise": 1.0},
}
axes = pytest.mark.parametrize("axis", AXES)
shapes = st.sampled_from([(1,), (7,), (4, 6), (1, 5), (5, 1), (2, 3, 4), (0,), (3, 0), ()])


def interpolate(x: torch.Tensor, y: torch.Tensor, t: float) -> torch.Tensor:
    """Two vectors in float64, turned by t of the angle between them."""
    u, v = (each / each.norm().clamp(min=1e-7) for each in (x, y))
    angle = 2.0 * math.atan2(float((u - v).norm()), float((u + v).norm()))
    if min(angle, math.pi - angle) < 1e-5:
        return (1 - t) * x + t * y
    if min(x.norm(), y.norm()) < 1e-7:
        # A vector of nothing stands at a right angle.
        angle = math.pi / 2
    return (math.sin((1 - t) * angle) * x + math.sin(t * angle) * y) / math.sin(angle)


def expect(x: torch.Tensor, y: torch.Tensor, t: float, axis: int | None, base: torch.Tensor | None) -> torch.Tensor:
    """The formula in float64, vector by vector."""
    origin = torch.zeros_like(x).double() if base is None else base.double()
    one, two = x.double() - origin, y.double() - origin
    if axis is None or x.dim() < 2:
        return origin + interpolate(one.reshape(-1), two.reshape(-1), t).view(x.shape)
    if not x.numel():
        return origin
    one, two = (each.movedim(axis, -1) for each in (one, two))
    rows = [
        interpolate(u, v, t)
        for u, v in zip(one.reshape(-1, one.shape[-1]), two.reshape(-1, two.shape[-1]), strict=True)
    ]
    return origin + torch.stack(rows).view(one.shape).movedim(-1, axis)


def draw_shape(seed: int, shape: tuple[int, ...]) -> torch.Tensor:
    """Normal numbers in float32."""
    return draw(seed, math.prod(shape), torch.float32).view(shape)


@axes
@pytest.mark.parametrize("has_base", [False, True])
@given(seed=st.integers(0, 99), shape=shapes, t=st.floats(0.01, 0.99), block=st.sampled_from([1, 5, 64]))
def test_the_result_is_the_formula(axis, has_base: bool, seed: int, shape: tuple[int, ...], t: float, block: int):
    """Of whole tensors, rows and columns, in blocks that end anywhere, with a base and without."""
    x, y, base = (draw_shape(seed + number, shape) for number in range(3))
    inputs, weight = ([base, x, y], (0.0, 1 - t, t)) if has_base else ([x, y], (1 - t, t))
    made = make("nuslerp", inputs, block, has_base=has_base, weight=weight, **AXES[axis])
    wanted = expect(x, y, t, axis, base if has_base else None)
    # Vectors of few numbers may be all but opposite, and then what they share is divided by next to nothing.
    near = wanted.abs() < 20
    torch.testing.assert_close(made.double()[near], wanted[near], rtol=1e-4, atol=2e-5)


def test_by_hand():
    """At a right angle, weights of 1 and 2 go two thirds of the way: half the one, and sqrt(3)/2 of the other."""
    x, y = torch.tensor([2.0, 0.0]), torch.tensor([0.0, 4.0])
    assert make("nuslerp", [x, y], weight=(1.0, 2.0)).tolist() == pytest.approx([1.0, 2 * math.sqrt(3)])
    base = torch.tensor([1.0, 1.0])
    moved = make("nuslerp", [base, x + 1, y + 1], has_base=True, weight=(0.0, 1.0, 2.0))
    assert moved.tolist() == pytest.approx([2.0, 1 + 2 * math.sqrt(3)])


def test_row_wise_are_columns_and_the_default_are_rows():
    """As mergekit does it: without either switch each row is a vector, with `nuslerp_row_wise` each column."""
    # Rows of x and y are parallel, columns are not.
    x, y = torch.tensor([[1.0, 1.0], [1.0, 1.0]]), torch.tensor([[3.0, 3.0], [1.0, 1.0]])
    rows = make("nuslerp", [x, y], weight=(1.0, 1.0), **AXES[-1])
    assert rows.tolist() == [[2.0, 2.0], [1.0, 1.0]]
    columns = make("nuslerp", [x, y], weight=(1.0, 1.0), **AXES[0])
    assert columns[0, 0].item() == pytest.approx(4 / (2 * math.cos(math.acos(4 / math.sqrt(20)) / 2)))
    assert torch.equal(columns, make("nuslerp", [x.T.contiguous(), y.T.contiguous()], weight=(1.0, 1.0), **AXES[-1]).T)


@axes
@pytest.mark.parametrize("has_base", [False, True])
@given(
    seed=st.integers(0, 99),
    shape=shapes,
    dtype=st.sampled_from([torch.bfloat16, torch.float32]),
    t=st.sampled_from([0.3, -0.5]),
)
def test_a_model_interpolated_with_itself_is_itself(axis, has_base, seed: int, shape: tuple[int, ...], dtype, t: float):
    """Equal inputs come back bit for bit, zeros with their signs, where a weight is negative too."""
    x = draw_shape(seed, shape).to(dtype)
    x = torch.where(x.abs() < 0.3, -0.0, x).to(dtype)
    inputs, weight = ([x] * 3, (0.0, 1 - t, t)) if has_base else ([x] * 2, (1 - t, t))
    assert same_bits(make("nuslerp", inputs, 3, has_base=has_base, weight=weight, **AXES[axis]), x)


@axes
def test_a_row_that_no_donor_changed_stays_as_it_is(axis):
    """Where the task vectors are 0 the base's numbers come back, whatever happens beside them."""
    base = draw_shape(1, (4, 6))
    x, y = base.clone(), base.clone()
    x[1, 2] += 1.0
    y[3, 2] -= 1.0
    made = make("nuslerp", [base, x, y], has_base=True, weight=(0.0, 0.5, 0.5), **AXES[axis])
    untouched = torch.ones_like(base, dtype=torch.bool)
    untouched[[1, 3], 2] = False
    assert torch.equal(made[untouched], base[untouched])
    assert not torch.equal(made, base)


@pytest.mark.parametrize("factor", [-1.0, -3.0, -0.1])
@pytest.mark.parametrize("t", [0.3, 0.5])
def test_opposite_tensors_are_interpolated_linearly(factor: float, t: float):
    """No plane holds the turn between opposite directions; rounding in float64 does not make one up."""
    x = draw(3, 10_000, torch.float32)
    y = (factor * x.double()).float()
    made = make("nuslerp", [x, y], weight=(1 - t, t))
    torch.testing.assert_close(made, (1 - t) * x + t * y, rtol=1e-5, atol=1e-6)


def test_nearly_parallel_tensors_are_turned():
    """Where slerp stops, at a cosine of 0.9995, an angle is still one here."""
    x, y = torch.tensor([1.0, 0.0]), torch.tensor([math.cos(0.01), math.sin(0.01)])
    made = make("nuslerp", [x, y], weight=(1.0, 1.0)).double()
    assert float(made.norm()) == pytest.approx(1.0, abs=1e-7)
    assert float((0.5 * x + 0.5 * y).norm()) < 1 - 1e-5


def test_a_tensor_of_zeros_stands_at_a_right_angle():
    """Without a direction of its own, and not shorter than 1e-7 for the angle's sake."""
    x, zero = torch.tensor([1.0, 0.0]), torch.zeros(2)
    assert make("nuslerp", [x, zero], weight=(3.0, 1.0)).tolist() == pytest.approx([math.sin(0.75 * math.pi / 2), 0.0])
    # A vector of 5e-8 counts as one of 1e-7: the cosine is 0.5, and the angle 60 degrees.
    one, two = NUSLERP.coefficients(gram_of([[1.0], [5e-8]]), 2, {"weight": [1.0, 1.0], **defaults()})
    assert one == two == pytest.approx(math.sin(math.pi / 6) / math.sin(math.pi / 3))


def defaults() -> dict[str, float]:
    """The switches as they are by default."""
    return {"nuslerp_flatten": 1.0, "nuslerp_row_wise": 0.0}


def test_weights_that_sum_to_zero_meet_half_way():
    """Where the weights say nothing, t is a half."""
    x, y = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])
    assert torch.equal(make("nuslerp", [x, y], weight=(1.0, -1.0)), make("nuslerp", [x, y], weight=(1.0, 1.0)))


def test_the_ends_are_known_without_the_weights():
    """A weight of 0 makes the other model the whole result, before anything is read, with a base and without."""
    assert NUSLERP.coefficients(Gram(), 2, {"weight": [2.0, 0.0], **defaults()}) == (1.0, 0.0)
    assert NUSLERP.coefficients(Gram(has_base=True), 3, {"weight": [0.0, 0.0, 2.0], **defaults()}) == (0.0, 0.0, 1.0)
    with pytest.raises(GramUnknownError):
        NUSLERP.coefficients(Gram(), 2, {"weight": [1.0, 1.0], **defaults()})


@given(seed=st.integers(0, 99), t=st.floats(0.0, 1.0))
def test_whole_tensors_are_turned_as_slerp_turns_them(seed: int, t: float):
    """Of two tensors that are neither parallel nor opposite, nuslerp makes what slerp makes."""
    x, y = draw(seed, 50, torch.float64), draw(seed + 100, 50, torch.float64)
    gram = gram_of([x, y])
    here = combine(NUSLERP.coefficients(gram, 2, {"weight": [1 - t, t], **defaults()}), [x, y])
    there = combine(find_method("slerp").coefficients(gram, 2, {"t": t}), [x, y])
    torch.testing.assert_close(here, there, rtol=1e-9, atol=1e-9)
