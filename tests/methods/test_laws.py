"""What holds for every combination, whichever it is; a new one is tested here without being named."""

from __future__ import annotations

import inspect
import math
from typing import Any

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from tests.methods.grams import combine, gram_of
from xmerge.methods import MergeMethod, list_methods
from xmerge.methods.contract import Coefficient, Gram

METHODS = list_methods()
COMBINATIONS = [
    (method, has_base)
    for method in METHODS
    if not method.is_rule
    for has_base in ([False, True] if method.base == "optional" else [False])
]
IDS = [f"{method.name}-base" if has_base else method.name for method, has_base in COMBINATIONS]
combinations = pytest.mark.parametrize(("method", "has_base"), COMBINATIONS, ids=IDS)
SHAPES = st.sampled_from([(6,), (2, 3), (6, 1), (1, 6)])
NUMBERS = st.floats(-4, 4)
APART = st.floats(0.1, 4).flatmap(lambda size: st.sampled_from([size, -size]))


def draw_count(draw: st.DataObject, method: MergeMethod, *, has_base: bool) -> int:
    """A number of inputs that the method takes."""
    least, most = method.inputs
    return draw.draw(st.integers(least, max(least, 4) if most is None else most)) + has_base


def draw_parameters(draw: st.DataObject, method: MergeMethod, count: int) -> dict[str, Any]:
    """A value for each parameter of the method, one for each input where it has one for each."""
    drawn: dict[str, Any] = {}
    for each in method.parameters:
        least, most = max(each.range.least, -2), min(each.range.most, 2)
        value: st.SearchStrategy[Any] = st.floats(least, most)
        if each.is_switch:
            value = st.booleans()
        elif each.range.whole:
            value = st.integers(int(least), int(most))
        drawn[each.name] = draw.draw(st.lists(value, min_size=count, max_size=count) if each.per_model else value)
    # As thresholds these may be any number; as large as the tensors here they leave nothing to compare.
    return drawn | {name: 1e-6 for name in ("eps", "tol") if name in drawn}


def draw_tensors(draw: st.DataObject, count: int, numbers: st.SearchStrategy[float] = NUMBERS) -> list[torch.Tensor]:
    """Tensors of one shape."""
    shape = draw.draw(SHAPES)
    drawn = draw.draw(st.lists(st.lists(numbers, min_size=6, max_size=6), min_size=count, max_size=count))
    return [torch.tensor(each, dtype=torch.float64).view(shape) for each in drawn]


def coefficients(method: MergeMethod, gram: Gram, count: int, parameters: dict[str, Any]) -> tuple[Coefficient, ...]:
    """The method's answer; a choice of parameters that it refuses is not looked at further."""
    try:
        return method.coefficients(gram, count, parameters)
    except ValueError:
        assume(condition=False)
        raise


def merge(method: MergeMethod, tensors: list[torch.Tensor], parameters: dict[str, Any], *, base: bool) -> torch.Tensor:
    """What becomes of some tensors."""
    answer = coefficients(method, gram_of(tensors, has_base=base), len(tensors), parameters)
    return combine(answer, tensors)


@combinations
@given(draw=st.data())
def test_there_is_one_finite_coefficient_for_each_input(method: MergeMethod, has_base: bool, draw: st.DataObject):
    """A method answers with as many as it has inputs, each a finite number or one for each row or column."""
    count = draw_count(draw, method, has_base=has_base)
    tensors = draw_tensors(draw, count)
    gram = gram_of(tensors, has_base=has_base)
    answer = coefficients(method, gram, count, draw_parameters(draw, method, count))
    assert len(answer) == count
    for each in answer:
        if isinstance(each, torch.Tensor):
            assert each.dtype == torch.float64
            assert each.shape in ((len(tensors[0]), 1), (1, tensors[0].shape[-1]))
            assert torch.isfinite(each).all()
        else:
            assert type(each) is float
            assert math.isfinite(each)


@combinations
@given(draw=st.data(), chance=st.randoms(use_true_random=False))
def test_the_order_of_donors_does_not_matter(method: MergeMethod, has_base: bool, draw: st.DataObject, chance: Any):
    """Donors in another order, each with its own parameters, give the same, where their mean has a direction."""
    count = draw_count(draw, method, has_base=has_base)
    tensors, parameters = draw_tensors(draw, count), draw_parameters(draw, method, count)
    first = 1 if method.base == "required" or has_base else 0
    order = [*range(first), *chance.sample(range(first, count), count - first)]
    moved = {
        each.name: [parameters[each.name][i] for i in order] if each.per_model else parameters[each.name]
        for each in method.parameters
    }
    here = merge(method, tensors, parameters, base=has_base)
    there = merge(method, [tensors[i] for i in order], moved, base=has_base)
    # Where two models are all but opposite, their mean is all but undefined.
    assume(here.abs().max() < 100)
    torch.testing.assert_close(there, here, rtol=1e-5, atol=1e-5)


@combinations
@given(draw=st.data(), tensor=st.lists(st.floats(-4, 4), min_size=6, max_size=6))
def test_a_model_merged_with_itself_is_itself(
    method: MergeMethod, has_base: bool, draw: st.DataObject, tensor: list[float]
):
    """Equal inputs come back unchanged, unless the parameters ask for less or more than the whole of them."""
    count = draw_count(draw, method, has_base=has_base)
    parameters = draw_parameters(draw, method, count)
    if "scale" in parameters:
        parameters["scale"] = [1.0] * count
    normalize = next((each for each in ("normalize", "normalize_weights") if each in parameters), None)
    if method.base != "required" and not has_base and normalize:
        parameters[normalize] = True
        assume(abs(sum(parameters["weight"])) > 0.1)
    x = torch.tensor(tensor, dtype=torch.float64).view(2, 3)
    torch.testing.assert_close(merge(method, [x] * count, parameters, base=has_base), x, rtol=1e-9, atol=1e-9)


@combinations
@given(draw=st.data(), factor=st.floats(0.01, 100))
def test_the_scale_of_the_weights_does_not_matter(
    method: MergeMethod, has_base: bool, draw: st.DataObject, factor: float
):
    """Inputs that are all a number times larger give as much more."""
    count = draw_count(draw, method, has_base=has_base)
    tensors, parameters = draw_tensors(draw, count, APART), draw_parameters(draw, method, count)
    # Differences may be as small as the thresholds below which there is no direction.
    assume(all((x - y).abs().min() > 0.01 for i, x in enumerate(tensors) for y in tensors[:i]))
    here = merge(method, tensors, parameters, base=has_base)
    there = merge(method, [factor * x for x in tensors], parameters, base=has_base)
    assume(here.abs().max() < 100)
    torch.testing.assert_close(there / factor, here, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("method", METHODS, ids=[method.name for method in METHODS])
def test_a_method_explains_itself(method: MergeMethod):
    """Every method says in a line what it does, below that how, and of each parameter what it is for."""
    assert method.summary.endswith(".")
    assert "y = " in method.text
    assert all(each.range.text for each in method.parameters)
    assert method.version >= 1


@pytest.mark.parametrize("method", METHODS, ids=[method.name for method in METHODS])
def test_a_method_declares_what_it_takes(method: MergeMethod):
    """The parameters of the configuration are the function's keyword arguments, with their defaults."""
    signature = inspect.signature(method.function).parameters
    assert [each.argument for each in method.parameters] == list(signature)[1 if method.is_rule else 2 :]
    for each in method.parameters:
        default = signature[each.argument].default
        assert (each.default is None) == (default is inspect.Parameter.empty)
        assert each.default is None or each.default in each.range
        assert not (each.is_switch and each.per_model)
