"""Task vectors of which chance keeps a part: dare_linear, dare_ties, della_linear and della."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.engine.bench import Bench, draw, make, same_bits
from xmerge.methods import list_methods
from xmerge.planning.plan import Draws

DRAWING = [method.name for method in list_methods() if method.draws]
LARGE = 1_000_000
STANDARD_DEVIATIONS = 5
"""How far a share of independent draws may be from its probability: further is a chance of one in a million."""


def keep(method: str, shape: tuple[int, ...], seed: int = 0, block: int | None = None, **said: Any) -> torch.Tensor:
    """Which elements of a donor are kept."""
    donor = draw(3, math.prod(shape), torch.float32).view(shape)
    made = make(method, [torch.zeros(shape), donor], block, weight=(0, 1.0), rescale=False, **said)
    assert ((made == donor) | (made == 0)).all()
    return made != 0


@pytest.mark.parametrize("method", DRAWING)
@pytest.mark.parametrize("density", [0.3, 0.5])
def test_the_density_is_what_is_kept(method: str, density: float):
    """The share that is kept is the density, as nearly as chance allows."""
    share = keep(method, (LARGE // 100, 100), density=(1, density)).double().mean().item()
    assert abs(share - density) <= STANDARD_DEVIATIONS * math.sqrt(density * (1 - density) / LARGE)


@pytest.mark.parametrize("density", [0.3, 0.377])
def test_blocks_of_a_large_tensor_draw_nothing_else(density: float):
    """A density that no byte can tell decides by place too, and not by the block that the place is in."""
    whole = keep("dare_linear", (400, 250), density=(1, density))
    assert torch.equal(keep("dare_linear", (400, 250), block=1000, density=(1, density)), whole)


@pytest.mark.parametrize("method", DRAWING)
def test_a_density_of_1_keeps_all(method: str):
    """With a density of 1 nothing is drawn and everything is kept."""
    assert keep(method, (40, 5), density=(1, 1.0)).all()


@pytest.mark.parametrize("method", DRAWING)
def test_what_is_kept_is_as_large_as_the_whole(method: str):
    """With `rescale` the magnitudes that are left have the sum of all, which is 1 / density only on average."""
    base, donor = torch.zeros(50, 20), draw(1, 1000, torch.float32).view(50, 20)
    made = make(method, [base, donor], weight=(0, 1.0), density=(1, 0.4))
    assert made.abs().sum().item() == pytest.approx(donor.abs().sum().item(), rel=1e-5)
    kept = made != 0
    assert 0 < kept.sum() < kept.numel()
    torch.testing.assert_close(made[kept] / donor[kept], (made[kept] / donor[kept])[:1].expand(int(kept.sum())))


@pytest.mark.parametrize("method", DRAWING)
@given(shape=st.lists(st.integers(1, 6), min_size=1, max_size=3), block=st.sampled_from([1, 7, 64]))
@settings(max_examples=10)
def test_the_size_of_blocks_draws_nothing_else(method: str, shape: list[int], block: int):
    """Which elements are kept depends on where they stand, and not on how they are read."""
    whole = keep(method, tuple(shape), density=(1, 0.5))
    assert torch.equal(keep(method, tuple(shape), block=block, density=(1, 0.5)), whole)


@pytest.mark.parametrize("method", ["della", "della_linear"])
def test_the_probability_grows_evenly_with_the_rank(method: str):
    """In each row the probability goes from density - epsilon for the smallest to density + epsilon for the largest."""
    rows, row = 4000, 5
    donor = draw(3, rows * row, torch.float32).view(rows, row)
    kept = keep(method, (rows, row), density=(1, 0.5), epsilon=(0, 0.4))
    shares = kept.gather(1, donor.abs().argsort(1)).double().mean(0)
    for share, probability in zip(shares.tolist(), [0.1, 0.3, 0.5, 0.7, 0.9], strict=True):
        assert abs(share - probability) <= STANDARD_DEVIATIONS * math.sqrt(probability * (1 - probability) / rows)


@pytest.mark.parametrize("shape", [(400, 50), (300, 1), (200,), (1,), (6, 5, 4)])
def test_without_a_spread_rank_decides_nothing(shape: tuple[int, ...]):
    """With an epsilon of 0 della keeps what dare keeps, in tensors of every shape."""
    dare = keep("dare_linear", shape, density=(1, 0.5))
    assert torch.equal(keep("della_linear", shape, density=(1, 0.5), epsilon=(0, 0.0)), dare)


def test_a_row_of_one_number_is_kept_with_the_density():
    """A row that has no ranks is drawn for with the density, where mergekit stops with a probability of 0/0."""
    share = keep("della", (LARGE, 1), density=(1, 0.3)).double().mean().item()
    assert abs(share - 0.3) <= STANDARD_DEVIATIONS * math.sqrt(0.3 * 0.7 / LARGE)


@pytest.mark.parametrize("method", DRAWING)
def test_donors_draw_by_their_names(method: str, tmp_path: Path):
    """Donors in another order, each with its own parameters, keep what they kept."""
    tensors = [draw(number, 600, torch.float32).view(30, 20) for number in range(4)]
    said = [(0, "", 1), (1.0, "a", 0.4), (0.5, "b", 0.5), (0.25, "c", 0.6)]

    def merge(order: list[int]) -> torch.Tensor:
        bench = Bench(tmp_path / "".join(map(str, order)), [tensors[number] for number in order])
        weight, names, density = zip(*(said[number] for number in order), strict=True)
        plan = bench.plan(method, draws=Draws(seed=7, donors=names), weight=weight, density=density)
        return bench.combine(plan)[0]

    torch.testing.assert_close(merge([0, 3, 1, 2]), merge([0, 1, 2, 3]), rtol=1e-5, atol=1e-6)


def test_two_donors_draw_differently():
    """Two donors, two seeds and two tensors keep different elements of one task vector."""
    base, donor = torch.zeros(2000), torch.ones(2000)
    made = make("dare_linear", [base, donor, donor], weight=(0, 1.0, 2.0), density=(1, 0.5, 0.5), rescale=False)
    shares = [(made == number).double().mean().item() for number in (0, 1, 2, 3)]
    assert shares == pytest.approx([0.25] * 4, abs=0.05)


@pytest.mark.parametrize("method", DRAWING)
def test_the_same_numbers_are_drawn_again(method: str):
    """What is drawn for a tensor follows from its seed: the same bits whenever it is merged."""
    tensors = [draw(number, 500, torch.float32).view(25, 20) for number in range(3)]
    said: dict[str, Any] = {"weight": (0, 1.0, 0.5), "density": (1, 0.5, 0.3)}
    assert same_bits(make(method, tensors, **said), make(method, tensors, **said))
