"""What crosses between two models: classes, reasons, layers and bytes of every component."""

from __future__ import annotations

import itertools

import pytest

from tests.compatibility.sketches import (
    ATTENTION,
    GATED,
    class_of,
    classes,
    compare,
    reasons_of,
    sketch,
    write_shallow,
)
from tests.fake_checkpoints import write_fake, write_headers
from xmerge.compatibility import Compatibility, compare_models, describe_models_named, list_popular_models
from xmerge.errors import PlanError

CLIQUE = (
    "llama-3-8b",
    "llama-3.1-8b",
    "mistral-7b-v0.3",
    "ministral-3-8b",
    "internlm2-7b",
    "exaone-3.5-7.8b",
    "command-r7b",
)
ALL_SEVEN = [
    *itertools.combinations(CLIQUE, 2),
    ("ministral-8b-2410", "qwen3-8b"),
    ("llama-3.2-3b", "phi-4-mini"),
    ("llama-3.2-1b", "granite-3.1-2b"),
    ("llama-2-7b", "olmo-2-7b"),
]
WIDE = ("qwen3-8b", "granite-3.1-8b", "salamandra-7b")
ATTENTION_ONLY = [
    pair
    for pair in (*itertools.product((*CLIQUE, "ministral-8b-2410"), WIDE), *itertools.combinations(WIDE, 2))
    if pair != ("ministral-8b-2410", "qwen3-8b")
] + [("qwen2.5-14b", "qwen3-14b"), ("qwen2.5-32b", "qwen3-14b")]
NO_KEYS_AND_VALUES = [
    *itertools.product(("llama-2-7b", "olmo-2-7b"), ("yi-6b", "yi-1.5-9b", "salamandra-7b")),
    ("qwen2.5-14b", "olmo-2-13b"),
    ("qwen2.5-3b", "smollm3-3b"),
    ("smollm2-1.7b", "granite-3.1-2b"),
    ("smollm2-1.7b", "llama-3.2-1b"),
]

# Equal shapes, other heads: (base, donor, the roles that would be taken for each other).
TRAPS = [
    ("llama-3.2-1b", "qwen2.5-3b", "attn_q attn_output"),
    ("llama-3.2-1b", "qwen3-1.7b", "attn_q attn_output"),
    ("llama-3.2-1b", "smollm3-3b", "attn_q attn_k attn_v attn_output"),
    ("llama-3.2-1b", "falcon3-1b", "attn_q attn_output"),
    ("llama-3.2-1b", "gemma-2b", "attn_q attn_output"),
    ("smollm2-1.7b", "qwen2.5-3b", "attn_q attn_output"),
    ("smollm2-1.7b", "falcon3-1b", "attn_q attn_output"),
    ("granite-3.1-2b", "qwen2.5-3b", "attn_q attn_output"),
    ("granite-3.1-2b", "falcon3-1b", "attn_q attn_output"),
    ("llama-3.2-3b", "falcon3-7b", "attn_q attn_k attn_v attn_output"),
    ("phi-4-mini", "falcon3-7b", "attn_q attn_k attn_v attn_output"),
    ("llama-3.2-3b", "phi-3-mini", "attn_q attn_output"),
    ("qwen3-1.7b", "falcon3-1b", "attn_q attn_k attn_v attn_output"),
    ("qwen3-4b", "gemma-3-4b", "attn_k attn_v"),
]


# --- the classes


