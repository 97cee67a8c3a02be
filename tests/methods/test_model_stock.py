"""The centre of fine-tuned models, from the angles between their task vectors."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.engine.bench import draw, make, same_bits
from xmerge.methods import find_method
from xmerge.methods.contract import Gram, GramUnknownError

MODEL_STOCK = find_method("model_stock")


def expect(tensors: Sequence[torch.Tensor], *, filter_wise: bool) -> torch.Tensor:
    """The formula in float64, for the whole tensor or row by row."""
    base, *donors = (each.double() for each in tensors)
    if filter_wise and base.dim() > 1:
        rows = zip(*(each.reshape(-1, base.shape[-1]) for each in (base, *donors)), strict=True)
        return torch.stack([expect(row, filter_wise=False) for row in rows]).view(base.shape)
    deltas = [(each - base).reshape(-1) for each in donors]
    cosines = [
        max(-1.0, min(1.0, float(x @ y) / max(float(x.norm() * y.norm()), 1e-6)))
        for x, y in itertools.combinations(deltas, 2)
    ]
    cosine, n = sum(cosines) / len(cosines), len(donors)
    t = n * cosine / (1 + (n - 1) * cosine)
    return t * torch.stack(donors).mean(0) + (1 - t) * base


@pytest.mark.parametrize("filter_wise", [False, True])
@given(
    seed=st.integers(0, 999),
    donors=st.integers(2, 5),
    shape=st.sampled_from([(7,), (4, 6), (1, 5), (2, 3, 4)]),
    block=st.sampled_from([1, 5, 64]),
)
def test_the_result_is_the_formula(filter_wise: bool, seed: int, donors: int, shape: tuple[int, ...], block: int):
    """Of the whole tensor and of each row, in blocks that end anywhere; a tensor of one dimension is one row."""
    size = math.prod(shape)
    base, common = draw(seed, size, torch.float32), draw(seed + 1, size, torch.float32)
    # What the donors have in common keeps them away from where the formula divides by 0.
    tensors = [base, *(base + common + 0.4 * draw(seed + 2 + n, size, torch.float32) for n in range(donors))]
    tensors = [each.view(shape) for each in tensors]
    made = make("model_stock", tensors, block, filter_wise=float(filter_wise))
    torch.testing.assert_close(made.double(), expect(tensors, filter_wise=filter_wise), rtol=1e-4, atol=1e-5)


def test_by_hand():
    """Two task vectors at 60 degrees: c = 1/2, t = 1 / 1.5, so two thirds of the way to the mean of the donors."""
    base = torch.tensor([1.0, 0.0])
    x, y = base + torch.tensor([3.0, 0.0]), base + torch.tensor([1.0, math.sqrt(3.0)])
    assert make("model_stock", [base, x, y]).tolist() == pytest.approx([1 + 4 / 3, math.sqrt(3.0) / 3])


def test_filter_wise_looks_at_each_row():
    """A row in which the donors agree goes all the way, and one in which they are at a right angle stays."""
    base = torch.zeros(2, 2)
    x, y = torch.tensor([[1.0, 1.0], [1.0, 0.0]]), torch.tensor([[3.0, 3.0], [0.0, 1.0]])
    made = make("model_stock", [base, x, y], filter_wise=1.0)
    torch.testing.assert_close(made, torch.tensor([[2.0, 2.0], [0.0, 0.0]]))
    assert not torch.equal(make("model_stock", [base, x, y]), made)


@pytest.mark.parametrize("filter_wise", [0.0, 1.0])
@given(seed=st.integers(0, 99), donors=st.integers(2, 5), shape=st.sampled_from([(1,), (4, 6), (3, 1), (0,), ()]))
def test_donors_that_changed_nothing_give_the_base(filter_wise: float, seed: int, donors: int, shape):
    """Bit for bit, in rows too of which others changed."""
    base = draw(seed, math.prod(shape)).view(shape)
    assert same_bits(make("model_stock", [base] * (donors + 1), 5, filter_wise=filter_wise), base)


def test_where_the_formula_divides_by_nothing_the_base_stays():
    """Two opposite task vectors, and three in a star, agree on nothing; mergekit 0.1.4 writes inf and NaN there."""
    base = torch.tensor([1.0, 2.0])
    move = torch.tensor([0.5, 0.25])
    assert torch.equal(make("model_stock", [base, base + move, base - move]), base)
    star = [torch.tensor([math.cos(a), math.sin(a)]) for a in (0.0, 2 * math.pi / 3, 4 * math.pi / 3)]
    made = make("model_stock", [torch.zeros(2), *star])
    assert torch.equal(made, torch.zeros(2))


def test_short_task_vectors_count_for_less():
    """A product of norms below 1e-6 is divided by as if it were that, so that rounding is not taken for agreement."""
    base, x = torch.zeros(2), torch.tensor([1e-4, 0.0])
    # The cosine counts as 1e-8 / 1e-6, and t = 2c / (1 + c).
    made = make("model_stock", [base, x, x])
    assert made[0].item() == pytest.approx(1e-4 * 0.02 / 1.01, rel=1e-5)


def test_it_needs_two_donors_and_all_weights():
    """Beside the base two donors at least, and nothing is known before their weights are read."""
    assert (MODEL_STOCK.base, MODEL_STOCK.inputs) == ("required", (3, None))
    with pytest.raises(GramUnknownError):
        MODEL_STOCK.coefficients(Gram(), 3, {"filter_wise": 0.0})
