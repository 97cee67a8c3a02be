"""The mean of directions on the sphere."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.engine.bench import draw, make
from tests.methods.grams import combine, gram_of
from xmerge.methods import find_method
from xmerge.methods.contract import Gram

KARCHER = find_method("karcher")
DEFAULTS = {"max_iter": 10.0, "tol": 1e-5}


def mean(inputs: Sequence[torch.Tensor], **changed: float) -> torch.Tensor:
    """The method's answer for some tensors, in float64."""
    found = KARCHER.coefficients(gram_of(inputs), len(inputs), {**DEFAULTS, "weight": [1.0] * len(inputs), **changed})
    return combine(found, inputs)


def expect(inputs: Sequence[torch.Tensor], steps: int = 10, tol: float = 1e-5) -> torch.Tensor:
    """The iteration on the vectors themselves, in float64."""
    vectors = [each.double().reshape(-1) for each in inputs]
    norms = [float(each.norm()) for each in vectors]
    units = [each / norm for each, norm in zip(vectors, norms, strict=True) if norm > tol]
    u = torch.stack(units).mean(0)
    u = u / u.norm()
    for _ in range(steps):
        ways = []
        for each in units:
            angle = math.acos(max(-1.0, min(1.0, float(u @ each))))
            ways.append((each - float(u @ each) * u) * (angle / math.sin(angle) if angle >= tol else 0.0))
        step = torch.stack(ways).mean(0)
        length = float(step.norm())
        if length < tol:
            break
        u = math.cos(length) * u + math.sin(length) / length * step
        u = u / u.norm()
    mean: torch.Tensor = (u * (sum(norms) / len(norms))).view(inputs[0].shape)
    return mean


@given(
    seed=st.integers(0, 999),
    count=st.integers(2, 6),
    shape=st.sampled_from([(40,), (4, 16), (1, 50), (50, 1), (2, 5, 6)]),
    spread=st.sampled_from([0.01, 0.5, 3.0]),
)
def test_the_iteration_on_the_gram_matrix_is_that_on_the_vectors(seed: int, count: int, shape, spread: float):
    """The point on the sphere is a sum of the inputs at every step, so that inner products are enough."""
    size = math.prod(shape)
    common = draw(seed, size, torch.float32)
    inputs = [(common + spread * draw(seed + 1 + n, size, torch.float32)).view(shape) for n in range(count)]
    torch.testing.assert_close(mean(inputs), expect(inputs), rtol=1e-6, atol=1e-7)
    made = make("karcher", inputs, 16, weight=(1.0,) * count)
    torch.testing.assert_close(made.double(), expect(inputs), rtol=1e-5, atol=1e-6)


def test_by_hand():
    """Three directions in a plane, at 0, 30 and 90 degrees, have their mean at 40; lengths of 1, 2 and 6 one of 3."""
    at = [math.radians(angle) for angle in (0, 30, 90)]
    inputs = [
        n * torch.tensor([math.cos(a), math.sin(a)], dtype=torch.float64) for n, a in zip((1, 2, 6), at, strict=True)
    ]
    wanted = 3 * torch.tensor([math.cos(math.radians(40)), math.sin(math.radians(40))], dtype=torch.float64)
    torch.testing.assert_close(mean(inputs), wanted, rtol=0.0, atol=1e-9)
    # The mean of the unit vectors, where the walk begins, is another direction.
    assert float((mean(inputs, max_iter=0.0) - wanted).norm()) > 0.01


@given(seed=st.integers(0, 999), count=st.integers(2, 5))
def test_at_the_mean_all_ways_cancel_out(seed: int, count: int):
    """The sum of the ways from the mean to all directions along the sphere is 0: no step makes it better."""
    inputs = [draw(seed, 30, torch.float64) + draw(seed + 1 + n, 30, torch.float64) for n in range(count)]
    u = mean(inputs, max_iter=100.0, tol=1e-12)
    u = u / u.norm()
    way = torch.zeros(30, dtype=torch.float64)
    for each in inputs:
        cosine = float(each @ u / each.norm())
        tangent = each / each.norm() - cosine * u
        way += math.acos(cosine) * tangent / tangent.norm()
    assert float(way.norm()) < 1e-6