@pytest.mark.parametrize(
    ("base", "donor", "role", "expected"),
    [
        ("llama-3-8b", "mistral-7b-v0.3", "attn_v", "A"),
        ("llama-3-8b", "qwen3-8b", "attn_v", "A"),
        ("llama-3-8b", "llama-3.1-8b", "attn_q", "C"),
        ("llama-3-8b", "internlm2-7b", "attn_v", "B"),
        ("phi-4-mini", "llama-3.2-3b", "ffn_gate", "B"),
        ("llama-3.2-3b", "phi-4-mini", "ffn_up", "B"),
        ("llama-3-8b", "qwen3-8b", "attn_q", "C"),
        ("llama-3-8b", "qwen3-8b", "attn_k", "C"),
        ("phi-4-mini", "llama-3.2-3b", "attn_q", "C"),
        ("llama-3-8b", "command-r7b", "attn_q", "C"),
        ("llama-3-8b", "gemma-2-9b", "attn_q", "D"),
        ("llama-3-8b", "gemma-3-12b", "ffn_down", "D"),
        ("llama-3-8b", "qwen2.5-7b", "ffn_gate", "D"),
        ("llama-3.2-1b", "deepseek-v2-lite", "attn_v", "E"),
        ("llama-3-8b", "pythia-6.9b", "ffn_gate", "E"),
        ("llama-3-8b", "mixtral-8x7b", "ffn_down", "E"),
    ],
)
def test_each_class_has_its_example(base, donor, role, expected):
    """A exact, B convertible, C approximate, D of another shape, E without a counterpart."""
    assert class_of(compare(base, donor), role) == expected


@pytest.mark.parametrize(
    ("base", "donor", "role", "told"),
    [
        ("llama-3-8b", "qwen3-8b", "attn_k", "qwen3-8b normalizes every query and key head and llama-3-8b does not"),
        ("llama-3-8b", "qwen3-8b", "attn_k", "filtering to 'self_attn.v_proj' and 'self_attn.o_proj' avoids it"),
        ("llama-3-8b", "qwen3-8b", "attn_q", "theta 500000 in llama-3-8b, theta 1e+06 in qwen3-8b"),
        ("llama-3-8b", "internlm2-7b", "attn_v", "attn_v taken out of model.layers.{layer}.attention.wqkv.weight"),
        ("phi-4-mini", "llama-3.2-3b", "ffn_gate", "joined with model.layers.{layer}.mlp.gate_proj.weight"),
        ("phi-4-mini", "llama-3.2-3b", "attn_q", "turn of each head 96 of 128 numbers in phi-4-mini, 128 of 128"),
        ("llama-3-8b", "command-r7b", "attn_q", "rotated rows interleaved -> half"),
        ("llama-3-8b", "command-r7b", "ffn_up", "sequential in llama-3-8b, parallel in command-r7b"),
        ("llama-3-8b", "granite-3.1-8b", "attn_output", "multiplied by 1 in llama-3-8b, 0.22 in granite-3.1-8b"),
        ("llama-3-8b", "mistral-7b-v0.1", "attn_q", "the layer sees everything in llama-3-8b, 4096 tokens in mistral"),
        (
            "qwen3-14b",
            "qwen2.5-14b",
            "attn_v",
            "qwen2.5-14b adds a bias and qwen3-14b does not; qwen2.5-14b's is dropped",
        ),
        ("llama-3-8b", "olmo-2-7b", "attn_q", "normalizes queries and keys over all heads and llama-3-8b does not"),
        ("llama-2-7b", "olmo-2-7b", "ffn_gate", "what it reads is an RMS norm in llama-2-7b, not normed in olmo-2-7b"),
        ("llama-2-7b", "olmo-2-7b", "ffn_down", "what it gives is added as it is in llama-2-7b, normed in olmo-2-7b"),
        ("llama-3-8b", "qwen2.5-7b", "ffn_up", "llama-3-8b has [14336, 4096] (ffn 14336, hidden 4096), qwen2.5-7b has"),
        ("llama-3.2-1b", "deepseek-v2-lite", "attn_q", "has none; it works with attn_kv_a, attn_kv_b"),
        ("llama-3-8b", "pythia-6.9b", "ffn_gate", "pythia-6.9b (gpt_neox) has none; it works with ffn_in, ffn_out"),
        ("llama-3-8b", "mixtral-8x7b", "ffn_gate", "has none; it works with ffn_down_exps, ffn_gate_exps"),
    ],
)
def test_each_reason_is_told_in_words(base, donor, role, told):
    """What makes a component less than exact, and what is done to it, stands beside it."""
    assert told in reasons_of(compare(base, donor), role)


