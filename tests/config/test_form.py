"""A form's fields: the recipe that they mean, and what is wrong with them by their own names."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from xmerge.config import MergeForm, parse_config, take_recipe
from xmerge.config.form import OWN_FIELDS
from xmerge.errors import ConfigError
from xmerge.methods import list_methods

TWO: dict[str, Any] = {"base": "org/base", "donors": ("org/donor",)}


def refuse(**fields: Any) -> str:
    """What a person reads who has filled in these fields."""
    with pytest.raises(ConfigError) as refused:
        take_recipe(MergeForm(**fields))
    return str(refused.value)


def test_a_recipe_is_taken_as_it_is():
    """Text or path, whatever stands in the field of the recipe, when the other fields are empty."""
    assert take_recipe(MergeForm(recipe=" some/recipe.yml ")) == " some/recipe.yml "


def test_the_fields_are_a_recipe():
    """Base, donors, method, parameters and settings stand in it under the names that recipes have for them."""
    fields = TWO | {"method": "ties", "parameters": {"weight": 1, "density": 0.5}, "settings": {"dtype": "float32"}}
    assert yaml.safe_load(take_recipe(MergeForm(**fields))) == {
        "merge_method": "ties",
        "base_model": "org/base",
        "models": [{"model": "org/base"}, {"model": "org/donor"}],
        "parameters": {"weight": 1, "density": 0.5},
        "dtype": "float32",
    }


def test_a_parameter_may_differ_between_models():
    """A mapping from models to values becomes a parameter of each of them, and of no other."""
    weights = {"org/a": 0.7, "org/b": [0.1, 0.3]}
    form = MergeForm(base="org/base", donors=("org/a", "org/b"), method="ties", parameters={"weight": weights})
    config = parse_config(take_recipe(form))
    values = {
        str(model.model): [entry.value for entry in model.parameters["weight"].entries] for model in config.models[1:]
    }
    assert values == {"org/a": [(0.7,)], "org/b": [(0.1, 0.3)]}
    assert not config.models[0].parameters
    assert not config.parameters


@pytest.mark.parametrize("method", list_methods(), ids=lambda method: method.name)
def test_every_method_can_be_described(method):
    """With a value for what has no default, each method's form is a recipe that can be read."""
    needed = {each.name: 0.5 for each in method.parameters if each.default is None}
    assert (
        parse_config(take_recipe(MergeForm(**TWO, method=method.name, parameters=needed))).merge_method == method.name
    )
    for name in needed:
        rest = {key: value for key, value in needed.items() if key != name}
        assert f"{method.name} needs '{name}'" in refuse(**TWO, method=method.name, parameters=rest)


@pytest.mark.parametrize("text", ["a: b", "'", '"', "- x", "#", "ä\u2028x", "{a}", "*x", "\U0001f600", "null", "1"])
def test_a_models_name_is_only_a_name(text):
    """Whatever stands in a field is one text in the recipe, and no YAML."""
    form = MergeForm(base=f"org/{text}", donors=(text,), parameters={"t": 0.5})
    assert [model["model"] for model in yaml.safe_load(take_recipe(form))["models"]] == [f"org/{text}", text]


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({}, "the form says nothing to merge.\n  at: the form: base\n"),
        ({"donors": ("org/a",)}, "the form names no base.\n  at: the form: base\n"),
        (TWO | {"recipe": "r.yml"}, "the form has a recipe, and beside it base, donors.\n  at: the form: recipe\n"),
        ({"recipe": "r.yml", "method": "ties"}, "the form has a recipe, and beside it method.\n"),
        (TWO | {"method": "slrp"}, "did you mean 'slerp'?\n  at: the form: method"),
        (
            TWO | {"parameters": {"tt": 1}},
            "slerp has no parameter 'tt'; did you mean 't'?\n  at: the form: parameters.tt",
        ),
        (TWO | {"parameters": {"t": 3}}, "'t' is 3; it must be 0 to 1.\n  at: the form: parameters.t"),
        (TWO | {"parameters": {"t": {"org/donor": 1}}}, "cannot stand under one of them"),
        (
            TWO | {"parameters": {"t": {"org/doner": 1}}},
            "the form merges no model 'org/doner'; did you mean 'org/donor'?",
        ),
        (TWO | {"settings": {"dtyp": "x"}}, "did you mean 'dtype'?\n  at: the form: settings.dtyp"),
        ({"base": "org/a@", "parameters": {"t": 1}}, "names no revision behind its '@'.\n  at: the form: base"),
        ({"base": "a", "donors": ("b", " "), "parameters": {"t": 1}}, "the text is empty.\n  at: the form: donors[1]"),
    ],
)
def test_a_fault_is_told_by_the_name_of_its_field(fields, told):
    """Every fault names the field of the form in which it is, and not a line of a recipe that nobody has written."""
    assert told in refuse(**fields)
    assert "line" not in refuse(**fields)


@pytest.mark.parametrize("key", OWN_FIELDS)
def test_what_has_a_field_is_said_there(key):
    """A key of a recipe that has a field of its own is refused among the settings, with the field's name."""
    told = refuse(**TWO, parameters={"t": 0.5}, settings={key: "x"})
    assert f"at: the form: settings.{key}\n  do: say it in '{OWN_FIELDS[key]}'." in told
