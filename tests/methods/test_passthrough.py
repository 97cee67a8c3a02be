"""One model's tensors."""

from hypothesis import given
from hypothesis import strategies as st

from xmerge.methods import find_method
from xmerge.methods.contract import Gram

PASSTHROUGH = find_method("passthrough")


@given(st.floats(-10, 10))
def test_the_scale_is_the_coefficient(scale: float):
    """One model goes in, times `scale`, whatever its weights."""
    assert PASSTHROUGH.coefficients(Gram(), 1, {"scale": [scale]}) == (scale,)


def test_one_model_goes_in_whole_by_default():
    """There is exactly one input, and without a scale it is unchanged."""
    assert PASSTHROUGH.inputs == (1, 1)
    assert PASSTHROUGH.parameters[0].default == 1.0