def test_what_is_the_same_needs_no_words():
    """Mistral's attention sees all that came before, as Llama's does, and its v is Llama's to the last trait."""
    found = compare("llama-3-8b", "mistral-7b-v0.3")
    assert "the layer sees" not in reasons_of(found, "attn_q")
    assert reasons_of(found, "attn_v") == ""


@pytest.mark.parametrize(("base", "donor"), [*ALL_SEVEN, *(pair[::-1] for pair in ALL_SEVEN)])
def test_seven_matrices_match_in_pairs_of_equal_shape(base, donor):
    """Attention and feed-forward of these models fit into each other, both ways, whatever they mean there."""
    assert set(classes(base, donor, (*ATTENTION, *GATED))) <= set("ABC")


@pytest.mark.parametrize(("base", "donor"), [*ATTENTION_ONLY, *(pair[::-1] for pair in ATTENTION_ONLY)])
def test_attention_alone_matches_where_only_the_feed_forward_is_of_another_width(base, donor):
    """Their heads are alike and their feed-forwards are not."""
    assert set(classes(base, donor, ATTENTION)) <= set("ABC")
    assert set(classes(base, donor, GATED)) == {"D"}


@pytest.mark.parametrize(("base", "donor"), NO_KEYS_AND_VALUES)
def test_all_but_keys_and_values_matches_where_only_the_key_heads_differ(base, donor):
    """Queries, outputs and feed-forward fit; keys and values are of another number of heads."""
    assert set(classes(base, donor, ("attn_q", "attn_output", *GATED))) <= set("ABC")
    assert set(classes(base, donor, ("attn_k", "attn_v"))) == {"D"}


@pytest.mark.parametrize("turned", [False, True], ids=["as written", "turned round"])
@pytest.mark.parametrize(("base", "donor", "roles"), TRAPS)
def test_equal_shapes_with_other_heads_are_refused(base, donor, roles, turned):
    """Rows of one head would meet rows of another: class E, whichever is the base, for exactly these roles."""
    found = compare(donor, base) if turned else compare(base, donor)
    trapped = [role for role in ATTENTION if "equal shapes and heads of other sizes" in reasons_of(found, role)]
    if any(len(set(each.roles) & set(ATTENTION)) > 1 for each in found.components):
        # One tensor holds q, k and v, and is refused for the first of them.
        assert set(roles.split()) <= {role for role in ATTENTION if class_of(found, role) == "E"}
    else:
        assert trapped == roles.split()
        assert all(class_of(found, role) == "E" for role in trapped)


@pytest.mark.slow
@pytest.mark.parametrize("name", list_popular_models())
def test_a_model_fits_into_itself(name):
    """Every component is exact, nothing is dropped, and as much is read as is there."""
    found = compare_models(sketch(name), sketch(name))
    assert {each.grade for each in found.components} == {"A"}
    assert {each.reasons for each in found.components} == {()}
    assert found.dropped == ()
    assert all(each.nbytes == each.donor_bytes for each in found.components)


# --- layers


def test_layers_without_rotation_are_told_apart():
    """Every fourth layer of Command-R7B turns nothing and sees everything: its q and k differ there in other ways."""
    found = compare("llama-3-8b", "command-r7b")
    rows = {each.layers: "; ".join(each.reasons) for each in found.components if each.component == "attn_q"}
    global_layers = tuple(range(3, 32, 4))
    assert set(rows) == {global_layers, tuple(layer for layer in range(32) if layer % 4 != 3)}
    for layers, told in rows.items():
        assert ("not at all in command-r7b" in told) == (layers == global_layers)
        assert ("4096 tokens in command-r7b" in told) == (layers != global_layers)


