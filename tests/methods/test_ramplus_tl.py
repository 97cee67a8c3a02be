"""Task vectors where one donor moved, raised for what is lost where several did."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.engine.bench import draw, make, same_bits
from tests.methods.test_ram import EPSILON, draw_sparse, expect


def find_gains(tensors: list[torch.Tensor], r: float, alpha: float) -> list[float]:
    """For each donor 1 + r min(shared / alone, alpha), from the sets of the places that it moved."""
    base, *donors = (each.reshape(-1) for each in tensors)
    places = [set(torch.nonzero((x - base).abs() > EPSILON).view(-1).tolist()) for x in donors]
    gains = []
    for number, own in enumerate(places):
        others = set().union(*(each for index, each in enumerate(places) if index != number))
        alone = len(own - others)
        gains.append(1 + r * min(len(own & others) / alone if alone else alpha, alpha))
    return gains


def test_by_hand():
    """A donor that shares one place and moved two alone has those raised by 1 + 0.5 r; shared places are averaged."""
    base = torch.zeros(4)
    one, other = torch.tensor([1.0, 1.0, 2.0, 0.0]), torch.tensor([0.0, 0.0, 4.0, 0.0])
    assert make("ramplus_tl", [base, one, other], r=0.1, alpha=1.0).tolist() == pytest.approx([1.05, 1.05, 3.0, 0.0])
    assert make("ramplus_tl", [base, one, other], r=0.1, alpha=0.2).tolist() == pytest.approx([1.02, 1.02, 3.0, 0.0])


@given(
    seed=st.integers(0, 99),
    donors=st.integers(1, 5),
    r=st.floats(-1, 2),
    alpha=st.floats(0, 3),
    block=st.sampled_from([1, 7, 64]),
)
def test_the_result_is_the_formula(seed: int, donors: int, r: float, alpha: float, block: int):
    """Whatever the donors moved, the result is the formula's to float32 rounding."""
    tensors = draw_sparse(seed, (4, 9), donors)
    made = make("ramplus_tl", tensors, block, r=r, alpha=alpha, epsilon=EPSILON)
    expected = expect(tensors, find_gains(tensors, r, alpha))
    torch.testing.assert_close(made.double(), expected, rtol=1e-6, atol=1e-7)


def test_without_a_raise_it_is_ram():
    """With r = 0 or alpha = 0 nothing is raised."""
    tensors = draw_sparse(5, (60,), 3)
    plain = make("ram", tensors, epsilon=EPSILON)
    for made in (
        make("ramplus_tl", tensors, epsilon=EPSILON, r=0.0),
        make("ramplus_tl", tensors, epsilon=EPSILON, alpha=0.0),
    ):
        torch.testing.assert_close(made, plain, rtol=1e-6, atol=0)


@pytest.mark.parametrize("shape", [(0,), (1,), ()])
def test_small_tensors_have_no_more_than_they_hold_to_count(shape: tuple[int, ...]):
    """A donor that moved nothing alone, or a tensor of no number, divides by nothing."""
    base = torch.zeros(shape)
    assert same_bits(make("ramplus_tl", [base, base + 1, base + 2]), base + 1.5)
    assert same_bits(make("ramplus_tl", [base, base, base]), base)


def test_numbers_of_bfloat16_stay_bfloat16():
    """The output has the base's dtype, where mergekit writes float32."""
    base = draw(1, 20)
    assert make("ramplus_tl", [base, base + 1]).dtype == torch.bfloat16
