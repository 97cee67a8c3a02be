"""Which layers of which models meet, and whose tensors stand before and after the layers."""

from __future__ import annotations

import pytest

from tests.planning.conftest import decisions_of, tensors_of

EMBED, HEAD = "model.embed_tokens.weight", "lm_head.weight"


def labels_of(plan, name):
    """The models that a tensor is made of."""
    return [plan.models[source.model].label for source in tensors_of(plan)[name].sources]


@pytest.fixture
def three(bench):
    """Three Llamas of one shape."""
    for name in "ABC":
        bench.write(name)
    return bench


def test_slices_are_stacked_in_the_order_of_the_file(three):
    """Each slice continues the layer count where the one before it ended, and ranges are half-open."""
    plan = three.plan(
        "merge_method: passthrough\nslices:\n"
        "- sources: [{model: A, layer_range: [0, 3]}]\n- sources: [{model: B, layer_range: [1, 4]}]\n"
    )
    assert [layer.label for layer in plan.layers] == [
        "before the layers",
        *(f"layer {n}" for n in range(6)),
        "after the layers",
    ]
    assert plan.layer_map == ((0, None), (1, None), (2, None), (None, 1), (None, 2), (None, 3))
    source = tensors_of(plan)["model.layers.4.mlp.up_proj.weight"].sources[0]
    assert source.segments[0].tensor == "model.layers.2.mlp.up_proj.weight"


def test_the_first_slice_is_asked_before_the_layers_and_the_last_one_after(three):
    """Embeddings come from the first slice's sources, all of them; final norm and head from the last slice's."""
    plan = three.plan(
        "merge_method: linear\nparameters: {weight: 1}\nslices:\n"
        "- sources: [{model: A, layer_range: [0, 2]}]\n"
        "- sources: [{model: B, layer_range: [2, 4]}, {model: C, layer_range: [2, 4]}]\n"
    )
    assert labels_of(plan, EMBED) == ["A"]
    assert labels_of(plan, "model.norm.weight") == ["B", "C"]
    assert labels_of(plan, HEAD) == ["B", "C"]


def test_a_slice_s_own_base_takes_the_place_of_the_other(three):
    """`base_model` of a slice holds in that slice only."""
    plan = three.plan(
        "merge_method: slerp\nbase_model: A\nparameters: {t: 0.5}\nslices:\n"
        "- sources: [{model: A, layer_range: [0, 2]}, {model: B, layer_range: [0, 2]}]\n"
        "- base_model: C\n  sources: [{model: A, layer_range: [2, 4]}, {model: C, layer_range: [2, 4]}]\n"
    )
    assert labels_of(plan, "model.layers.1.mlp.up_proj.weight") == ["A", "B"]
    assert labels_of(plan, "model.layers.2.mlp.up_proj.weight") == ["C", "A"]
    assert plan.models[plan.target].label == "A"


def test_a_slice_without_the_base_is_refused(three):
    """A method that measures from a base says which slice lacks it, and both ways to mend that."""
    error = three.refuse(
        "merge_method: slerp\nbase_model: A\nparameters: {t: 0.5}\nslices:\n"
        "- sources: [{model: A, layer_range: [0, 2]}, {model: B, layer_range: [0, 2]}]\n"
        "- sources: [{model: B, layer_range: [2, 4]}, {model: C, layer_range: [2, 4]}]\n"
    )
    assert error.what == "slerp needs a base to measure from."
    assert error.where == "recipe.yml, line 6: slices[1]"
    assert error.why == "the base model A is not among: B, C."
    assert error.remedy == "add A to the sources, or set this slice's own 'base_model'."


def test_a_slice_s_own_base_must_meet_there(three):
    """The refusal names the base of the slice, not the one it takes the place of."""
    error = three.refuse(
        "merge_method: slerp\nbase_model: A\nparameters: {t: 0.5}\nslices:\n"
        "- base_model: C\n  sources: [{model: A, layer_range: [0, 2]}, {model: B, layer_range: [0, 2]}]\n"
    )
    assert error.why == "the base model C is not among: A, B."


def test_a_method_with_a_base_and_none_named_is_refused(three):
    """Which of two models is the base is never guessed."""
    error = three.refuse("merge_method: slerp\nmodels: [{model: A}, {model: B}]\nparameters: {t: 0.5}")
    assert error.why == "there is no 'base_model'."
    assert error.remedy == "set 'base_model' to one of the models that meet here."


def test_a_range_past_a_model_s_end_is_refused(three):
    """The refusal names the model, its depth and the range's line."""
    error = three.refuse(
        "merge_method: passthrough\nslices:\n- sources: [{model: A, layer_range: [0, 2]}]\n"
        "- sources:\n  - model: B\n    layer_range: [2, 5]\n"
    )
    assert error.what == "the layer range ends at 5, and B has 4 layers."
    assert error.where == "recipe.yml, line 6: slices[1].sources[0].layer_range"
    assert error.remedy == "ranges are half-open: [0, 4] is the whole model."


