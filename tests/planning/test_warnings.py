"""What a person should know before the merge runs."""

from __future__ import annotations

import pytest

SLERP = "merge_method: slerp\nbase_model: A\nmodels: [{model: A}, {model: B}]\n"
HALF = SLERP + "parameters: {t: 0.5}\n"


def warn(bench, text):
    """The warnings of a plan as one text."""
    return "\n".join(bench.plan(text).warnings)


@pytest.fixture
def pair(bench):
    """Two Llamas of one shape."""
    bench.write("A")
    bench.write("B")
    return bench


def test_a_plain_merge_of_one_family_has_no_warnings(pair):
    """Nothing is said where there is nothing to say."""
    assert warn(pair, HALF) == ""


def test_layers_that_go_are_counted(pair):
    """Slices that leave layers out say how many, and how to keep them."""
    text = "merge_method: passthrough\nslices: [{sources: [{model: A, layer_range: [1, 2]}]}]"
    assert warn(pair, text) == (
        "3 of the 4 layers of A are in no slice, and the output does not have them; "
        "'unlisted_layers: base' keeps them in place."
    )
    assert "unlisted" not in warn(pair, text + "\nunlisted_layers: base")


def test_a_merge_of_nothing_is_told(pair):
    """An output that is the base tensor for tensor is worth a word; a stack of the base is not the base."""
    told = "nothing is merged: every tensor of the output is A's own."
    assert warn(pair, SLERP) == told
    assert warn(pair, SLERP + "parameters: {t: 0}\ndtype: float32") == told
    piece = "{sources: [{model: A, layer_range: [0, 4]}]}"
    assert warn(pair, f"merge_method: passthrough\nslices: [{piece}, {piece}]") == ""


def test_queries_of_a_model_that_normalizes_them_lose_their_scale(bench):
    """Qwen3's q and k in a Llama are warned of, unless they do not cross."""
    bench.write("A")
    bench.write("B", "qwen3")
    assert "B normalizes every query and key head and A does not" in warn(bench, HALF)
    assert warn(bench, SLERP + "parameters: {t: [{filter: v_proj, value: 0.5}]}") == ""


def test_a_base_that_is_not_the_architecture_crosses_too(bench):
    """What is kept from a base of another family meets the architecture's own norms all the same."""
    bench.write("A")
    bench.write("B", "qwen3")
    assert "B normalizes every query and key head and A does not" in warn(bench, SLERP + "architecture: B")


def test_queries_are_rescaled_by_a_base_that_normalizes_them(bench):
    """The other way round as well."""
    bench.write("A", "qwen3")
    bench.write("B")
    assert "A normalizes every query and key head and B does not" in warn(bench, HALF)


@pytest.mark.parametrize(
    ("ours", "theirs", "told"),
    [
        ({"rope_theta": 500000.0}, {"rope_theta": 1000000.0}, "make up for: theta 500000 in A, theta 1e+06 in B."),
        ({"rope_theta": 10000.0}, {}, None),
        ({"rope_theta": 500000.0}, {}, "make up for: theta 500000 in A, theta 10000 in B."),
        ({"rope_theta": 5e5}, {"rope_parameters": {"rope_theta": 5e5, "rope_type": "default"}}, None),
        (
            {"rope_scaling": {"rope_type": "llama3", "factor": 8.0}},
            {"rope_scaling": {"type": "llama3", "factor": 32.0}},
            "for: theta 10000, llama3 scaling by 8 in A, theta 10000, llama3 scaling by 32 in B.",
        ),
    ],
)
def test_positions_that_turn_q_and_k_otherwise_are_told(bench, ours, theirs, told):
    """Base, scaling and share of the head are compared, wherever config.json says them and with their default."""
    bench.write("A", **ours)
    bench.write("B", **theirs)
    found = warn(bench, HALF)
    assert (told in found) if told else found == ""
    assert warn(bench, SLERP + "parameters: {t: [{filter: mlp, value: 0.5}]}") == ""


