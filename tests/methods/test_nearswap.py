"""The donor's numbers where they are near the base's."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.engine.bench import draw, make, same_bits
from xmerge.config import parse_config
from xmerge.errors import ConfigError

numbers = st.lists(st.floats(-2, 2, width=32), min_size=1, max_size=20)


def test_by_hand():
    """With t = 0.001 numbers nearer than that are the donor's, and others go 0.001 towards them."""
    base, donor = torch.zeros(5), torch.tensor([0.0005, 0.001, 0.002, -0.004, 0.0])
    made = make("nearswap", [base, donor], t=0.001)
    torch.testing.assert_close(made, torch.tensor([0.0005, 0.001, 0.001, -0.001, 0.0]), rtol=1e-6, atol=0)


@given(one=numbers, other=numbers, t=st.floats(0, 1))
def test_no_number_moves_further_than_t_or_beyond_the_donor(one: list[float], other: list[float], t: float):
    """Each number goes towards the donor's by t, and is the donor's bit for bit if that is not further away."""
    size = min(len(one), len(other))
    base, donor = torch.tensor(one[:size]), torch.tensor(other[:size])
    made = make("nearswap", [base, donor], 7, t=t).double()
    distance = (donor.double() - base.double()).abs()
    far = distance >= 1e-6
    near = far & (distance < t * (1 - 1e-6))
    assert torch.equal(made[near], donor.double()[near])
    expected = base.double() + (donor.double() - base.double()).sign() * distance.clamp(max=t)
    torch.testing.assert_close(made[far], expected[far], rtol=3e-7, atol=3e-7)


def test_numbers_that_are_all_but_equal_are_taken_to_be_a_millionth_apart():
    """Within 1e-6 of each other, a number goes by its share of t in 1e-6."""
    base, donor = torch.zeros(3), torch.tensor([5e-7, -1e-6, 2e-6])
    made = make("nearswap", [base, donor], t=1e-7)
    torch.testing.assert_close(made, torch.tensor([5e-8, -1e-7, 1e-7]), rtol=1e-6, atol=0)


def test_the_ends_are_base_and_donor():
    """At t = 0 the result is the base, and where t is as large as the farthest number it is the donor, bit for bit."""
    base, donor = draw(1, 100, torch.float32), 1e-4 * draw(2, 100, torch.float32)
    assert same_bits(make("nearswap", [base, donor], 7, t=0.0), base)
    assert same_bits(make("nearswap", [base, donor], 7, t=10.0), donor)


def test_a_distance_below_0_is_refused():
    """A negative t is refused before anything is read, with its place."""
    text = "merge_method: nearswap\nbase_model: a\nmodels: [{model: a}, {model: b}]\nparameters: {t: -0.1}\n"
    with pytest.raises(ConfigError) as caught:
        parse_config(text, "recipe.yml", Path())
    assert "'t' is -0.1; it must be 0 or more" in str(caught.value)
