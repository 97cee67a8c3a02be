"""The mean direction of models or of task vectors, as long as they are on average."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.engine.bench import draw, make, same_bits
from tests.methods.grams import combine, gram_of
from xmerge.errors import InvalidMergeError
from xmerge.methods import find_method
from xmerge.methods.contract import Gram

MULTISLERP = find_method("multislerp")
DEFAULTS = {"normalize_weights": 1.0, "eps": 1e-8}


def expect(tensors: Sequence[torch.Tensor], weights: Sequence[float], base: torch.Tensor | None) -> torch.Tensor:
    """The mean on the sphere, in float64: through the tangent space at the mean direction, and lengthened."""
    origin = torch.zeros_like(tensors[0]).double() if base is None else base.double()
    vectors = torch.stack([(each.double() - origin).reshape(-1) for each in tensors])
    shares = torch.tensor(weights, dtype=torch.float64) / sum(weights)
    norms = vectors.norm(dim=1)
    units = vectors / (norms + 1e-8)[:, None]
    mean = shares @ units
    mean = mean / mean.norm()
    tangents = units - (units @ mean)[:, None] * mean
    moved = shares @ tangents
    length = moved.norm() + 1e-8
    point = mean * length.cos() + moved * (length.sin() / length)
    reached: torch.Tensor = origin + (point * (shares @ norms)).view(tensors[0].shape)
    return reached


@pytest.mark.parametrize("has_base", [False, True])
@given(
    seed=st.integers(0, 99),
    donors=st.integers(2, 5),
    shape=st.sampled_from([(7,), (4, 6), (1, 5), (5, 1), (2, 3, 4)]),
    weights=st.lists(st.floats(0.1, 2.0), min_size=5, max_size=5),
)
def test_the_result_is_the_mean_on_the_sphere(has_base: bool, seed: int, donors: int, shape, weights: list[float]):
    """The short formula says the same as the way through the tangent space, which leads nowhere."""
    tensors = [draw(seed + n, math.prod(shape), torch.float32).view(shape) for n in range(donors + 1)]
    base, *others = tensors
    inputs = tensors if has_base else others
    weight = (0.0, *weights[:donors]) if has_base else tuple(weights[:donors])
    made = make("multislerp", inputs, 16, has_base=has_base, weight=weight)
    wanted = expect(others, weights[:donors], base if has_base else None)
    torch.testing.assert_close(made.double(), wanted, rtol=1e-4, atol=1e-5)


def test_by_hand():
    """Directions at a right angle, weighted 3 to 4, have a mean of direction (3, 4); lengths 1 and 8 have one of 5."""
    x, y = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 8.0])
    assert make("multislerp", [x, y], weight=(3.0, 4.0)).tolist() == pytest.approx([3.0, 4.0])
    base = torch.tensor([1.0, 1.0])
    moved = make("multislerp", [base, x + 1, y + 1], has_base=True, weight=(0.0, 3.0, 4.0))
    assert moved.tolist() == pytest.approx([4.0, 5.0])
    # Without normalization the lengths 3 * 1 + 4 * 8 are summed, and not averaged.
    whole = make("multislerp", [x, y], weight=(3.0, 4.0), normalize_weights=0.0)
    assert whole.tolist() == pytest.approx([21.0, 28.0])


def test_one_model_alone_is_unchanged():
    """With one donor there is nothing to average, whatever its weight, and nothing is computed."""
    assert MULTISLERP.coefficients(Gram(), 1, {"weight": [0.3], **DEFAULTS, "normalize_weights": 0.0}) == (1.0,)
    assert MULTISLERP.coefficients(Gram(has_base=True), 2, {"weight": [0.0, 0.3], **DEFAULTS}) == (0.0, 1.0)


def test_weights_that_sum_to_zero_cannot_be_normalized():
    """Refused before any weight is read, and only where they are to be normalized; the base's does not count."""
    with pytest.raises(ValueError, match=r"the weights \[1.0, -1.0\] sum to 0, and 'normalize_weights' divides by"):
        MULTISLERP.coefficients(Gram(has_base=True), 3, {"weight": [5.0, 1.0, -1.0], **DEFAULTS})
    gram = gram_of([[1.0, 0.0], [0.0, 1.0]])
    found = MULTISLERP.coefficients(gram, 2, {"weight": [1.0, -1.0], **DEFAULTS, "normalize_weights": 0.0})
    assert found == pytest.approx((0.0, 0.0))


