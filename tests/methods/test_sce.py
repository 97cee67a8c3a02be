"""Task vectors where they differ most, weighted by their squares, of one sign."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.engine.bench import draw, make, same_bits
from xmerge.methods.sce import count_share


def draw_near(seed: int, shape: tuple[int, ...], donors: int, scale: float = 0.3) -> list[torch.Tensor]:
    """A base, and donors whose task vectors have different sizes."""
    count = torch.Size(shape).numel()
    base = draw(seed, count, torch.float32)
    moves = [scale * (number + 1) * draw(seed + 1 + number, count, torch.float32) for number in range(donors)]
    return [each.view(shape) for each in (base, *(base + move for move in moves))]


def expect(tensors: list[torch.Tensor], share: float) -> np.ndarray:
    """Select, calculate, erase, in float64."""
    base, *donors = (each.reshape(-1) for each in tensors)
    deltas = np.array([(x - base).double().numpy() for x in donors])
    if share < 1:
        variance = deltas.var(axis=0)
        chosen = np.argsort(-variance, kind="stable")[: int(np.count_nonzero(variance) * share)]
        kept = np.zeros(base.numel(), dtype=bool)
        kept[chosen] = True
        deltas = deltas * kept
    squares = (deltas**2).mean(axis=1)
    weights = squares / squares.sum() if squares.sum() >= 1e-6 else np.full(len(donors), 1 / len(donors))
    sign = np.where(deltas.sum(axis=0) >= 0, 1.0, -1.0)
    shares = weights[:, None] * (np.sign(deltas) == sign)
    moved = (shares * deltas).sum(axis=0) / np.maximum(shares.sum(axis=0), 1e-6)
    result: np.ndarray = (base.double().numpy() + moved).reshape(tensors[0].shape)
    return result


def test_by_hand():
    """Mean squares of 2.5 and 10 weigh 0.2 and 0.8; where the signs differ the larger sum's alone goes in."""
    base = torch.tensor([1.0, 1.0])
    one, other = torch.tensor([2.0, 3.0]), torch.tensor([5.0, -1.0])
    # d = (1, 2) and (4, -2): at the first place (0.2 * 1 + 0.8 * 4) / 1, at the second a sum of 0 elects plus.
    assert make("sce", [base, one, other]).tolist() == pytest.approx([4.4, 3.0])
    # The variances are 2.25 and 4: the second place alone is kept, where the squares weigh equally.
    assert make("sce", [base, one, other], select_topk=0.5).tolist() == pytest.approx([1.0, 3.0])


@given(
    seed=st.integers(0, 99),
    donors=st.integers(1, 5),
    share=st.sampled_from([0.0, 0.123, 0.377, 0.789, 1.0]),
    scale=st.sampled_from([0.3, 1e-4]),
    block=st.sampled_from([1, 7, 64]),
)
def test_the_result_is_the_formula(seed: int, donors: int, share: float, scale: float, block: int):
    """Whatever the donors are, large or small, the result is the formula's to float32 rounding."""
    tensors = draw_near(seed, (5, 9), donors, scale)
    made = make("sce", tensors, block, select_topk=share)
    np.testing.assert_allclose(made.double().numpy(), expect(tensors, share), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("shape", [(32,), (4, 8), (1,), ()])
@pytest.mark.parametrize("share", [0.0, 0.5])
def test_where_nothing_is_selected_the_base_stays(shape: tuple[int, ...], share: float):
    """Where donors do not differ, no place is selected, and the output is the base in the base's shape."""
    base = draw(1, torch.Size(shape).numel(), torch.float32).view(shape)
    assert same_bits(make("sce", [base, base + 1, base + 1], select_topk=share), base)


def test_one_donor_has_no_variance():
    """One donor alone is taken whole, and not at all where places are selected by variance."""
    base, donor = draw_near(1, (50,), 1)
    torch.testing.assert_close(make("sce", [base, donor]), donor, rtol=1e-6, atol=1e-7)
    assert same_bits(make("sce", [base, donor], select_topk=0.5), base)


@pytest.mark.parametrize(("share", "kept"), [(0.29, 29), (0.57, 57), (0.5, 50), (0.009, 0), (0.99999999, 100)])
def test_a_share_of_places_is_counted_in_float32(share: float, kept: int):
    """0.29 of 100 places that differ are 29, though in float64 the product is less."""
    base, other = torch.zeros(120), torch.zeros(120)
    other[:100] = torch.arange(1, 101)
    assert int((make("sce", [base, base, other], 7, select_topk=share) != 0).sum()) == kept


def test_no_share_is_more_than_the_whole():
    """A share below 1 of more places than float32 can count is not more than all of them."""
    assert count_share(2**24 + 3, 0.99999999) == 2**24 + 3
    assert count_share(2**24 + 3, 0.5) == pytest.approx(2**23, abs=2)


def test_a_donor_that_did_not_move_an_element_takes_no_part_in_it():
    """Where one donor alone moved, the element goes the whole way, whatever the weights."""
    base = torch.zeros(3)
    one, other = torch.tensor([0.0, 1.0, 0.0]), torch.tensor([0.5, 3.0, -0.5])
    assert make("sce", [base, one, other])[[0, 2]].tolist() == pytest.approx([0.5, -0.5])


def test_of_equal_variances_the_first_are_selected():
    """Places of the same variance are selected in their order."""
    base, other = torch.zeros(10), torch.ones(10)
    other[7] = 2.0
    made = make("sce", [base, base, other], 3, select_topk=0.4)
    assert (made != 0).tolist() == [True, True, True, False, False, False, False, True, False, False]


def test_small_task_vectors_weigh_the_same():
    """Where mean squares add up to less than a millionth weights are equal, else as the squares."""
    base = torch.zeros(2)
    assert make("sce", [base, base + 1e-4, base + 3e-4]).tolist() == pytest.approx([2e-4, 2e-4])
    assert make("sce", [base, base + 1e-2, base + 3e-2]).tolist() == pytest.approx([2.8e-2, 2.8e-2])


def test_donors_in_another_order_give_the_same():
    """The order of the donors does not matter."""
    base, *donors = draw_near(3, (60,), 4)
    made = make("sce", [base, *donors], select_topk=0.6)
    torch.testing.assert_close(make("sce", [base, *donors[::-1]], select_topk=0.6), made, rtol=1e-6, atol=1e-6)