@pytest.mark.parametrize(
    ("method", "models", "told"),
    [
        ("slerp", "ABC", "slerp takes exactly 2 models with the base, and 3 meet here: A, B, C."),
        ("passthrough", "AB", "passthrough takes exactly 1 model, and 2 meet here: A, B."),
        ("task_arithmetic", "A", "task_arithmetic takes 2 or more models with the base, and 1 meet here: A."),
    ],
)
def test_a_wrong_number_of_models_is_refused(three, method, models, told):
    """Each method says how many models it takes and which ones it got."""
    listed = ", ".join(f"{{model: {name}}}" for name in models)
    error = three.refuse(f"merge_method: {method}\nbase_model: A\nmodels: [{listed}]")
    assert error.what == told
    assert error.where == "recipe.yml, line 3: models"


def test_a_base_that_makes_one_model_too_many_is_named(three):
    """Who lists one model for passthrough and another as base is told where the second comes from."""
    error = three.refuse("merge_method: passthrough\nbase_model: A\nmodels: [{model: B}]")
    assert error.why == "'base_model' is one of them, though 'models' does not list it."
    assert error.remedy == "leave out 'base_model'."


def test_unlisted_layers_stay_in_their_places(three):
    """With `unlisted_layers: base` a slice stands at its own layers of the base, and the depth does not change."""
    plan = three.plan(
        "merge_method: slerp\nbase_model: A\nunlisted_layers: base\nparameters: {t: [0, 1]}\nslices:\n"
        "- sources: [{model: A, layer_range: [2, 4]}, {model: B, layer_range: [0, 2]}]\n"
    )
    assert plan.layer_map == ((0, None), (1, None), (2, 0), (3, 1))
    assert decisions_of(plan, "layers.2.") == {"keep"}
    assert decisions_of(plan, "layers.3.") == {"copy"}
    assert plan.warnings == ()


@pytest.mark.parametrize(
    ("second", "told"),
    [
        ("[{model: B, layer_range: [2, 3]}]", "this slice has no layers of A."),
        ("[{model: A, layer_range: [1, 2]}]", "layer 1 of A stands in two slices."),
    ],
)
def test_unlisted_layers_need_to_know_every_slice_s_place(three, second, told):
    """A slice without the base's layers, or with layers of another slice, has no place of its own."""
    error = three.refuse(
        "merge_method: passthrough\nbase_model: A\nunlisted_layers: base\nslices:\n"
        f"- sources: [{{model: A, layer_range: [0, 2]}}]\n- sources: {second}\n"
    )
    assert error.what == told
    assert error.where == "recipe.yml, line 6: slices[1]"


def test_a_module_named_default_is_the_whole_model(three):
    """`modules: {default: ...}` means what its content means at the top."""
    inner = "models: [{model: A}, {model: B}]"
    plain = three.plan(f"merge_method: slerp\nbase_model: A\n{inner}\nparameters: {{t: 0.3}}")
    module = three.plan(
        f"merge_method: slerp\nbase_model: A\nmodules:\n  default:\n    {inner}\n    parameters: {{t: 0.3}}"
    )
    assert module.fingerprint == plain.fingerprint


def test_another_module_is_refused(three):
    """A language model has one part, and the refusal says what it is called."""
    error = three.refuse("merge_method: passthrough\nmodules:\n  vision: {models: [{model: A}]}")
    assert (error.what, error.where) == (
        "the architecture has no module 'vision'.",
        "recipe.yml, line 3: modules.vision",
    )
    assert error.remedy == "a language model has the one module 'default'."


def test_a_layer_of_a_deeper_model_takes_the_shape_of_the_target_s_layers(bench):
    """A stack may reach beyond the target's depth; its tensors are those of the target's layers all the same."""
    bench.write("A", num_hidden_layers=2)
    bench.write("B", "qwen3", num_hidden_layers=6)
    plan = bench.plan(
        "merge_method: passthrough\nslices:\n"
        "- sources: [{model: A, layer_range: [0, 2]}]\n- sources: [{model: B, layer_range: [4, 6]}]\n"
    )
    assert plan.models[0].label == "A"
    last = {name.split("layers.3.")[1] for name in tensors_of(plan) if "layers.3." in name}
    assert last == {name.split("layers.0.")[1] for name in tensors_of(plan) if "layers.0." in name}


def test_the_last_layer_stays_before_those_that_predict_further_tokens(bench):
    """What is numbered on from the last layer merges where that stays, and no stack of another depth is made of it."""
    further = {f"model.layers.4.{name}.weight": ("BF16", (8, 16)) for name in ("eh_proj", "enorm")}
    for name in "AB":
        bench.write(name, "deepseek_v3", extra=further, num_nextn_predict_layers=1)
    plan = bench.plan("merge_method: linear\nparameters: {weight: 0.5}\nmodels: [{model: A}, {model: B}]")
    assert len([layer for layer in plan.layers if layer.index is not None]) == 4
    assert all(labels_of(plan, name) == ["A", "B"] for name in further)
    error = bench.refuse(
        "merge_method: passthrough\nslices:\n"
        "- sources: [{model: A, layer_range: [0, 4]}]\n- sources: [{model: B, layer_range: [1, 4]}]\n"
    )
    assert str(error) == (
        "the output would have 7 layers, and A holds layers behind its 4 that predict further tokens.\n"
        "  at: recipe.yml, line 2: slices\n"
        "  why: those layers are numbered on from the last.\n"
        "  do: keep 4 layers, or merge checkpoints without what lies behind them."
    )
