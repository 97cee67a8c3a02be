"""Gradients, filters, and the three ways to write a setting."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter

from xmerge.config import FilteredValue, Setting
from xmerge.config.settings import AnySetting, interpolate

numbers = st.floats(-1e6, 1e6, allow_nan=False)
gradients = st.lists(numbers, min_size=1, max_size=6)
positions = st.floats(0, 1)
READ = TypeAdapter(AnySetting).validate_python


@pytest.mark.parametrize(("layer", "value"), [(0, 0.0), (1, 0.0513), (10, 0.4949), (20, 0.3205), (39, 1.0)])
def test_a_gradient_has_mergekits_values(layer: int, value: float):
    """A gradient over forty layers has at each layer the value that mergekit gives it."""
    assert interpolate([0, 0.5, 0.3, 0.7, 1], layer / 39) == pytest.approx(value, abs=5e-5)


@given(gradients)
def test_a_gradient_begins_and_ends_with_its_first_and_last_number(gradient: list[float]):
    """The first layer has exactly the first number, and the last layer exactly the last."""
    assert interpolate(gradient, 0.0) == gradient[0]
    assert interpolate(gradient, 1.0) == gradient[-1]


@given(gradients)
def test_a_gradient_passes_through_each_of_its_numbers(gradient: list[float]):
    """The numbers of a gradient are spread evenly over the layers."""
    steps = max(len(gradient) - 1, 1)
    for index, number in enumerate(gradient):
        assert interpolate(gradient, index / steps) == pytest.approx(number, abs=1e-6)


@given(gradients, positions)
def test_a_gradient_stays_between_its_numbers(gradient: list[float], position: float):
    """No layer gets less than the least or more than the greatest number of a gradient."""
    slack = 1e-9 * max(map(abs, gradient))
    assert min(gradient) - slack <= interpolate(gradient, position) <= max(gradient) + slack


@given(gradients.map(sorted), positions, positions)
def test_a_rising_gradient_never_falls(gradient: list[float], one: float, other: float):
    """Where the numbers of a gradient rise, a later layer has at least the value of an earlier one."""
    slack = 1e-9 * max(map(abs, gradient))
    assert interpolate(gradient, min(one, other)) <= interpolate(gradient, max(one, other)) + slack


@given(numbers, positions)
def test_a_single_number_holds_everywhere(number: float, position: float):
    """A number is a gradient that has one value for all layers and all tensors."""
    setting = READ(number)
    assert setting == READ([number]) == READ([{"value": number}])
    assert setting.evaluate(["any.name"], position) == number


def test_the_first_filter_that_matches_decides():
    """Filters are tried in the order of the file, and a filter of `*` or none matches every tensor."""
    setting = READ([{"filter": "self_attn", "value": 0.2}, {"filter": "attn", "value": 0.4}, {"value": [0, 1]}])
    assert setting.evaluate(["model.layers.0.self_attn.q_proj.weight"], 0.5) == 0.2
    assert setting.evaluate(["transformer.h.0.attn.weight"], 0.5) == 0.4
    assert setting.evaluate(["model.norm.weight"], 0.5) == 0.5
    assert READ([{"filter": "*", "value": 3}]) == READ([{"filter": "", "value": 3}]) == READ(3)


def test_a_filter_is_a_plain_part_of_a_name():
    """A filter is compared letter by letter: case counts, and no character stands for others."""
    assert FilteredValue(filter="q_proj", value=(1.0,)).matches(["a.q_proj.weight"])
    assert not FilteredValue(filter="Q_proj", value=(1.0,)).matches(["a.q_proj.weight"])
    assert not FilteredValue(filter="q.proj", value=(1.0,)).matches(["a.q_proj.weight"])


def test_a_filter_may_match_any_name_a_tensor_goes_by():
    """A tensor with one name in the output and another in a donor is found by either."""
    assert FilteredValue(filter="c_attn", value=(1.0,)).matches(["h.0.q_proj", "h.0.c_attn"])


def test_a_tensor_that_no_filter_matches_has_no_value():
    """Where no entry matches, a setting says nothing, which is not the same as 0."""
    assert READ([{"filter": "mlp", "value": 0}]).evaluate(["self_attn"], 0) is None


@given(st.one_of(st.booleans(), st.integers(-(10**9), 10**9), numbers))
def test_a_boolean_or_a_numeric_text_is_its_number(raw: float):
    """True is 1, false is 0, and a text that reads as a number is that number."""
    assert READ(raw) == READ(float(raw)) == READ(repr(float(raw)))


@given(
    st.one_of(
        numbers,
        gradients,
        st.lists(
            st.fixed_dictionaries({"value": st.one_of(numbers, gradients)}, optional={"filter": st.text()}), min_size=1
        ),
    )
)
def test_a_setting_reads_what_it_writes(raw: object):
    """A setting that was read, written as JSON and read again is the same setting."""
    setting = READ(raw)
    assert isinstance(setting, Setting)
    assert READ(setting.model_dump(mode="json")) == setting
