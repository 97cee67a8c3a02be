"""Spherical interpolation."""

import math

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from tests.methods.grams import know_gram
from xmerge.methods import find_method
from xmerge.methods.contract import Gram, GramUnknownError

SLERP = find_method("slerp")
lists = st.lists(st.floats(-10, 10), min_size=5, max_size=5)
fractions = st.floats(0, 1)


def coefficients(a: np.ndarray, b: np.ndarray, t: float) -> np.ndarray:
    """The method's answer for two vectors."""
    products = [[float(np.dot(x, y)) for y in (a, b)] for x in (a, b)]
    return np.array(SLERP.coefficients(know_gram(products), 2, {"t": t}))


def slerp(a: np.ndarray, b: np.ndarray, t: float) -> np.ndarray:
    """Turn by t of the angle in the plane of two vectors, and take from each as much as makes the turned direction."""
    u, v = a / np.linalg.norm(a), b / np.linalg.norm(b)
    angle = 2 * math.atan2(np.linalg.norm(u - v), np.linalg.norm(u + v))
    # Solve for the coefficients that turn e0 by t * angle towards the unit vector at `angle`.
    frame = np.array([[1.0, math.cos(angle)], [0.0, math.sin(angle)]])
    turned = np.linalg.solve(frame, np.array([math.cos(t * angle), math.sin(t * angle)]))
    return np.asarray(turned[0] * a + turned[1] * b)


@given(lists, lists, fractions)
def test_slerp_is_a_turn_in_the_plane_of_two_tensors(one: list[float], other: list[float], t: float):
    """Between two tensors that are neither parallel nor opposite, the result is their turn by t of the angle."""
    a, b = np.array(one), np.array(other)
    assume(np.linalg.norm(a) > 1e-3)
    assume(np.linalg.norm(b) > 1e-3)
    assume(abs(np.dot(a, b) / np.linalg.norm(a) / np.linalg.norm(b)) < 0.9994)
    first, second = coefficients(a, b, t)
    np.testing.assert_allclose(first * a + second * b, slerp(a, b, t), rtol=1e-9, atol=1e-9)


@given(lists, lists, fractions)
def test_unit_vectors_keep_their_length(one: list[float], other: list[float], t: float):
    """Between two unit vectors the result is a unit vector, unless they are nearly parallel or opposite."""
    a, b = np.array(one), np.array(other)
    assume(np.linalg.norm(a) > 1e-3)
    assume(np.linalg.norm(b) > 1e-3)
    a, b = a / np.linalg.norm(a), b / np.linalg.norm(b)
    assume(abs(np.dot(a, b)) < 0.9994)
    first, second = coefficients(a, b, t)
    assert np.linalg.norm(first * a + second * b) == pytest.approx(1.0, abs=1e-9)


@given(lists, st.floats(0.1, 10), fractions)
def test_parallel_tensors_are_interpolated_linearly(one: list[float], factor: float, t: float):
    """Where two tensors point the same way or opposite ways there is no turn, and the line between them is taken."""
    a = np.array(one)
    assume(np.linalg.norm(a) > 1e-3)
    for b in (factor * a, -factor * a):
        assert coefficients(a, b, t) == pytest.approx([1 - t, t])


@given(lists, fractions)
def test_a_tensor_of_zeros_stands_at_a_right_angle(one: list[float], t: float):
    """A tensor of zeros has no direction; the other one goes in by the sine of its share of a right angle."""
    a = np.array(one)
    assume(np.linalg.norm(a) > 1e-3)
    zero = np.zeros(5)
    assume(0 < t < 1)
    assert coefficients(a, zero, t) == pytest.approx([math.sin((1 - t) * math.pi / 2), math.sin(t * math.pi / 2)])
    assert coefficients(zero, a, t) == pytest.approx([math.sin((1 - t) * math.pi / 2), math.sin(t * math.pi / 2)])


@given(lists, lists, fractions)
def test_there_and_back(one: list[float], other: list[float], t: float):
    """Going t of the way from the base to the donor is going 1 - t of the way from the donor to the base."""
    a, b = np.array(one), np.array(other)
    assert coefficients(a, b, t) == pytest.approx(coefficients(b, a, 1 - t)[::-1], rel=1e-6, abs=1e-6)


def test_the_ends_are_known_without_the_weights():
    """At t = 0 the base and at t = 1 the donor is the whole result, before any weight is read; not so between them."""
    assert SLERP.coefficients(Gram(), 2, {"t": 0.0}) == (1.0, 0.0)
    assert SLERP.coefficients(Gram(), 2, {"t": 1.0}) == (0.0, 1.0)
    with pytest.raises(GramUnknownError):
        SLERP.coefficients(Gram(), 2, {"t": 0.5})


def test_by_hand():
    """At a right angle, t = 0.3 gives 0.89 base + 0.45 donor; from a tensor of zeros, t = 0.25 gives 0.3827 donor."""
    assert SLERP.coefficients(know_gram([[1, 0], [0, 4]]), 2, {"t": 0.3}) == pytest.approx((0.891, 0.454), abs=5e-4)
    assert SLERP.coefficients(know_gram([[0, 0], [0, 1]]), 2, {"t": 0.25})[1] == pytest.approx(0.3827, abs=5e-5)