def test_layers_meet_at_the_same_share_of_the_depth(tmp_path):
    """Six layers meet layers 0, 1, 3, 4, 6 and 7 of eight, of which 3 and 7 are without rotation."""
    folders = [write_shallow(tmp_path / "a", "llama-3-8b", 6), write_shallow(tmp_path / "b", "command-r7b", 8)]
    found = compare_models(*describe_models_named([str(folder) for folder in folders]))
    rows = {each.layers: "; ".join(each.reasons) for each in found.components if each.component == "attn_q"}
    assert {layers: "not at all in b" in told for layers, told in rows.items()} == {(0, 1, 3, 4): False, (2, 5): True}
    assert (found.base.layers, found.donor.layers) == (6, 8)


def test_every_tensor_of_the_base_is_in_one_row():
    """The rows of a comparison have all bytes of the base, each once, however they are divided."""
    for base, donor in itertools.permutations(("llama-3-8b", "command-r7b", "deepseek-v2-lite", "gpt2"), 2):
        found = compare(base, donor)
        own = sum(spec.stored.nbytes for spec in sketch(base).tensors)
        assert sum(each.nbytes for each in found.components) == own


def test_a_mixture_s_dense_layers_are_one_row(tmp_path):
    """Where some layers of a donor are dense, a base's layers fall in two groups, not in one for each layer."""

    def dense(role: str, layer: int | None) -> bool:
        return ("_exps" in role or role == "ffn_gate_inp") == (layer in (1, 2, 3))

    write_fake(tmp_path / "llama", num_hidden_layers=4)
    write_fake(tmp_path / "moe", "qwen3_moe", num_hidden_layers=4, maybe=dense)
    found = compare_models(*describe_models_named([str(tmp_path / "llama"), str(tmp_path / "moe")]))
    rows = {each.layers: each for each in found.components if each.component == "ffn_up"}
    assert {layers: each.grade for layers, each in rows.items()} == {(0,): "A", (1, 2, 3): "E"}
    assert found.class_of("ffn_up") == "E"
    (reason,) = rows[1, 2, 3].reasons
    assert reason == (
        "moe (qwen3_moe) has none there; it works with ffn_down_exps, ffn_gate_exps, ffn_gate_inp, ffn_up_exps"
    )


def test_experts_beyond_the_donor_s_are_told_by_their_number(tmp_path):
    """The base's first experts meet the donor's; for the others it says how many each of the two has."""
    for name, experts in (("six", 6), ("four", 4)):
        write_fake(tmp_path / name, "mixtral", num_local_experts=experts, num_hidden_layers=1)
    found = compare_models(*describe_models_named([str(tmp_path / "six"), str(tmp_path / "four")]))
    rows = {each.grade: each for each in found.components if each.component == "ffn_up_exps"}
    assert rows["D"].reasons == ("six has 6 experts, four has 4",)
    assert rows["D"].nbytes * 2 == rows["A"].nbytes


# --- by role, not by name


def test_norms_are_compared_by_what_they_do():
    """Llama's `post_attention_layernorm` is before the feed-forward, OLMo 2's behind attention: they never meet."""
    found = compare("olmo-2-7b", "llama-2-7b")
    norms = {each.component: (each.grade, each.reasons) for each in found.components if each.component.endswith("norm")}
    assert norms["post_attention_norm"] == (None, ("llama-2-7b (llama) has none",))
    assert norms["post_ffw_norm"][0] is None
    assert [told.partition(" ")[0] for told in found.dropped] == ["attn_norm", "ffn_norm"]
    assert [told.partition(" ")[0] for told in compare("llama-2-7b", "olmo-2-7b").dropped] == [
        "attn_k_norm",
        "attn_q_norm",
        "post_attention_norm",
        "post_ffw_norm",
    ]


