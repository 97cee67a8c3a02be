"""The output is exactly a model of the target's architecture, whoever else is named and in whatever order."""

from __future__ import annotations

import json

import pytest

from tests.planning.conftest import tensors_of
from xmerge.checkpoints import read_checkpoint
from xmerge.planning import MergePlan

SLERP = """
merge_method: slerp
base_model: {base}
models: [{{model: {first}}}, {{model: {second}}}]
parameters: {{t: 0.3}}
"""
FAMILIES = ("llama", "mistral", "qwen2", "qwen3", "gemma2", "phi3")


@pytest.mark.parametrize("donor", FAMILIES)
@pytest.mark.parametrize("base", FAMILIES)
@pytest.mark.parametrize("base_first", [True, False])
def test_the_output_has_the_tensors_of_the_base_and_no_others(bench, base, donor, base_first):
    """Names and shapes of the output are those of the base's checkpoint, for any two families in any order."""
    bench.write("base", base)
    bench.write("donor", donor)
    first, second = ("base", "donor") if base_first else ("donor", "base")
    plan = bench.plan(SLERP.format(base="base", first=first, second=second))
    stored = read_checkpoint(bench.folder / "base", "base").tensors
    assert {name: each.shape for name, each in tensors_of(plan).items()} == {
        name: each.shape for name, each in stored.items()
    }
    assert plan.models[plan.target].label == "base"


def test_every_tensor_has_a_planned_source(bench):
    """Nothing in the output comes from nowhere, and every source fills the output's shape."""
    bench.write("base", "gemma2")
    bench.write("donor", "phi3")
    plan = bench.plan(SLERP.format(base="base", first="base", second="donor"))
    for tensor in plan.tensors:
        assert tensor.sources
        for source in tensor.sources:
            assert sum(segment.elements for segment in source.segments) == tensor.elements


def test_without_a_base_model_the_first_model_gives_the_architecture(bench):
    """The order in the file decides, not the name and not the family."""
    bench.write("z", "llama")
    bench.write("a", "qwen3")
    text = "merge_method: linear\nmodels: [{{model: {}}}, {{model: {}}}]\nparameters: {{weight: 1}}"
    assert bench.plan(text.format("z", "a")).models[0].label == "z"
    assert not any("q_norm" in name for name in tensors_of(bench.plan(text.format("z", "a"))))
    assert any("q_norm" in name for name in tensors_of(bench.plan(text.format("a", "z"))))


def test_the_architecture_key_decides_over_the_base(bench):
    """`architecture` gives tensors, depth and config.json; the base is still what is measured from."""
    bench.write("shallow", "llama", num_hidden_layers=3)
    bench.write("deep", "qwen3", num_hidden_layers=6)
    plan = bench.plan(
        SLERP.format(base="shallow", first="shallow", second="deep") + "architecture: deep\nlayer_map: proportional\n"
    )
    assert json.loads(plan.config_text)["model_type"] == "qwen3"
    assert len(plan.layer_map) == 6
    q_norm = tensors_of(plan)["model.layers.0.self_attn.q_norm.weight"]
    assert q_norm.decision == "keep"
    assert plan.models[q_norm.sources[0].model].label == "deep"
    q_proj = tensors_of(plan)["model.layers.5.self_attn.q_proj.weight"]
    assert [plan.models[source.model].label for source in q_proj.sources] == ["shallow", "deep"]
    assert q_proj.sources[0].segments[0].tensor == "model.layers.2.self_attn.q_proj.weight"


def test_foreign_tensors_are_listed_as_dropped(bench):
    """What the donor has and the target has not is named and counted, and nothing of it is read."""
    bench.write("base", "llama")
    bench.write("donor", "qwen3")
    plan = bench.plan(SLERP.format(base="base", first="base", second="donor"))
    assert plan.models[1].dropped == ("attn_k_norm (4 tensors)", "attn_q_norm (4 tensors)")
    assert plan.models[0].dropped == ()
    read = {segment.tensor for tensor in plan.tensors for source in tensor.sources for segment in source.segments}
    assert not any("norm.weight" in name and "_norm.weight" in name for name in read)


def test_biases_of_the_donor_are_dropped_where_the_base_has_none(bench):
    """A bias without a place in the target is listed, not folded away."""
    bench.write("base", "llama")
    bench.write("donor", "qwen2")
    plan = bench.plan(SLERP.format(base="base", first="base", second="donor"))
    assert plan.models[1].dropped == tuple(f"attn_{each}_bias (4 tensors)" for each in "kqv")


def test_the_models_of_a_plan_are_in_the_order_of_the_configuration(bench):
    """The base comes first, then the others as written; each says what of it is used."""
    for name in ("c", "a", "b"):
        bench.write(name)
    plan = bench.plan(
        "merge_method: task_arithmetic\nbase_model: b\n"
        "models: [{model: c, parameters: {weight: 0.5}}, {model: a, parameters: {weight: 0}}]"
    )
    assert [model.label for model in plan.models] == ["b", "c", "a"]
    assert [bool(model.files) for model in plan.models] == [True, True, False]
    assert plan.models[2].bytes_used == 0


def test_a_plan_survives_json(bench):
    """A plan written as JSON and read back is the same plan with the same fingerprint."""
    bench.write("base", "llama")
    bench.write("donor", "phi3")
    plan = bench.plan(SLERP.format(base="base", first="base", second="donor"))
    again = MergePlan.model_validate_json(plan.model_dump_json())
    assert again == plan
    assert again.fingerprint == plan.fingerprint
