"""Methods that measure from a base where one is named, and do without it where none is."""

from __future__ import annotations

import pytest

from tests.planning.conftest import tensors_of

Q0 = "model.layers.0.self_attn.q_proj.weight"
BIAS = "model.layers.0.self_attn.q_proj.bias"
NUSLERP = "merge_method: nuslerp\nmodels: [{model: B, parameters: {weight: 1}}, {model: C, parameters: {weight: 3}}]\n"


@pytest.fixture
def three(bench):
    """Three Llamas of one shape."""
    for name in "ABC":
        bench.write(name)
    return bench


def labels_of(plan, tensor):
    """What people call the models that a tensor is read from."""
    return [plan.models[source.model].label for source in tensor.sources]


def test_a_named_base_is_the_first_source_and_needs_no_weight(three):
    """It is measured from, wherever it is listed or not, and each per-model parameter has a 0 for it."""
    for listed in ("", ", {model: A}"):
        plan = three.plan(NUSLERP.replace("weight: 3}}", "weight: 3}}" + listed) + "base_model: A")
        tensor = tensors_of(plan)[Q0]
        assert labels_of(plan, tensor) == ["A", "B", "C"]
        assert (tensor.has_base, tensor.base, tensor.coefficients) == (True, 0, None)
        assert dict(tensor.parameters)["weight"] == (0.0, 1.0, 3.0)


def test_without_a_base_the_models_themselves_are_merged(three):
    """Then all inputs are alike, and the plan says so: it decides bytes."""
    plan = three.plan(NUSLERP)
    tensor = tensors_of(plan)[Q0]
    assert labels_of(plan, tensor) == ["B", "C"]
    assert (tensor.has_base, tensor.coefficients) == (False, None)
    based = three.plan(NUSLERP + "base_model: A")
    assert plan.layers[1].fingerprint != based.layers[1].fingerprint


def test_what_is_known_without_weights_is_copied(three):
    """A donor with all of the weight is copied, and the base is read for its own sake alone."""
    plan = three.plan(NUSLERP.replace("weight: 3", "weight: 0") + "base_model: A")
    tensor = tensors_of(plan)[Q0]
    assert (tensor.decision, labels_of(plan, tensor), tensor.has_base) == ("copy", ["B"], False)
    alone = three.plan("merge_method: multislerp\nbase_model: A\nmodels: [{model: C}]\nparameters: {weight: 0.3}")
    assert (tensors_of(alone)[Q0].decision, labels_of(alone, tensors_of(alone)[Q0])) == ("copy", ["C"])


@pytest.mark.parametrize(
    ("text", "what", "why"),
    [
        (
            "merge_method: nuslerp\nbase_model: B\nmodels: [{model: A}, {model: B}]\nparameters: {weight: 1}",
            "nuslerp takes exactly 2 models beside the base, and 1 meet here: A.",
            "B is the base, and not counted.",
        ),
        (
            "merge_method: nuslerp\nmodels: [{model: A}, {model: B}, {model: C}]\nparameters: {weight: 1}",
            "nuslerp takes exactly 2 models, and 3 meet here: A, B, C.",
            None,
        ),
        (
            "merge_method: multislerp\nbase_model: A\nmodels: [{model: A}]\nparameters: {weight: 1}",
            "multislerp takes 1 or more models beside the base, and 0 meet here: none.",
            "A is the base, and not counted.",
        ),
        (
            "merge_method: model_stock\nbase_model: A\nmodels: [{model: B}]",
            "model_stock takes 3 or more models with the base, and 2 meet here: A, B.",
            "'base_model' is one of them, though 'models' does not list it.",
        ),
    ],
)
def test_a_wrong_number_of_models_is_refused(three, text, what, why):
    """The base does not count where it is one, and the refusal says so."""
    error = three.refuse(text)
    assert (error.what, error.why) == (what, why)
    assert error.remedy is not None
    assert error.remedy.endswith(" here, or take another method (`xmerge methods` lists them).")


