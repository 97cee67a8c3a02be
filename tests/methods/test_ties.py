"""Trimmed task vectors that agree in sign, and task vectors without their outliers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.engine.bench import draw, make, same_bits

SHARES = st.sampled_from([0.1, 0.29, 0.5, 0.77, 1.0])


def trim(delta: np.ndarray, density: float, gamma: float = 0.0) -> np.ndarray:
    """The int(density n) largest magnitudes behind the int(gamma n) largest, or behind fewer; of equal ones the first.

    With a density of 1 all of them.
    """
    if density >= 1.0:
        return delta
    kept = int(density * delta.size)
    larger = min(int(gamma * delta.size), delta.size - kept)
    chosen = np.argsort(-np.abs(delta), kind="stable")[larger : larger + kept]
    trimmed = np.zeros_like(delta)
    trimmed[chosen] = delta[chosen]
    return trimmed


def expect(tensors: list[torch.Tensor], said: dict[str, Any], *, elect: bool) -> np.ndarray:
    """The formula, element by element, in float64."""
    base, *donors = (each.reshape(-1).double().numpy() for each in tensors)
    weights = np.array(said["weight"][1:])
    gammas = said.get("gamma", (0.0,) * len(tensors))
    deltas = [(donor - base).astype(np.float32).astype(np.float64) for donor in donors]
    kept = [trim(*each) for each in zip(deltas, said["density"][1:], gammas[1:], strict=True)]
    if said["rescale"]:
        sums = [(np.abs(whole).sum(), np.abs(part).sum()) for whole, part in zip(deltas, kept, strict=True)]
        kept = [part * (a / b if min(a, b) >= 1e-7 else 1.0) for part, (a, b) in zip(kept, sums, strict=True)]
    weighted = weights[:, None] * np.array(kept)
    if elect:
        sign = np.where(weighted.sum(axis=0) >= 0, 1.0, -1.0)
        taking = np.sign(weighted) == sign
        divisor = (weights[:, None] * taking).sum(axis=0)
        total = (weighted * taking).sum(axis=0)
        total = total / np.where(divisor == 0, 1.0, divisor) if said["normalize"] else total
    else:
        total = weighted.sum(axis=0)
        total = total / weights.sum() if said["normalize"] and abs(weights.sum()) >= 1e-8 else total
    result: np.ndarray = (base + said["lambda"] * total).reshape(tensors[0].shape)
    return result


def draw_parameters(draw_: st.DataObject, count: int, **more: st.SearchStrategy[float]) -> dict[str, Any]:
    """Values for all parameters, those of the base first."""
    weights = draw_.draw(st.lists(st.sampled_from([0.25, 0.5, 1.0, 1.5]), min_size=count, max_size=count))
    said: dict[str, Any] = {"weight": tuple(weights), "lambda": draw_.draw(st.sampled_from([1.0, 0.5, -2.0]))}
    for name, values in {"density": SHARES, **more}.items():
        said[name] = tuple(draw_.draw(st.lists(values, min_size=count, max_size=count)))
    return said | {name: draw_.draw(st.booleans()) for name in ("normalize", "rescale")}


@pytest.mark.parametrize("method", ["ties", "breadcrumbs", "breadcrumbs_ties"])
@given(draw_=st.data(), seed=st.integers(0, 999), donors=st.integers(1, 5), block=st.sampled_from([7, 64]))
@settings(max_examples=20)
def test_the_result_is_the_formula(method: str, draw_: st.DataObject, seed: int, donors: int, block: int):
    """Whatever is kept of however many donors, the result is the formula's to float32 rounding."""
    tensors = [draw(seed + number, 60, torch.float32).view(6, 10) for number in range(donors + 1)]
    more = {} if method == "ties" else {"gamma": st.sampled_from([0.0, 0.01, 0.1, 0.4])}
    said = draw_parameters(draw_, donors + 1, **more)
    made = make(method, tensors, block, **said)
    expected = expect(tensors, said, elect=method != "breadcrumbs")
    np.testing.assert_allclose(made.double().numpy(), expected, rtol=1e-5, atol=1e-5)


