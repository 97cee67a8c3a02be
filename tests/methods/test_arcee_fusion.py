"""The donor's numbers where their change is important."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.engine.bench import draw, make, same_bits


def draw_pair(seed: int, shape: tuple[int, ...], scale: float = 0.05) -> list[torch.Tensor]:
    """A base and a donor near it."""
    count = torch.Size(shape).numel()
    base = 0.1 * draw(seed, count, torch.float32)
    return [base.view(shape), (base + scale * draw(seed + 1, count, torch.float32)).view(shape)]


def expect(base: torch.Tensor, donor: torch.Tensor) -> torch.Tensor:
    """The formula, with all importances sorted."""
    p, q = (each.softmax(-1) + 1e-8 for each in (donor, base))
    importance = (donor - base).abs() * (p * (p / q).log()).sum(-1, keepdim=True)
    ordered = importance.reshape(-1).sort().values
    low, middle, high = (ordered[(ordered.numel() - 1) * quarter // 4] for quarter in (1, 2, 3))
    return torch.where(importance >= middle + 1.5 * (high - low), donor, base)


def test_by_hand():
    """In one row the changes alone decide: quartiles 0.2 and 0.4 and a median of 0.3 make a threshold of 0.6."""
    base, donor = torch.zeros(5), torch.tensor([0.1, 0.2, -0.3, 0.4, 2.0])
    assert make("arcee_fusion", [base, donor]).tolist() == [0.0, 0.0, 0.0, 0.0, 2.0]
    assert make("arcee_fusion", [base, donor.flip(0)]).tolist() == [2.0, 0.0, 0.0, 0.0, 0.0]


@given(
    seed=st.integers(0, 99),
    shape=st.lists(st.integers(1, 9), min_size=1, max_size=3),
    scale=st.sampled_from([0.05, 0.5, 1e-4]),
    block=st.sampled_from([1, 7, 64]),
)
def test_the_result_is_the_formula(seed: int, shape: list[int], scale: float, block: int):
    """The fused numbers are the donor's bit for bit, the others the base's, as when all importances are sorted."""
    base, donor = draw_pair(seed, tuple(shape), scale)
    assert same_bits(make("arcee_fusion", [base, donor], block), expect(base, donor))


def test_a_row_that_is_only_shifted_is_not_changed():
    """A softmax does not see a shift, so numbers of a shifted row have no importance, however large their change."""
    base = torch.arange(8.0).view(2, 4)
    donor = base + torch.tensor([[4.0] * 4, [0.0, 0.25, 0.5, 2.0]])
    # The importances are 0 (five times), 0.25 K, 0.5 K and 2 K, and the threshold is 0 + 1.5 (0.25 K - 0).
    assert make("arcee_fusion", [base, donor]).tolist() == [base[0].tolist(), [4.0, 5.0, 6.5, 9.0]]


def test_rounding_can_make_a_row_less_important_than_none():
    """A divergence that rounding brings below 0 still orders the numbers, as it does in mergekit."""
    base, donor = draw_pair(0, (64, 32), 1e-4)
    p, q = donor.softmax(-1) + 1e-8, base.softmax(-1) + 1e-8
    assert 0.25 < ((p * (p / q).log()).sum(-1) < 0).float().mean() < 0.75
    assert same_bits(make("arcee_fusion", [base, donor], 64), expect(base, donor))


def test_every_number_of_a_large_tensor_counts():
    """Above a million numbers the quartiles are those of all of them, not of a random million as in mergekit."""
    base, donor = draw_pair(1, (1100, 1000))
    made = make("arcee_fusion", [base, donor])
    assert same_bits(made, expect(base, donor))
    assert same_bits(make("arcee_fusion", [base, donor]), made)


@pytest.mark.parametrize("shape", [(1,), (), (1, 1), (4, 1)])
def test_a_row_of_one_number_has_one_softmax(shape: tuple[int, ...]):
    """Rows of one number do not diverge: nothing is more important than nothing, and all is the donor's."""
    base = torch.zeros(shape)
    assert same_bits(make("arcee_fusion", [base, base + 1]), base + 1)


def test_numbers_of_bfloat16_stay_bfloat16():
    """The output has the base's dtype, where mergekit writes float32."""
    base = draw(1, 20)
    assert make("arcee_fusion", [base, base + draw(2, 20)]).dtype == torch.bfloat16
