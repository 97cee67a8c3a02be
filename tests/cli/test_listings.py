"""`xmerge families`, `methods` and `schema`."""

from __future__ import annotations

import json

import pytest

from xmerge.architecture import list_families
from xmerge.config import MergeConfig
from xmerge.methods import list_methods


def test_every_family_is_listed(xmerge):
    """The list names every family file, and one family's page names its tensors."""
    listed = xmerge("families").out
    for family in list_families():
        assert family.family in listed
    assert "self_attn.qkv_proj.weight" in xmerge("families", "phi3").out
    assert len(json.loads(xmerge("families", "--json").out)) == len(list_families())


def test_every_method_is_listed(xmerge):
    """The list names every method, and one method's page gives formula, parameters and ranges."""
    listed = xmerge("methods").out
    for method in list_methods():
        assert method.name in listed
        assert method.summary in listed
    page = xmerge("methods", "slerp").out
    assert "sin((1-t)a)/sin(a)" in page
    assert "0 to 1" in page
    described = json.loads(xmerge("methods", "--json").out)
    assert [each["name"] for each in described] == [method.name for method in list_methods()]


@pytest.mark.parametrize(
    ("name", "models"),
    [
        ("ties", "the base, and 1 or more beside it"),
        ("slerp", "the base, and 1 beside it"),
        ("nuslerp", "2, and a base if one is named"),
        ("linear", "1 or more; a base_model is one of them"),
    ],
)
def test_a_page_says_how_many_models_meet(xmerge, name, models):
    """The page of a method says how many models it takes, and whether the base counts among them."""
    assert f"\nModels: {models}\n" in xmerge("methods", name).out


def test_a_page_without_parameters_says_so(xmerge):
    """A method that cannot be set has a page that says that, and no empty list."""
    assert xmerge("methods", "arcee_fusion").out.endswith("\nParameters: none\n")


def test_a_page_says_what_happens_without_a_value(xmerge):
    """A value that one model lacks leaves that model out, and one that all share leaves the base's tensor."""
    assert "takes no part in it" in xmerge("methods", "ties").out
    assert "keep the base's" in xmerge("methods", "nearswap").out


def test_an_unknown_name_is_refused_with_the_nearest(xmerge):
    """A family or method that there is not is named with the one that was meant."""
    family, method = xmerge("families", "lama"), xmerge("methods", "lineer")
    assert (family.exit_code, method.exit_code) == (2, 2)
    assert "'llama'" in family.err
    assert "'linear'" in method.err


def test_the_schema_is_a_json_schema_of_the_configuration(xmerge):
    """An editor gets a schema that names every key of the configuration."""
    schema = json.loads(xmerge("schema").out)
    assert set(schema["properties"]) == set(MergeConfig.model_fields)