def test_a_slice_without_the_named_base_is_refused(three):
    """A base that is named is never left out in silence; both ways to mend it are told."""
    error = three.refuse(
        "merge_method: nuslerp\nbase_model: A\nparameters: {weight: 1}\nslices:\n"
        "- sources: [{model: B, layer_range: [0, 1]}, {model: C, layer_range: [0, 1]}]\n"
    )
    assert error.what == "nuslerp cannot measure from a base that does not meet here."
    assert error.why == "the base model A is not among: B, C."
    assert error.remedy == "add A to the sources, or leave out 'base_model' to merge the models themselves."


def test_a_donor_without_a_weight_is_refused(three):
    """Every model but the base needs one."""
    error = three.refuse(NUSLERP.replace(", parameters: {weight: 3}", "") + "base_model: A")
    assert error.what == "nuslerp needs 'weight' for every model, and C has none."


def test_too_few_donors_for_a_tensor_keep_the_base(three):
    """Where a filter leaves fewer donors than the method takes, the base's bytes stay, and the plan says why."""
    plan = three.plan(
        "merge_method: model_stock\nbase_model: A\nmodels: [{model: B}, {model: C}]\nparameters: {filter_wise: true}"
    )
    assert tensors_of(plan)[Q0].decision == "merge"
    one = "{weight: [{filter: self_attn, value: 1}]}"
    plan = three.plan(
        "merge_method: nuslerp\nbase_model: A\nmodels: "
        f"[{{model: B, parameters: {one}}}, {{model: C, parameters: {{weight: 1}}}}]"
    )
    assert tensors_of(plan)[Q0].decision == "merge"
    kept = tensors_of(plan)["model.layers.0.mlp.up_proj.weight"]
    assert (kept.decision, labels_of(plan, kept), kept.reason) == ("keep", ["A"], "B: 'weight' has no value for it")


def test_a_bias_of_one_donor_is_not_enough(bench):
    """A tensor that only one of two donors has beside the base stays the base's."""
    bench.write("A", "qwen2")
    bench.write("B", "qwen2")
    bench.write("C")
    plan = bench.plan("merge_method: model_stock\nbase_model: A\nmodels: [{model: B}, {model: C}]")
    kept = tensors_of(plan)[BIAS]
    assert (kept.decision, labels_of(plan, kept)) == ("keep", ["A"])
    assert "C" in kept.reason
    assert tensors_of(plan)[Q0].decision == "merge"


def test_weights_that_sum_to_zero_are_refused(three):
    """With the tensor and the models, before anything is read; nuslerp meets half-way instead."""
    text = NUSLERP.replace("nuslerp", "multislerp").replace("3", "-1") + "base_model: A"
    error = three.refuse(text)
    assert error.what == (
        "model.embed_tokens.weight cannot be merged: "
        "the weights [1.0, -1.0] sum to 0, and 'normalize_weights' divides by their sum."
    )
    assert error.why == "of A, B, C."
    assert tensors_of(three.plan(text.replace("multislerp", "nuslerp")))[Q0].decision == "merge"


def test_what_a_person_writes_for_the_base_has_no_effect(three):
    """Its parameters are told to be idle, as with a method that needs a base."""
    plan = three.plan(
        "merge_method: nuslerp\nbase_model: A\n"
        "models: [{model: A, parameters: {weight: 5}}, {model: B}, {model: C}]\nparameters: {weight: 1}"
    )
    assert any("measured from this model" in warning for warning in plan.warnings)


def test_to_karcher_a_base_is_one_of_the_points(three):
    """A `base_model` that is not listed joins the others, as in mergekit, and a weight is told to be idle."""
    plan = three.plan(
        "merge_method: karcher\nbase_model: A\nmodels: [{model: B, parameters: {weight: 0.5}}, {model: C}]"
    )
    tensor = tensors_of(plan)[Q0]
    assert labels_of(plan, tensor) == ["A", "B", "C"]
    assert not tensor.has_base
    assert "'weight' has no effect in karcher." in plan.warnings
