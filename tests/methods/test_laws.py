"""What holds for every merge method, whichever it is; a new one is tested here without being named."""

import inspect
import math
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from xmerge.methods import MergeMethod, list_methods
from xmerge.methods.contract import Gram

METHODS = list_methods()
IDS = [method.name for method in METHODS]


def gram_of(tensors: list[list[float]]) -> Gram:
    """The inner products of some vectors."""
    return Gram([[math.fsum(a * b for a, b in zip(x, y, strict=True)) for y in tensors] for x in tensors])


def combine(coefficients: tuple[float, ...], tensors: list[list[float]]) -> list[float]:
    """The sum of vectors, each times its coefficient."""
    return [math.fsum(c * x[i] for c, x in zip(coefficients, tensors, strict=True)) for i in range(len(tensors[0]))]


def draw_count(draw: st.DataObject, method: MergeMethod) -> int:
    """A number of inputs that the method takes."""
    least, most = method.inputs
    return draw.draw(st.integers(least, 4 if most is None else most))


def draw_parameters(draw: st.DataObject, method: MergeMethod, count: int) -> dict[str, Any]:
    """A value for each parameter of the method, one for each input where it has one for each."""
    drawn: dict[str, Any] = {}
    for each in method.parameters:
        value = st.booleans() if each.is_switch else st.floats(max(each.range.least, -2), min(each.range.most, 2))
        drawn[each.name] = draw.draw(st.lists(value, min_size=count, max_size=count) if each.per_model else value)
    return drawn


def coefficients(method: MergeMethod, gram: Gram, count: int, parameters: dict[str, Any]) -> tuple[float, ...]:
    """The method's answer; a choice of parameters that it refuses is not looked at further."""
    try:
        return method.coefficients(gram, count, parameters)
    except ValueError:
        assume(condition=False)
        raise


@pytest.mark.parametrize("method", METHODS, ids=IDS)
@given(draw=st.data())
def test_there_is_one_finite_coefficient_for_each_input(method: MergeMethod, draw: st.DataObject):
    """A method answers with as many finite numbers as it has inputs."""
    count = draw_count(draw, method)
    tensors = draw.draw(st.lists(st.lists(st.floats(-4, 4), min_size=6, max_size=6), min_size=count, max_size=count))
    answer = coefficients(method, gram_of(tensors), count, draw_parameters(draw, method, count))
    assert len(answer) == count
    assert all(type(each) is float and math.isfinite(each) for each in answer)


@pytest.mark.parametrize("method", METHODS, ids=IDS)
@given(draw=st.data(), chance=st.randoms(use_true_random=False))
def test_the_order_of_donors_does_not_matter(method: MergeMethod, draw: st.DataObject, chance: Any):
    """Donors in another order have the same coefficients in that order, and the base keeps its own."""
    count = draw_count(draw, method)
    tensors = draw.draw(st.lists(st.lists(st.floats(-4, 4), min_size=6, max_size=6), min_size=count, max_size=count))
    parameters = draw_parameters(draw, method, count)
    first = 1 if method.base == "required" else 0
    order = [*range(first), *chance.sample(range(first, count), count - first)]
    moved = {
        each.name: [parameters[each.name][i] for i in order] if each.per_model else parameters[each.name]
        for each in method.parameters
    }
    here = coefficients(method, gram_of(tensors), count, parameters)
    there = coefficients(method, gram_of([tensors[i] for i in order]), count, moved)
    assert list(there) == pytest.approx([here[i] for i in order], rel=1e-9, abs=1e-9)


@pytest.mark.parametrize("method", METHODS, ids=IDS)
@given(draw=st.data(), tensor=st.lists(st.floats(-4, 4), min_size=6, max_size=6))
def test_a_model_merged_with_itself_is_itself(method: MergeMethod, draw: st.DataObject, tensor: list[float]):
    """Equal inputs come back unchanged, unless the parameters ask for less or more than the whole of them."""
    count = draw_count(draw, method)
    parameters = draw_parameters(draw, method, count)
    if "scale" in parameters:
        parameters["scale"] = [1.0] * count
    if method.base == "as_input" and "normalize" in parameters:
        parameters["normalize"] = True
        assume(abs(sum(parameters["weight"])) > 0.1)
    answer = coefficients(method, gram_of([tensor] * count), count, parameters)
    assert combine(answer, [tensor] * count) == pytest.approx(tensor, rel=1e-9, abs=1e-9)


@pytest.mark.parametrize("method", METHODS, ids=IDS)
@given(draw=st.data(), factor=st.floats(0.01, 100))
def test_the_scale_of_the_weights_does_not_matter(method: MergeMethod, draw: st.DataObject, factor: float):
    """Inputs that are all a number times larger have the same coefficients."""
    count = draw_count(draw, method)
    numbers = st.floats(0.1, 4).flatmap(lambda size: st.sampled_from([size, -size]))
    tensors = draw.draw(st.lists(st.lists(numbers, min_size=6, max_size=6), min_size=count, max_size=count))
    parameters = draw_parameters(draw, method, count)
    here = coefficients(method, gram_of(tensors), count, parameters)
    there = coefficients(method, gram_of([[factor * each for each in x] for x in tensors]), count, parameters)
    assert there == pytest.approx(here, rel=1e-6, abs=1e-6)


@pytest.mark.parametrize("method", METHODS, ids=IDS)
def test_a_method_explains_itself(method: MergeMethod):
    """Every method says in a line what it does, below that how, and of each parameter what it is for."""
    assert method.summary.endswith(".")
    assert "y = " in method.text
    assert all(each.range.text for each in method.parameters)
    assert method.version >= 1


@pytest.mark.parametrize("method", METHODS, ids=IDS)
def test_a_method_declares_what_it_takes(method: MergeMethod):
    """The parameters of the configuration are the function's keyword arguments, with their defaults."""
    signature = inspect.signature(method.combine).parameters
    assert [each.argument for each in method.parameters] == list(signature)[2:]
    for each in method.parameters:
        default = signature[each.argument].default
        assert (each.default is None) == (default is inspect.Parameter.empty)
        assert each.default is None or each.default in each.range
        assert not (each.is_switch and each.per_model)
