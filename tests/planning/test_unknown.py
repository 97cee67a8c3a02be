"""Models that no family file describes: matched by name and shape, with heads told apart and nothing left unsaid."""

from __future__ import annotations

import json

import pytest

from tests.planning.conftest import decisions_of, tensors_of

SLERP = "merge_method: slerp\nbase_model: A\nmodels: [{model: A}, {model: B}]\nparameters: {t: 0.5}\n"
LAYER = {
    "self_attn.q_proj.weight": [16, 8],
    "self_attn.q_proj.bias": [16],
    "self_attn.kv_b_proj.weight": [5, 3],
    "self_attn.k_norm.weight": [3],
    "mixer.v_proj.weight": [8, 8],
    "mixer.v_proj.bias": [8],
    "mixer.out_proj.weight": [8, 16],
    "mixer.qkv.weight": [32, 8],
    "mlp.up_proj.weight": [12, 8],
    "mlp.up_proj.bias": [12],
    "input_layernorm.weight": [8],
    "post_attention_layernorm.weight": [8],
    "post_attention_layernorm.bias": [8],
}
"""Heads of 4 rows: 4 for queries, 2 for keys and values."""
DIVIDED = ("self_attn.q_proj", "self_attn.kv_b_proj", "mixer.v_proj", "mixer.out_proj", "mixer.qkv")
"""What is divided into heads: by its module's name, or by its shape in a module that is called otherwise."""
SIZES = {"hidden_size": 8, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 4}
OTHERS = {**SIZES, "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 2}


def make_tensors(layer=LAYER, dtype="BF16"):
    """Two layers, between an embedding and a norm."""
    inside = {f"model.layers.{n}.{name}": (dtype, shape) for n in range(2) for name, shape in layer.items()}
    return {"model.embed_tokens.weight": (dtype, [32, 8]), **inside, "model.norm.weight": (dtype, [8])}


@pytest.fixture
def pair(bench):
    """Write two unknown models whose config.json say these things."""

    def write(ours, theirs):
        bench.write_unknown("A", make_tensors(), **ours)
        bench.write_unknown("B", make_tensors(), **theirs)
        return bench

    return write


def is_divided(name):
    """Whether a tensor holds rows of heads."""
    return any(f".{part}." in name for part in DIVIDED)


def test_what_other_heads_divide_is_refused_and_nothing_else(pair):
    """Matrices of attention and their biases meet rows of other heads; norms and feed-forward do not."""
    plan = pair(SIZES, OTHERS).plan(SLERP + "on_mismatch: base")
    for name, tensor in tensors_of(plan).items():
        assert tensor.decision == ("keep" if is_divided(name) else "merge"), name
        assert not is_divided(name) or "(class E)" in tensor.reason


def test_the_refusal_names_both_divisions_and_offers_what_fits(pair):
    """Each model's heads stand beside the tensor, and the way out lists the filters of the other matrices."""
    error = pair(SIZES, OTHERS).refuse(SLERP)
    assert (
        "class E, refused: model.layers.{layer}.self_attn.q_proj.weight: "
        "A has head_dim 4, num_attention_heads 4, num_key_value_heads 2, "
        "B has head_dim 2, num_attention_heads 8, num_key_value_heads 4: equal shapes and heads of other sizes"
    ) in str(error.why)
    assert "'on_different_heads: merge' lets them" in str(error.why)
    assert str(error.remedy).startswith("filter the parameters to what fits (mlp.up_proj), or set")


def test_rows_of_other_heads_meet_where_the_recipe_lets_them(pair):
    """`on_different_heads: merge` merges everything, and each divided tensor is told to be approximate."""
    plan = pair(SIZES, OTHERS).plan(SLERP + "on_different_heads: merge")
    for name, tensor in tensors_of(plan).items():
        assert (tensor.decision, tensor.fit) == ("merge", "C" if is_divided(name) else "A"), name
    assert any("rows of one head meet rows of another" in warning for warning in plan.warnings)


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ({"hidden_size": 8, "num_attention_heads": 2}, {"hidden_size": 8, "num_attention_heads": 2, "head_dim": 4}),
        ({"num_attention_heads": 2}, {"num_attention_heads": 2, "num_key_value_heads": 2}),
        ({"num_attention_heads": 2, "num_key_value_heads": None}, {"num_attention_heads": 2}),
        ({"vision_config": {"num_heads": 3}}, {"vision_config": {"num_heads": 3}, "head_dropout": 0.1}),
    ],
)
def test_heads_that_follow_from_what_is_said_are_no_other_heads(pair, ours, theirs):
    """A head's size and the number of key heads mean the same written out as derived."""
    assert decisions_of(pair(ours, theirs).plan(SLERP), "") == {"merge"}


@pytest.mark.parametrize("part", ["text_config", "vision_config"])
def test_heads_are_compared_in_every_part_of_a_config(pair, part):
    """A model inside a model divides heads too."""
    error = pair({part: SIZES}, {part: OTHERS}).refuse(SLERP)
    assert f"A has {part}.head_dim 4, {part}.num_attention_heads 4" in str(error.why)


def test_what_was_not_compared_is_told(pair):
    """A warning says that names are all there was, and under which keys the two config.json differ."""
    bookkeeping = {"transformers_version": "4.0", "_name_or_path": "x", "torch_dtype": "float16"}
    plan = pair({"rope_theta": 1e4}, {"rope_theta": 1e6, "window": 5, **bookkeeping}).plan(SLERP)
    assert [each for each in plan.warnings if "unheard-of" in each or "config.json" in each] == [
        "there is no family file for unheard-of: tensors of equal name and shape are taken for the same thing.",
        "A and B differ in config.json, and nothing says for which tensors that matters: rope_theta, window.",
    ]


def test_a_type_whose_file_fits_neither_model_is_unknown(bench):
    """Two models that their family's file does not describe merge by name, and the warning says which file it was."""
    for name in "AB":
        folder = bench.write(name, "gpt2")
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**config, "scale_attn_by_inverse_layer_idx": True}))
    plan = bench.plan(SLERP)
    assert decisions_of(plan, "") == {"merge"}
    assert {tensor.role for tensor in plan.tensors} == {None}
    told = (
        "no family file describes A: the family file of gpt2 describes only models with "
        "scale_attn_by_inverse_layer_idx = false, and config.json says scale_attn_by_inverse_layer_idx = true"
    )
    assert f"{told}: tensors of equal name and shape are taken for the same thing." in plan.warnings
    bench.write("C", "llama")
    assert bench.refuse(SLERP.replace("B", "C")).what == f"A is a gpt2 and C a llama, and {told}."


def test_a_type_whose_file_fits_one_of_two_models_is_refused(bench):
    """By what the file says of one model nothing can be known of the other."""
    folder = bench.write("A", "gpt2")
    bench.write("B", "gpt2")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "scale_attn_by_inverse_layer_idx": True}))
    for base, donor in ("AB", "BA"):
        text = SLERP.replace("{model: A}, {model: B}", f"{{model: {base}}}, {{model: {donor}}}")
        error = bench.refuse(text.replace("base_model: A", f"base_model: {base}"))
        assert "no family file describes A: the family file of gpt2 describes only models with" in str(error.why)
