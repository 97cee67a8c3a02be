"""The schema: what editors are told, and what the parsed objects say of themselves."""

import json
from typing import Any

import jsonschema  # type: ignore[import-untyped]  # Its stubs are a package of their own.
import pytest
import yaml
from pydantic import ValidationError

from xmerge.config import InputModel, LayerRange, MergeConfig, ModelReference, OutputSlice, parse_config
from xmerge.methods import list_methods

SCHEMA = MergeConfig.model_json_schema()
CHECK = jsonschema.Draft202012Validator(SCHEMA)

EVERYTHING = """\
merge_method: linear
models:
- model: org/name@main
  parameters:
    weight: 1
- model: {model: {path: b, revision: main}, lora: c@d, override_architecture: LlamaForCausalLM}
  parameters:
    weight: [0, 0.5, 1]
- model: {path: c}
  parameters:
    weight:
    - {filter: mlp, value: 0.5}
    - {filter: self_attn, value: [0, 1e-3]}
    - value: 1
base_model: a
dtype: bfloat16
out_dtype: torch.float16
chat_template: "{{ messages }}"
tokenizer:
  source: union
  pad_to_multiple_of: 64
  tokens:
    <A>: {source: a}
    <B>: {source: {kind: zero}, force: true}
    <C>: {source: {kind: model_token, model: a, token_id: 3}}
parameters: {normalize: true}
globals: {weight: 1}
architecture: b
on_mismatch: base
unlisted_layers: drop
layer_map: [[0, 1], [1, 3]]
random_seed: 7
publish: {repo: org/name, visibility: public, branch: main}
"""
SLICED = """\
merge_method: slerp
slices:
- sources:
  - {model: a, layer_range: [0, 4]}
  - {model: b, layer_range: [0, 4], parameters: {}}
  parameters: {t: 0.5}
  base_model: a
  residual_weight: 0.5
tokenizer_source: base
dtype: null
"""
MODULES = "merge_method: passthrough\nmodules: {default: {slices: [{sources: [{model: a, layer_range: [0, 1]}]}]}}"


def walk(part: Any) -> list[dict[str, Any]]:
    """Every object of a schema, outer ones first."""
    inner = part.values() if isinstance(part, dict) else part if isinstance(part, list) else []
    return ([part] if isinstance(part, dict) else []) + [each for item in inner for each in walk(item)]


@pytest.mark.parametrize("text", [EVERYTHING, SLICED, MODULES], ids=["everything", "slices", "modules"])
def test_an_editor_accepts_what_xmerge_accepts(text: str):
    """The JSON schema is valid, and every way to write a configuration that is read without error agrees with it."""
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    parse_config(text)
    assert [error.message for error in CHECK.iter_errors(yaml.safe_load(text))] == []


@pytest.mark.parametrize("text", [EVERYTHING, SLICED, MODULES], ids=["everything", "slices", "modules"])
def test_an_editor_accepts_what_xmerge_writes(text: str):
    """A configuration written as JSON agrees with the schema that describes what a person writes."""
    written = parse_config(text).model_dump(mode="json", exclude_defaults=True)
    assert [error.message for error in CHECK.iter_errors(written)] == []


@pytest.mark.parametrize(
    "change",
    [
        {"base_modle": "a"},
        {"merge_method": "slrep"},
        {"models": "a"},
        {"models": [{"model": "a", "paramters": {}}]},
        {"models": [{"model": ""}]},
        {"base_model": 3},
        {"dtype": "bf16"},
        {"parameters": {"weight": "much"}},
        {"parameters": {"weight": []}},
        {"parameters": {"weight": {"filter": "mlp", "value": 1}}},
        {"parameters": {"weight": {"entries": [{"value": 1}]}}},
        {"slices": [{"sources": []}]},
        {"slices": [{"sources": [{"model": "a", "layer_range": {"start": 0, "end": 4}}]}]},
        {"slices": [{"sources": [{"model": "a", "layer_range": [0]}]}]},
        {"slices": [{"sources": [{"model": "a", "layer_range": [-1, 2]}]}]},
        {"layer_map": "proportinal"},
        {"layer_map": [[0, 1, 2]]},
        {"layer_map": []},
        {"random_seed": -1},
        {"random_seed": "3"},
        {"publish": "org/name"},
        {"on_mismatch": None},
    ],
    ids=str,
)
def test_an_editor_underlines_what_xmerge_refuses(change: dict[str, Any]):
    """The schema refuses what reading the configuration would refuse."""
    data = yaml.safe_load(EVERYTHING)
    assert CHECK.is_valid(data)
    assert not CHECK.is_valid(data | change)


def test_an_editor_explains_every_key():
    """Every key of every object has a description, and no object takes keys that are not described."""
    for part in walk(SCHEMA):
        undescribed = [key for key, value in part.get("properties", {}).items() if not value.get("description")]
        assert undescribed == []
        assert part.get("additionalProperties") is not True


def test_an_editor_sees_nothing_of_our_own_records():
    """The schema shows what a person writes: no record that reading makes of it stands there."""
    assert not {"Setting", "LayerRange", "MergeConfig"} & set(SCHEMA["$defs"])
    assert "entries" not in json.dumps(SCHEMA)


def test_an_editor_completes_the_methods():
    """The schema lists the methods there are."""
    assert SCHEMA["properties"]["merge_method"]["enum"] == [method.name for method in list_methods()]


def test_a_model_is_named_as_it_is_written():
    """A model reference reads back as the text that it was written as."""
    for text in ("a", "org/name", "org/name@main", "a+b", "a@b+c@d"):
        assert str(InputModel.model_validate({"model": text}).model) == text


def test_a_path_with_special_characters_is_written_as_a_mapping():
    """A folder whose name holds `@` or `+` can be named, by a mapping."""
    model = InputModel.model_validate({"model": {"path": "runs/a+b@3"}}).model
    assert model.model.path == "runs/a+b@3"
    assert model.model.revision is None
    assert model.lora is None


def test_the_ways_to_write_one_model_are_equal():
    """A model is the same however it is written, so that it is found once."""
    written: list[Any] = [
        "a@b",
        {"path": "a", "revision": "b"},
        {"model": "a@b"},
        {"model": {"path": "a", "revision": "b"}},
    ]
    assert len({InputModel.model_validate({"model": each}).model for each in written}) == 1


def test_a_layer_range_is_half_open():
    """A range from 2 to 6 covers four layers."""
    piece = OutputSlice.model_validate({"sources": [{"model": "a", "layer_range": [2, 6]}]})
    assert piece.sources[0].layer_range == LayerRange(start=2, end=6)
    assert piece.sources[0].layer_range.length == 4


def test_what_the_output_is_written_in():
    """`out_dtype` decides, else `dtype`; a `torch.` before the name changes nothing."""
    rest = "\nmerge_method: linear\nmodels: [{model: a}]"
    assert parse_config(f"dtype: torch.float16{rest}").written_dtype == "float16"
    assert parse_config(f"dtype: float32\nout_dtype: bfloat16{rest}").written_dtype == "bfloat16"
    assert parse_config(rest).written_dtype is None


def test_a_configuration_cannot_be_changed():
    """What was read stays as it was read."""
    config = parse_config(SLICED)
    with pytest.raises(ValidationError, match="frozen"):
        config.merge_method = "linear"  # type: ignore[misc]
    assert isinstance(config.slices, tuple)


def test_models_have_no_order_of_their_own():
    """Equal references are equal keys, so that models are compared and never ordered by chance."""
    first, second = (ModelReference.model_validate({"model": {"path": "a"}}) for _ in range(2))
    assert first == second
    assert hash(first) == hash(second)
