"""Sums of task vectors."""

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from xmerge.methods import find_method
from xmerge.methods.contract import Gram

METHOD = find_method("task_arithmetic")
numbers = st.floats(-4, 4)
weights = st.lists(numbers, min_size=2, max_size=5)


def coefficients(weight: list[float], scale: float = 1.0, *, normalize: bool = False, **ignored: float):
    """The method's answer, which needs no weights; the first weight is the base's, and does not count."""
    parameters = {"weight": weight, "lambda": scale, "normalize": float(normalize), "density": [1.0] * len(weight)}
    return METHOD.coefficients(Gram(), len(weight), {"rescale": 0.0, "int8_mask": 0.0, **parameters, **ignored})


@given(weights, numbers, st.lists(numbers, min_size=5, max_size=5))
def test_the_result_is_the_base_plus_weighted_task_vectors(weight: list[float], scale: float, points: list[float]):
    """The coefficients of the inputs say the same as base + lambda * sum of w * (donor - base)."""
    base, *donors = points[: len(weight)]
    expected = base + scale * sum(w * (x - base) for w, x in zip(weight[1:], donors, strict=True))
    answer = coefficients(weight, scale)
    assert sum(c * x for c, x in zip(answer, [base, *donors], strict=True)) == pytest.approx(expected, abs=1e-9)


@given(weights, numbers)
def test_coefficients_sum_to_one(weight: list[float], scale: float):
    """What the donors bring is taken from the base, so that equal models give themselves."""
    assert sum(coefficients(weight, scale)) == pytest.approx(1.0, abs=1e-9)
    assert sum(coefficients(weight, scale, normalize=True)) == pytest.approx(1.0, abs=1e-6)


@given(weights, st.floats(0.1, 10))
def test_normalized_weights_need_not_sum_to_anything(weight: list[float], factor: float):
    """Normalized, only the ratio of the weights counts."""
    assume(abs(sum(weight[1:])) > 0.1)
    more = [factor * each for each in weight]
    assert coefficients(weight, normalize=True) == pytest.approx(coefficients(more, normalize=True), rel=1e-6, abs=1e-6)


def test_weights_without_a_sum_are_not_divided():
    """Where the weights sum to zero, normalization leaves them as they are."""
    assert coefficients([9.0, 1.0, -1.0], normalize=True) == (1.0, 1.0, -1.0)


def test_the_weight_of_the_base_does_not_count():
    """The base is what task vectors are measured from, and has no weight of its own."""
    assert coefficients([5.0, 0.5]) == coefficients([-3.0, 0.5]) == (0.5, 0.5)


def test_what_has_no_effect_has_none():
    """Keys that mergekit reads and does not use are read and not used."""
    assert coefficients([1.0, 0.5], rescale=1.0, int8_mask=1.0) == coefficients([1.0, 0.5])


def test_nothing_of_the_donors_is_the_base():
    """At lambda 0, or at weights of 0, the base is the whole result."""
    assert coefficients([1.0, 0.7, 0.2], 0.0) == (1.0, 0.0, 0.0)
    assert coefficients([1.0, 0.0, 0.0]) == (1.0, 0.0, 0.0)
