"""Folds: what of a donor goes into its weights, only where the configuration names it and where it is exact."""

from __future__ import annotations

import pytest

from tests.planning.conftest import tensors_of

SLERP = "merge_method: slerp\nbase_model: A\nmodels: [{model: A}, {model: B}]\nparameters: {t: 0.5}\n"
KEEPS_NORMS = SLERP.replace("t: 0.5", "t: [{filter: norm, value: 0}, {value: 0.5}]")
GRANITE = {"attention_multiplier": 0.25, "residual_multiplier": 0.5, "embedding_multiplier": 1, "logits_scaling": 1}
LAYER = "model.layers.1."


def donor_of(plan, name):
    """What the donor gives to a tensor of the second layer."""
    return next(source for source in tensors_of(plan)[LAYER + name].sources if source.model == 1)


def scales_of(plan, name):
    """What each segment of the donor is multiplied by."""
    return [segment.scale for segment in donor_of(plan, name).segments]


def test_scales_are_told_and_left_alone_unless_they_are_folded(bench):
    """Granite's multipliers make q, o and down approximate, and the warning names the fold that makes up for them."""
    bench.write("A", head_dim=4)
    bench.write("B", "granite", head_dim=4, **GRANITE)
    plan = bench.plan(SLERP)
    for name, fold in (("self_attn.q_proj.weight", "softmax_scale"), ("mlp.down_proj.weight", "residual_scale")):
        assert scales_of(plan, name) == [1.0]
        assert donor_of(plan, name).fit == "C"
        assert any(f"'folds: [{fold}]' makes up for it" in warning for warning in plan.warnings)
    folded = bench.plan(SLERP + "folds: [softmax_scale, residual_scale]")
    # Attention scores are multiplied by 1/4 there and by 1/2, the root of 1/4, here.
    assert scales_of(folded, "self_attn.q_proj.weight") == [0.5]
    assert scales_of(folded, "self_attn.o_proj.weight") == scales_of(folded, "mlp.down_proj.weight") == [0.5]
    assert scales_of(folded, "self_attn.k_proj.weight") == scales_of(folded, "mlp.up_proj.weight") == [1.0]
    assert donor_of(folded, "self_attn.q_proj.weight").fit == "B"
    assert donor_of(folded, "self_attn.q_proj.weight").steps == ("times 0.5",)
    assert not any("makes up for it" in warning for warning in folded.warnings)
    assert folded.fingerprint != plan.fingerprint


def test_in_a_fused_tensor_only_the_rows_of_q_are_scaled(bench):
    """What is folded is a role's, not its tensor's."""
    bench.write("A", "phi3", head_dim=4)
    bench.write("B", "granite", head_dim=4, **GRANITE)
    plan = bench.plan(SLERP + "folds: [softmax_scale]")
    assert scales_of(plan, "self_attn.qkv_proj.weight") == [0.5, 1.0, 1.0]


def test_the_gain_of_the_input_norm_goes_into_what_reads_it(bench):
    """q, k, v and the feed-forward's input get the ratio of the two norms' gains, and nothing else does."""
    bench.write("A")
    bench.write("B", "gemma")
    plan = bench.plan(KEEPS_NORMS + "folds: [input_norm]")
    gain = donor_of(plan, "self_attn.q_proj.weight").gain
    assert gain.donor.tensor == gain.base.tensor == LAYER + "input_layernorm.weight"
    assert (gain.base_model, gain.donor_shift, gain.base_shift) == (0, 1.0, 0.0)
    assert (gain.length, gain.stride) == (8, 1)
    assert donor_of(plan, "mlp.up_proj.weight").gain.base.tensor == LAYER + "post_attention_layernorm.weight"
    for name in ("self_attn.o_proj.weight", "mlp.down_proj.weight"):
        assert donor_of(plan, name).gain is None


def test_a_gain_is_not_counted_twice(bench):
    """A norm whose gain is folded into what reads it stays the base's; to merge it as well is refused."""
    bench.write("A")
    bench.write("B")
    error = bench.refuse(SLERP + "folds: [input_norm]")
    assert "is divided by the gain of" in error.what
    assert "count twice" in (error.why or "")


def test_a_scale_that_a_norm_takes_away_is_not_folded(bench):
    """Where the base normalizes its queries no scale of q has an effect, and none is advised."""
    bench.write("A", "qwen3", head_dim=4)
    bench.write("B", "granite", head_dim=4, **GRANITE)
    plan = bench.plan(SLERP + "folds: [softmax_scale]")
    assert scales_of(plan, "self_attn.q_proj.weight") == [1.0]
    assert any("'softmax_scale' has no effect" in warning for warning in plan.warnings)
    assert not any("makes up for it" in warning and "scores" in warning for warning in plan.warnings)


def test_in_a_transposed_tensor_the_gain_goes_along_the_rows(bench):
    """The hidden axis of gpt-oss's experts is not their last one."""
    experts = {"num_local_experts": 4, "intermediate_size": 6}
    bench.write("A", "gpt_oss", maybe=lambda role, _: "_exps" in role, **experts)
    bench.write("B", "mixtral", **experts)
    text = SLERP.replace("t: 0.5", "t: [{filter: gate_up_proj, value: 0.5}]") + "folds: [input_norm]"
    gain = donor_of(bench.plan(text), "mlp.experts.gate_up_proj").gain
    assert (gain.length, gain.stride) == (8, 12)


@pytest.mark.parametrize(
    ("base", "donor", "reason"),
    [
        ("llama", "cohere", "one of the two norms also takes away the mean"),
        ("cohere", "stablelm", "the norm of B has a bias"),
        ("olmo2", "llama", "A norms nothing that it reads"),
        ("olmo2", "cohere", "A norms nothing that it reads"),
        ("llama", "olmo2", "B norms nothing that it reads"),
    ],
)
def test_a_fold_that_cannot_be_exact_is_refused(bench, base, donor, reason):
    """A mean, a bias, and what a norm divides by where only one model has it, cannot go into a gain; which is told."""
    sizes = {"hidden_size": 16, "head_dim": 4, "num_key_value_heads": 4}
    bench.write("A", base, **sizes)
    bench.write("B", donor, **sizes)
    text = SLERP.replace("t: 0.5", "t: [{filter: up_proj, value: 0.5}]") + "folds: [input_norm]"
    error = bench.refuse(text)
    assert f"'folds: [input_norm]' cannot be exact here: {reason}" in (error.why or "")
    bench.plan(text + "\non_mismatch: base")


def test_a_fold_without_effect_is_told(bench):
    """Two models that scale alike have nothing to fold."""
    bench.write("A")
    bench.write("B", "qwen3")
    warnings = bench.plan(KEEPS_NORMS + "folds: [residual_scale, input_norm]").warnings
    idle = [warning for warning in warnings if "has no effect" in warning]
    assert idle == [
        "recipe.yml, line 5: folds[0]: 'residual_scale' has no effect: nothing that is merged differs in it."
    ]


def test_models_without_input_norms_have_nothing_to_fold(bench):
    """Where neither model norms what it reads there is no gain: the fold has no effect, and a warning says so."""
    for name in "AB":
        bench.write(name, "olmo2")
    warnings = bench.plan(SLERP + "folds: [input_norm]").warnings
    assert any("'input_norm' has no effect" in warning for warning in warnings)
