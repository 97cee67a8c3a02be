"""Every place where parameters can stand."""

import pytest

from xmerge.config import parse_config
from xmerge.config.checking import find_faults, list_levels
from xmerge.errors import ConfigError

SLICED = """\
merge_method: passthrough
slices:
- sources: [{model: a, layer_range: [0, 1], parameters: {scale: 1}}]
  parameters: {scale: 2}
parameters: {scale: 3}
globals: {scale: 4}
"""
MODULES = """\
merge_method: linear
modules:
  one: {models: [{model: a, parameters: {weight: 1}}], parameters: {weight: 2}}
  two:
    slices:
    - sources: [{model: a, layer_range: [0, 1], parameters: {weight: 3}}]
      parameters: {weight: 4}
"""


def levels(text: str) -> dict[str, bool]:
    """The places of a configuration that say something, and whether they speak of one model."""
    config = parse_config(text)
    return {
        config.source.locate(*path).split(": ")[1]: model is not None
        for path, said, model in list_levels(config)
        if said
    }


def test_parameters_are_found_wherever_they_stand():
    """Every place where a configuration may give parameters is looked at, and known to speak of one model or of all."""
    assert levels(SLICED) == {
        "parameters": False,
        "globals": False,
        "slices[0].parameters": False,
        "slices[0].sources[0].parameters": True,
    }
    assert levels(MODULES) == {
        "modules.one.parameters": False,
        "modules.one.models[0].parameters": True,
        "modules.two.slices[0].parameters": False,
        "modules.two.slices[0].sources[0].parameters": True,
    }


def test_a_configuration_that_was_read_has_no_faults():
    """What reading accepts, checking has accepted."""
    assert list(find_faults(parse_config(SLICED))) == []
    assert list(find_faults(parse_config(MODULES))) == []


def test_a_value_out_of_range_is_told_with_its_model():
    """A parameter that one model has out of range is named with the model, its value and its range."""
    text = "merge_method: ties\nbase_model: a\nmodels: [{model: b, parameters: {weight: 1, density: 0}}]\n"
    with pytest.raises(ConfigError, match=r"'density' is 0 for b; it must be above 0, up to 1") as caught:
        parse_config(text, "recipe.yml")
    assert caught.value.where == "recipe.yml, line 3: models[0].parameters.density"