def test_parameters_without_effect_are_told(pair):
    """What mergekit reads and never uses is read here too, and said to do nothing."""
    text = "merge_method: task_arithmetic\nbase_model: A\nmodels: [{model: B}]\nparameters: {weight: 0.5, density: 0.5}"
    assert warn(pair, text) == "'density' has no effect in task_arithmetic."


def test_a_weight_of_the_base_is_told_to_do_nothing(pair):
    """Task arithmetic measures from the base; a weight written there is not lost in silence."""
    text = (
        "merge_method: task_arithmetic\nbase_model: A\nmodels:\n"
        "- {model: A, parameters: {weight: 0.9}}\n- {model: B, parameters: {weight: 0.5}}\n"
    )
    assert warn(pair, text) == (
        "recipe.yml, line 4: models[0].parameters: has no effect, because the others are measured from this model."
    )


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (
            "merge_method: passthrough\nlayer_map: proportional\nslices:\n- sources: [{model: A, layer_range: [0, 4]}]",
            "recipe.yml, line 2: layer_map: 'layer_map' has no effect with 'slices'.",
        ),
        (
            HALF + "unlisted_layers: base",
            "recipe.yml, line 5: unlisted_layers: 'unlisted_layers' has no effect with 'models'.",
        ),
    ],
)
def test_keys_without_effect_are_told(pair, text, told):
    """A key that means something for the other way to describe a merge does nothing here."""
    assert told in warn(pair, text)


def test_misfits_that_were_kept_are_counted(bench):
    """What `on_mismatch: base` keeps is told by component."""
    bench.write("A")
    bench.write("B", intermediate_size=20)
    assert warn(bench, HALF + "on_mismatch: base") == (
        "asked for and kept from the base because the donor's does not fit: ffn_down (4), ffn_gate (4), ffn_up (4)."
    )


def test_an_entry_that_never_decides_is_told(pair):
    """A filter behind one that is a part of it, or behind an entry for everything, has no tensor left."""
    filters = ["filter: mlp, value: 0.1", "filter: mlp.up, value: 0.2", "value: 0.3", "filter: attn, value: 0.4"]
    text = SLERP + "parameters:\n  t:\n" + "".join(f"  - {{{each}}}\n" for each in filters)
    assert warn(pair, text).splitlines() == [
        "recipe.yml, line 7: parameters.t[1]: 'mlp' above it always matches first.",
        "recipe.yml, line 9: parameters.t[3]: the entry without a filter above it always matches first.",
    ]


def test_a_filter_that_begins_inside_a_fused_name_is_told(bench):
    """`v_proj` is a part of `qkv_proj`, and takes q and k along."""
    bench.write("A", "phi3")
    bench.write("B")
    told = warn(bench, SLERP + "parameters: {t: [{filter: v_proj, value: 0.5}]}")
    assert (
        "parameters.t[0].filter: 'v_proj' is a part of 'qkv_proj', which holds attn_q+attn_k+attn_v in one tensor."
        in told
    )
    assert "is a part of" not in warn(bench, SLERP + "parameters: {t: [{filter: qkv_proj, value: 0.5}]}")


def test_warnings_do_not_repeat_themselves(bench):
    """A fact about a model is said once, however many tensors it concerns."""
    bench.write("A")
    bench.write("B", "qwen3", rope_theta=1e6)
    warnings = bench.plan(HALF).warnings
    assert len(warnings) == len(set(warnings)) == 3


def test_a_layer_that_meets_itself_is_told(pair):
    """A model listed twice meets itself layer by layer; other layers of it, in a slice, are another thing."""
    (told,) = pair.plan(HALF.replace("{model: B}", "{model: A}")).warnings
    place = "recipe.yml, line 3: models[1]"
    assert told == f"{place}: A meets itself, layer by layer; each mention counts as a model of its own."
    sources = "[{model: A, layer_range: [0, 2]}, RANGE]"
    text = f"merge_method: slerp\nbase_model: A\nslices: [{{sources: {sources}}}]\nparameters: {{t: 0.5}}"
    for first, met in ((0, True), (1, False)):
        other = f"{{model: A, layer_range: [{first}, {first + 2}]}}"
        assert any("meets itself" in each for each in pair.plan(text.replace("RANGE", other)).warnings) == met
