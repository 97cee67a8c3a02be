"""`xmerge families`, `methods` and `schema`."""

from __future__ import annotations

import json

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
