"""Weighted sums."""

import math

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from xmerge.methods import find_method
from xmerge.methods.contract import Gram

LINEAR = find_method("linear")
weights = st.lists(st.floats(-10, 10), min_size=1, max_size=6)


@given(weights)
def test_normalized_weights_are_shares(given_weights: list[float]):
    """Normalized, the coefficients sum to one and stand to each other as the weights do, whatever the tensors."""
    total = sum(given_weights)
    assume(abs(total) > 1e-3)
    shares = LINEAR.coefficients(Gram(), len(given_weights), {"weight": given_weights, "normalize": 1.0})
    assert math.fsum(shares) == pytest.approx(1.0, abs=1e-9)
    assert [share * total for share in shares] == pytest.approx(given_weights, abs=1e-9)


@given(weights)
def test_weights_that_are_not_normalized_are_the_coefficients(given_weights: list[float]):
    """Without normalization the sum is taken as it is written."""
    answer = LINEAR.coefficients(Gram(), len(given_weights), {"weight": given_weights, "normalize": 0.0})
    assert list(answer) == given_weights


def test_weights_without_a_sum_cannot_be_normalized():
    """Dividing by a sum of zero is refused, and the weights are told."""
    with pytest.raises(ValueError, match=r"the weights \[1.0, -1.0\] sum to 0, and 'normalize' divides by their sum"):
        LINEAR.coefficients(Gram(), 2, {"weight": [1.0, -1.0], "normalize": 1.0})


def test_by_hand():
    """Two models at weights 1 and 3 go in by a quarter and three quarters."""
    assert LINEAR.coefficients(Gram(), 2, {"weight": [1.0, 3.0], "normalize": 1.0}) == (0.25, 0.75)