def test_ties_by_hand():
    """Half of each task vector is left; where two are left the larger sum's sign is elected, and its weights divide."""
    base = torch.zeros(4)
    one, other = torch.tensor([4.0, -3.0, 1.0, 0.5]), torch.tensor([2.0, 5.0, 0.5, -0.25])
    made = make("ties", [base, one, other], weight=(0, 1.0, 0.5), density=(1, 0.5, 0.5))
    # At the first place (4 + 0.5 * 2) / 1.5; at the second -3 meets 2.5, minus is elected, and -3 / 1 is left.
    assert made.tolist() == pytest.approx([10 / 3, -3.0, 0.0, 0.0])


@given(numbers=st.lists(st.sampled_from([-1.0, -0.5, 0.0, 0.5, 1.0]), min_size=1, max_size=40), density=SHARES)
@settings(max_examples=30)
def test_exactly_as_many_are_kept_as_were_asked_for(numbers: list[float], density: float):
    """However many numbers are equal, int(density n) of them are kept, and of equal ones those that stand first."""
    donor = torch.tensor(numbers)
    made = make("ties", [torch.zeros_like(donor), donor], 7, weight=(0, 1.0), density=(1, density))
    assert made.tolist() == trim(np.array(numbers), density).tolist()


@pytest.mark.parametrize("method", ["ties", "breadcrumbs", "breadcrumbs_ties"])
def test_less_than_one_number_is_none(method: str):
    """Where int(density n) is 0 the base stays, where mergekit 0.1.4 stops and 0.1.5 keeps one number for ties."""
    base = draw(1, 9, torch.float32)
    made = make(method, [base, base + 1], weight=(0, 1.0), density=(1, 0.1))
    assert same_bits(made, base)


def test_a_sum_of_0_elects_plus():
    """Where the weighted task vectors cancel out, what is above 0 is kept."""
    base = torch.zeros(2)
    made = make("ties", [base, torch.tensor([1.0, -2.0]), torch.tensor([-1.0, 2.0])], weight=(0, 0.5, 0.5))
    assert made.tolist() == [1.0, 2.0]


@pytest.mark.parametrize("elements", [1, 2, 99])
def test_small_tensors_have_no_outliers_to_lose(elements: int):
    """Where gamma n < 1 the largest stay: mergekit up to 0.1.4 takes an empty slice there, and every number is lost."""
    base, donor = torch.zeros(elements), draw(1, elements, torch.float32)
    made = make("breadcrumbs", [base, donor], weight=(0, 1.0), density=(1, 0.6), gamma=(0.01, 0.01))
    assert int((made != 0).sum()) == int(0.6 * elements)
    assert same_bits(made, make("ties", [base, donor], weight=(0, 1.0), density=(1, 0.6), normalize=False))


def test_outliers_are_left_out():
    """The largest int(gamma n) go and the next int(density n) stay; where not so many are left fewer go."""
    base, donor = torch.zeros(10), torch.arange(1.0, 11.0)
    made = make("breadcrumbs", [base, donor], weight=(0, 1.0), density=(1, 0.5), gamma=(0, 0.2))
    assert made.tolist() == [0, 0, 0, 4, 5, 6, 7, 8, 0, 0]
    made = make("breadcrumbs", [base, donor], weight=(0, 1.0), density=(1, 0.9), gamma=(0, 0.5))
    assert made.tolist() == [1, 2, 3, 4, 5, 6, 7, 8, 9, 0]


@pytest.mark.parametrize("method", ["ties", "breadcrumbs", "breadcrumbs_ties"])
def test_a_mask_of_8_bits_changes_nothing(method: str):
    """int8_mask is what mergekit computes its masks in, and decides no number."""
    tensors = [draw(number, 50, torch.float32) for number in range(3)]
    said: dict[str, Any] = {"weight": (0, 1.0, 0.5), "density": (1, 0.5, 0.3)}
    assert same_bits(make(method, tensors, **said, int8_mask=True), make(method, tensors, **said))