@pytest.mark.parametrize("factor", [-1.0, -3.0])
def test_of_two_opposite_models_the_first_is_taken(factor: float):
    """They have no mean direction; the result has the first one's, and the mean of their lengths."""
    x = draw(1, 1000, torch.float32).double()
    torch.testing.assert_close(mean([x, factor * x]), x * (1 - factor) / 2, rtol=1e-9, atol=0.0)


def test_a_tensor_of_zeros_counts_in_the_length_alone():
    """It has no direction, and makes the others' mean shorter."""
    x, y = torch.tensor([3.0, 0.0]), torch.tensor([0.0, 3.0])
    wanted = torch.tensor([math.sqrt(2.0), math.sqrt(2.0)], dtype=torch.float64)
    torch.testing.assert_close(mean([x, y, torch.zeros(2)]), wanted)
    assert torch.equal(mean([torch.zeros(2)] * 3), torch.zeros(2, dtype=torch.float64))


def test_a_tensor_no_longer_than_tol_has_no_direction():
    """It does not pull the mean its way, and counts in the length."""
    x, short = torch.tensor([1.0, 0.0], dtype=torch.float64), torch.tensor([0.0, 1e-3], dtype=torch.float64)
    torch.testing.assert_close(mean([x, short], tol=1e-2), x * (1.001 / 2), rtol=1e-12, atol=0.0)
    assert mean([x, short])[1] > 0.1


def test_tensors_too_short_to_have_a_direction_are_averaged():
    """Below `tol` mergekit makes them 0; a model merged with itself is itself here too."""
    x = torch.tensor([3e-6, -4e-6], dtype=torch.float64)
    torch.testing.assert_close(mean([x, x]), x, rtol=1e-12, atol=0.0)
    torch.testing.assert_close(mean([x, 3 * x], tol=1e-4), 2 * x, rtol=1e-12, atol=0.0)


def test_one_model_alone_is_unchanged():
    """Before anything is read."""
    assert KARCHER.coefficients(Gram(), 1, {**DEFAULTS, "weight": [0.3]}) == (1.0,)


@given(weights=st.lists(st.floats(-2, 2), min_size=3, max_size=3))
def test_weights_have_no_effect(weights: list[float]):
    """All models count alike: mergekit's recipes may have weights, and neither program looks at them."""
    inputs = [draw(n, 20, torch.float64) for n in range(3)]
    assert torch.equal(
        mean(inputs), combine(KARCHER.coefficients(gram_of(inputs), 3, {**DEFAULTS, "weight": weights}), inputs)
    )
    weight = KARCHER.parameter("weight")
    assert weight is not None
    assert "without effect" in weight.range.text


def test_the_number_of_steps_is_a_whole_number():
    """Half a step does not exist, nor fewer than none."""
    steps = KARCHER.parameter("max_iter")
    assert steps is not None
    assert 0 in steps.range
    assert 2.5 not in steps.range
    assert -1 not in steps.range


def test_models_that_are_all_but_parallel_have_a_mean():
    """Angles that products in float32 take for 0 count, where mergekit leaves a part of the models out of a step."""
    first = draw(1, 400, torch.float32)
    tensors = [first, *(first + 1.5e-4 * seed * draw(seed, 400, torch.float32) for seed in (1, 2, 3))]
    # So near to each other, the mean on the sphere is that of the directions.
    wide = [each.double() for each in tensors]
    mean = sum(each / each.norm() for each in wide)
    expected = mean / mean.norm() * sum(each.norm() for each in wide) / len(wide)
    made = make("karcher", tensors, tol=1e-7, max_iter=1)
    torch.testing.assert_close(made.double(), expected, rtol=3e-7, atol=3e-7)
