"""Task vectors where one donor moved, their mean where several did."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.engine.bench import draw, make, same_bits

EPSILON = 0.01


def draw_sparse(seed: int, shape: tuple[int, ...], donors: int) -> list[torch.Tensor]:
    """A base, and donors that moved about half of its numbers by more than `EPSILON`."""
    count = torch.Size(shape).numel()
    base = draw(seed, count, torch.float32)
    moves = [0.03 * draw(seed + 1 + number, count, torch.float32) for number in range(donors)]
    return [each.view(shape) for each in (base, *(base + move * (move.abs() > 0.02) for move in moves))]


def expect(tensors: list[torch.Tensor], gains: list[float]) -> torch.Tensor:
    """The formula in float64, element by element; what one donor alone moved is multiplied by its gain."""
    base, *donors = (each.double().reshape(-1) for each in tensors)
    made = base.clone()
    for place in range(base.numel()):
        moved = [(float(x[place] - base[place]), gain) for x, gain in zip(donors, gains, strict=True)]
        active = [(delta, gain) for delta, gain in moved if abs(delta) > EPSILON]
        if len(active) == 1:
            made[place] += active[0][0] * active[0][1]
        elif active:
            made[place] += sum(delta for delta, _ in active) / len(active)
    return made.view(tensors[0].shape)


def test_by_hand():
    """What one donor moved goes in whole, what two moved as their mean; what none moved enough stays the base's."""
    base = torch.tensor([1.0, 1.0, 1.0, 1.0])
    one, other = torch.tensor([1.5, 1.5, 1.0, 1.001]), torch.tensor([1.0, 0.75, 0.5, 0.999])
    made = make("ram", [base, one, other], epsilon=EPSILON)
    assert made.tolist() == [1.5, 1.125, 0.5, 1.0]


@given(seed=st.integers(0, 99), donors=st.integers(1, 5), block=st.sampled_from([1, 7, 64]))
def test_the_result_is_the_formula(seed: int, donors: int, block: int):
    """Whatever the donors moved, the result is the formula's to float32 rounding."""
    tensors = draw_sparse(seed, (4, 9), donors)
    made = make("ram", tensors, block, epsilon=EPSILON)
    torch.testing.assert_close(made.double(), expect(tensors, [1.0] * donors), rtol=1e-6, atol=1e-7)


def test_what_is_epsilon_or_less_counts_as_0():
    """A move of exactly epsilon is none, and with epsilon 0 any move is one."""
    base, donor = torch.zeros(3), torch.tensor([0.5, -0.5, 0.75])
    assert make("ram", [base, donor], epsilon=0.5).tolist() == [0.0, 0.0, 0.75]
    tiny = torch.tensor([1e-40, -1e-40, 0.0])
    assert make("ram", [base, tiny], epsilon=0.0).tolist() == tiny.tolist()


def test_donors_in_another_order_give_the_same():
    """The order of the donors does not matter."""
    base, *donors = draw_sparse(3, (50,), 4)
    made = make("ram", [base, *donors], epsilon=EPSILON)
    torch.testing.assert_close(make("ram", [base, *donors[::-1]], epsilon=EPSILON), made, rtol=1e-6, atol=1e-7)


def test_donors_that_are_the_base_leave_it():
    """Where no donor moved anything every bit stays the base's."""
    base = draw(1, 40)
    assert same_bits(make("ram", [base, base, base], epsilon=0.0), base)