@pytest.mark.parametrize("factor", [-1.0, -3.0])
def test_two_opposite_models_are_averaged(factor: float):
    """Where two directions cancel out, the weighted sum of the models themselves is taken, as mergekit does."""
    x = draw(1, 10_000, torch.float32)
    y = (factor * x.double()).float()
    made = make("multislerp", [x, y], weight=(1.0, 1.0))
    torch.testing.assert_close(made, 0.5 * x + 0.5 * y, rtol=1e-6, atol=1e-6)


def test_more_directions_that_cancel_out_have_no_mean():
    """Three models in the directions of a star are refused after reading, with tensor, models and a remedy."""
    star = [torch.tensor([math.cos(angle), math.sin(angle)]) for angle in (0.0, 2 * math.pi / 3, 4 * math.pi / 3)]
    with pytest.raises(InvalidMergeError) as caught:
        make("multislerp", star, weight=(1.0, 1.0, 1.0))
    first, *rest = str(caught.value).splitlines()
    assert first.startswith(
        "out cannot be merged: with the weights [0.333333, 0.333333, 0.333333] the directions of its models cancel out:"
        " their mean has the length "
    )
    assert rest == [
        "  why: of model0, model1, model2.",
        "  do: change the values, or filter them to other tensors.",
    ]
    # Other weights leave a direction.
    assert make("multislerp", star, weight=(2.0, 1.0, 1.0)).tolist() == pytest.approx([1.0, 0.0], abs=1e-6)


@pytest.mark.parametrize("donors", [2, 3, 4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_donors_that_changed_nothing_give_the_base(donors: int, dtype: torch.dtype):
    """Task vectors of 0 have no direction and need none: the base comes back bit for bit, where mergekit gives up."""
    base = draw(1, 100, dtype)
    assert same_bits(make("multislerp", [base] * (donors + 1), has_base=True, weight=(0.0,) + (1.0,) * donors), base)
    zero = torch.zeros(5)
    assert torch.equal(make("multislerp", [zero] * donors, weight=(1.0,) * donors), zero)


def test_a_donor_that_changed_nothing_shortens_the_way():
    """It gives no direction, and its length of 0 counts in the mean of the lengths."""
    base, y = torch.zeros(2), torch.tensor([0.0, 4.0])
    made = make("multislerp", [base, base, y], has_base=True, weight=(0.0, 1.0, 1.0))
    assert made.tolist() == pytest.approx([0.0, 2.0])


@given(seed=st.integers(0, 99), donors=st.integers(1, 5))
def test_a_model_averaged_with_itself_is_itself(seed: int, donors: int):
    """Equal inputs come back, to the rounding of float32."""
    x = draw(seed, 40, torch.float32)
    made = make("multislerp", [x] * donors, weight=tuple(0.3 + n for n in range(donors)))
    torch.testing.assert_close(made, x, rtol=1e-6, atol=0.0)


def test_eps_says_what_is_too_short_to_have_a_direction():
    """A mean of directions of 0.6 is one by default, and none where `eps` is larger."""
    x, y = torch.tensor([1.0, 0.0]), torch.tensor([-0.28, 0.96])
    parameters = {"weight": [1.0, 1.0], **DEFAULTS}
    near = combine(MULTISLERP.coefficients(gram_of([x, y]), 2, parameters), [x, y])
    assert float(near.norm()) == pytest.approx(1.0, abs=1e-6)
    far = MULTISLERP.coefficients(gram_of([x, y]), 2, parameters | {"eps": 0.7})
    assert far == (0.5, 0.5)
    # At 0 a tensor of zeros has no direction still.
    zero = torch.zeros(2)
    half = combine(MULTISLERP.coefficients(gram_of([x, zero]), 2, parameters | {"eps": 0.0}), [x, zero])
    torch.testing.assert_close(half, 0.5 * x.double())