def test_a_norm_crosses_from_where_it_acts(tmp_path):
    """Llama's post_attention_layernorm takes Gemma 2's pre_feedforward_layernorm, whose gain is another convention."""
    write_fake(tmp_path / "llama")
    write_fake(tmp_path / "gemma", "gemma2")
    found = compare_models(*describe_models_named([str(tmp_path / "llama"), str(tmp_path / "gemma")]))
    steps = {each.component: each.steps for each in found.components}
    assert steps["ffn_norm"] == (
        "named model.layers.{layer}.pre_feedforward_layernorm.weight",
        "norm gain 1+w -> w",
    )
    assert found.dropped == ("post_attention_norm (4 tensors)", "post_ffw_norm (4 tensors)")


# --- models that nobody knows


def test_models_of_one_unknown_type_are_compared_by_name(tmp_path):
    """Equal names and shapes match, other shapes do not, and what one of the two lacks stays or is dropped."""
    config = {"model_type": "unheard-of", "num_hidden_layers": 2}
    shared = {"h.0.w": ("F32", [2, 2]), "h.1.w": ("F32", [2, 2]), "embed": ("F32", [4, 2])}
    write_headers(tmp_path / "a", config, {**shared, "h.0.only": ("F32", [3])})
    write_headers(tmp_path / "b", config, {**shared, "embed": ("F32", [5, 2]), "h.1.more": ("F32", [3])})
    found = compare_models(*describe_models_named([str(tmp_path / "a"), str(tmp_path / "b")]))
    assert {each.component: (each.grade, each.layers) for each in found.components} == {
        "embed": ("D", ()),
        "h.{layer}.only": (None, (0,)),
        "h.{layer}.w": ("A", (0, 1)),
    }
    assert found.dropped == ("h.{layer}.more (1 tensor)",)
    assert not found.base.known


def test_strangers_are_refused_as_in_a_plan(tmp_path):
    """Two types of which one is unknown: refused with both kinds and the way to add a family."""
    write_fake(tmp_path / "a")
    write_headers(tmp_path / "b", {"model_type": "unheard-of"}, {"h.0.w": ("F32", [2, 2])})
    models = describe_models_named([str(tmp_path / "a"), str(tmp_path / "b")])
    for base, donor in (models, models[::-1]):
        with pytest.raises(PlanError) as caught:
            compare_models(base, donor)
        assert "there is no family file for unheard-of" in caught.value.what
        assert caught.value.remedy is not None and "add a file to xmerge/families" in caught.value.remedy


def test_packed_weights_do_not_cross(tmp_path):
    """What a donor holds packed is refused in its own row, and the rest is compared."""
    packed = {f"model.layers.{layer}.mlp.up_proj.weight": ("F8_E4M3", [12, 8]) for layer in range(4)}
    write_fake(tmp_path / "a")
    write_fake(tmp_path / "b", extra=packed)
    found = compare_models(*describe_models_named([str(tmp_path / "a"), str(tmp_path / "b")]))
    assert (class_of(found, "ffn_up"), class_of(found, "ffn_gate")) == ("E", "A")
    assert "packed" in reasons_of(found, "ffn_up")


# --- data


def test_a_comparison_is_data_and_comes_back(tmp_path):
    """JSON holds all of it: reading it gives an equal value."""
    found = compare("phi-4-mini", "llama-3.2-3b")
    assert Compatibility.model_validate_json(found.model_dump_json()) == found


def test_filters_choose_what_they_stand_beside(tmp_path):
    """The filter of a component is a part of the names of its tensors in the layers, biases and experts included."""
    for name in ("qwen2.5-0.5b", "mixtral-8x7b", "deepseek-v2-lite", "phi-4-mini", "gpt2", "internlm2-7b"):
        folder = write_shallow(tmp_path / name, name, 2)
        (model,) = describe_models_named([str(folder)])
        for each in compare_models(model, model).components:
            held = [spec.name for spec in model.tensors if (spec.role or spec.line) == each.component]
            if each.layers:
                assert each.filter and all(each.filter in tensor for tensor in held)
            else:
                assert each.filter is None
