"""In what two models differ where no shape shows it, and what that makes of each of their tensors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.fake_checkpoints import write_fake
from xmerge.architecture import ResolvedModel, describe_model, find_differences, worst_class
from xmerge.sources import Location

Model = tuple[str, dict[str, Any]]
LLAMA: Model = ("llama", {})
ATTENTION = ("attn_q", "attn_k", "attn_v", "attn_output")
FEED_FORWARD = ("ffn_gate", "ffn_up", "ffn_down")
LAYER = (*ATTENTION, *FEED_FORWARD, "attn_norm", "ffn_norm")
WINDOW = "sliding_attention"
KNOWN = "default, dynamic, linear, llama3, longrope, mrope, proportional, su, yarn"
LOSES = (
    "and A does not: its q and k lose their scale. Measured, no formula makes up for that; filtering to "
    "'self_attn.v_proj' and 'self_attn.o_proj' avoids it"
)


@pytest.fixture
def compare(tmp_path: Path):
    """(class, reasons) of a role of B's in the place of A's; the models are (family, what config.json says)."""

    def describe(name: str, model: Model) -> ResolvedModel:
        family, config = model
        folder = write_fake(tmp_path / name, family, **config)
        return describe_model(Location(reference=name, label=name, folder=folder))

    def call(role: str, ours: Model, theirs: Model, layers: tuple[int, int] = (0, 0), folds: tuple[str, ...] = ()):
        meeting = None if role in ("token_embd", "output", "output_norm") else layers
        found = find_differences(describe("A", ours), describe("B", theirs), role, meeting, folds)
        return worst_class(each.grade for each in found), [each.reason for each in found]

    return call


def test_models_that_say_the_same_do_not_differ(compare):
    """Two models of one family and one config.json differ in nothing, whatever a tensor does."""
    for role in (*LAYER, "token_embd", "output", "output_norm"):
        assert compare(role, LLAMA, LLAMA) == ("A", [])


def llama(**config: Any) -> Model:
    """A Llama that says this."""
    return "llama", config


@pytest.mark.parametrize(
    ("roles", "ours", "theirs", "grade", "reason"),
    [
        pytest.param(
            ("attn_q", "attn_k"), LLAMA, ("qwen3", {}), "C", f"B normalizes every query and key head {LOSES}",
            id="a norm on every head that the base lacks",
        ),
        pytest.param(
            ("attn_q", "attn_k"), ("qwen3", {}), LLAMA, "C",
            "A normalizes every query and key head and B does not: its q and k are rescaled",
            id="a norm on every head that the donor lacks",
        ),
        pytest.param(
            ("attn_q", "attn_k"), LLAMA, ("olmo2", {}), "C", f"B normalizes queries and keys over all heads {LOSES}",
            id="a norm on all heads together",
        ),
        pytest.param(
            ("attn_q", "attn_k"), ("olmo2", {}), ("qwen3", {}), "C",
            "what is normalized of q and k is queries and keys over all heads in A, every query and key head in B",
            id="norms on other numbers",
        ),
        pytest.param(
            ("attn_q", "attn_k"), llama(rope_theta=500000), llama(rope_theta=1e6), "C",
            "positions turn q and k at other speeds, which no weights make up for: theta 500000 in A, theta 1e+06 in B",
            id="theta",
        ),
        pytest.param(
            ("attn_q", "attn_k"), LLAMA, llama(rope_scaling={"type": "linear", "factor": 8}), "C",
            "positions turn q and k at other speeds, which no weights make up for: theta 10000 in A, "
            "theta 10000, linear scaling by 8 in B",
            id="scaling",
        ),
        pytest.param(
            ("attn_q", "attn_k"),
            llama(rope_scaling={"rope_type": "linear", "factor": 8, "a": 1}),
            llama(rope_scaling={"rope_type": "linear", "factor": 8, "b": 2}), "C",
            "positions turn q and k at other speeds, which no weights make up for: a 1 in A, b 2 in B",
            id="scaling that reads alike in short",
        ),
        pytest.param(
            ("attn_q", "attn_k"),
            llama(rope_scaling={"type": "dynamic", "factor": 2}, max_position_embeddings=4096),
            llama(rope_scaling={"type": "dynamic", "factor": 2}, max_position_embeddings=8192), "C",
            "positions turn q and k at other speeds, which no weights make up for: max_position_embeddings 4096 in A, "
            "max_position_embeddings 8192 in B",
            id="the length behind which the rotation slows down",
        ),
        pytest.param(
            ("attn_q", "attn_k"), *(
                ("phi3", {"max_position_embeddings": length, "original_max_position_embeddings": 16,
                          "rope_scaling": {"type": "longrope", "short_factor": [1, 1], "long_factor": [2, 2]}})
                for length in (64, 128)
            ), "C",
            "positions turn q and k at other speeds, which no weights make up for: theta 10000, longrope scaling by 4 "
            "in A, theta 10000, longrope scaling by 8 in B",
            id="a factor that two lengths give",
        ),
        pytest.param(
            ("attn_q_norm", "attn_k_norm"), ("qwen3", {"rope_theta": 10000}), ("qwen3", {"rope_theta": 500}), "C",
            "positions turn q and k at other speeds, which no weights make up for: theta 10000 in A, theta 500 in B",
            id="the rotation behind a norm of heads",
        ),
        pytest.param(
            ("attn_q_norm",), ("gemma3", {"query_pre_attn_scalar": 4}), ("gemma3", {"query_pre_attn_scalar": 16}), "C",
            "attention scores are multiplied by 0.5 in A, 0.25 in B",
            id="the scale behind a norm of heads",
        ),
        pytest.param(
            ("attn_q", "attn_k"), LLAMA, ("phi3", {"partial_rotary_factor": 0.5}), "C",
            "positions turn of each head 4 of 4 numbers in A, 2 of 4 numbers in B",
            id="partial rotation",
        ),
        pytest.param(
            ("attn_q", "attn_k"), LLAMA, ("smollm3", {"no_rope_layers": [0, 1, 1, 1], "rope_theta": 10000}), "C",
            "positions turn q and k by theta 10000 in A, not at all in B",
            id="no rotation",
        ),
        pytest.param(
            ("attn_q", "attn_k"), LLAMA, llama(rope_scaling={"rope_type": "mystery"}), "E",
            f"B/config.json has the rope type 'mystery', and what it does to q and k is unknown; known are {KNOWN}",
            id="an unknown rotation",
        ),
        pytest.param(
            ("attn_q", "attn_k"), llama(rope_scaling={"rope_type": "mystery"}),
            llama(rope_scaling={"rope_type": "mystery", "factor": 2}), "E",
            f"A/config.json has the rope type 'mystery', and what it does to q and k is unknown; known are {KNOWN}",
            id="an unknown rotation by other numbers",
        ),
        pytest.param(
            ("attn_q", "attn_k"), ("mistral", {"sliding_window": 7}), LLAMA, "C",
            "the layer sees 7 tokens in A, everything in B",
            id="window",
        ),
        pytest.param(
            ("attn_q", "attn_k"), ("llama4", {"attention_chunk_size": 16}), ("llama4", {"layer_types": [WINDOW] * 4}),
            "C", "the layer sees a chunk of 16 tokens in A, 8192 tokens in B",
            id="chunks",
        ),
        pytest.param(
            ("attn_q", "attn_k"), ("gemma3", {}), ("gemma3", {"use_bidirectional_attention": True}), "C",
            "a token looks backwards in A, both ways in B",
            id="direction",
        ),
        pytest.param(
            ("attn_q", "attn_k"), ("llama4", {"no_rope_layers": [0] * 4}),
            ("llama4", {"no_rope_layers": [0] * 4, "attn_scale": 0.5, "floor_scale": 64}), "C",
            "attention scores grow with the position by 1 + 0.1 log(1 + position / 8192) in A, by 1 + 0.5 log(1 + "
            "position / 64) in B",
            id="temperature",
        ),
        pytest.param(
            ("attn_q", "attn_k"), ("llama4", {"no_rope_layers": [0] * 4}),
            ("llama4", {"no_rope_layers": [0] * 4, "attn_temperature_tuning": False}), "C",
            "attention scores grow with the position by 1 + 0.1 log(1 + position / 8192) in A, not at all in B",
            id="temperature switched off",
        ),
        pytest.param(
            ("attn_q", "attn_k"), ("gemma2", {}), ("gemma", {}), "C",
            "attention scores are capped at 50 in A, not in B",
            id="cap of attention",
        ),
        pytest.param(
            ("output",), ("gemma2", {}), ("gemma2", {"final_logit_softcapping": 20}), "C",
            "logits are capped at 30 in A, 20 in B",
            id="cap of logits",
        ),
        pytest.param(
            ("attn_q",), ("granite", {}), ("granite", {"attention_multiplier": 0.25}), "C",
            "attention scores are multiplied by 1 in A, 0.25 in B ('folds: [softmax_scale]' makes up for it)",
            id="softmax scale",
        ),
        pytest.param(
            ("attn_output", "ffn_down"), ("granite", {}), ("granite", {"residual_multiplier": 0.22}), "C",
            "what it gives is multiplied by 1 in A, 0.22 in B ('folds: [residual_scale]' makes up for it)",
            id="residual scale",
        ),
        pytest.param(
            ("token_embd",), ("granite", {}), ("granite", {"embedding_multiplier": 12}), "C",
            "embeddings are multiplied by 1 in A, 12 in B",
            id="embedding scale",
        ),
        pytest.param(
            ("output",), ("granite", {}), ("granite", {"logits_scaling": 8}), "C",
            "logits are multiplied by 1 in A, 0.125 in B",
            id="logit scale",
        ),
        pytest.param(
            ("token_embd",), ("cohere", {"logit_scale": 0.25}), ("cohere", {"logit_scale": 0.0625}), "C",
            "logits are multiplied by 0.25 in A, 0.0625 in B",
            id="logit scale of an embedding that is the output too",
        ),
        pytest.param(
            ("token_embd",), ("gemma2", {}), ("gemma2", {"final_logit_softcapping": 20}), "C",
            "logits are capped at 30 in A, 20 in B",
            id="cap of logits of an embedding that is the output too",
        ),
        pytest.param(
            ("attn_norm", "ffn_norm", "output_norm"), LLAMA, ("stablelm", {"layer_norm_eps": 1e-6}), "C",
            "a norm is an RMS norm in A, a LayerNorm (which also takes away the mean) in B",
            id="kind of norm",
        ),
        pytest.param(
            ("attn_q", "attn_k", "attn_v"), LLAMA, ("olmo2", {}), "C",
            "what it reads is an RMS norm in A, not normed in B",
            id="no norm before attention",
        ),
        pytest.param(
            ("attn_output",), LLAMA, ("olmo2", {}), "C", "what it gives is added as it is in A, normed in B",
            id="a norm behind attention",
        ),
        pytest.param(
            ("ffn_down",), ("gemma2", {}), ("gemma", {}), "C", "what it gives is normed in A, added as it is in B",
            id="a norm behind feed-forward",
        ),
        pytest.param(
            ("attn_q", "attn_k", "attn_v"), LLAMA, llama(attention_bias=True), "C",
            "B adds a bias and A does not; B's is dropped",
            id="a bias that the base lacks",
        ),
        pytest.param(
            ("attn_norm", "output_norm"), ("cohere", {}), ("stablelm", {"use_parallel_residual": True}), "C",
            "B adds a bias and A does not; B's is dropped",
            id="a norm's bias that the base lacks",
        ),
        pytest.param(
            ("output",), ("stablelm", {}), ("phi", {}), "C", "B adds a bias and A does not; B's is dropped",
            id="an output's bias that the base lacks",
        ),
        pytest.param(
            ("ffn_up", "ffn_down"), llama(mlp_bias=True), LLAMA, "C", "A adds a bias and B does not",
            id="a bias that the donor lacks",
        ),
        pytest.param(
            FEED_FORWARD, LLAMA, llama(hidden_act="gelu"), "C", "the activation is silu in A, gelu in B",
            id="activation",
        ),
        pytest.param(
            (*ATTENTION, *FEED_FORWARD, "attn_norm"), LLAMA, ("cohere", {"use_qk_norm": False}), "C",
            "attention and feed-forward of a layer are sequential in A, parallel in B",
            id="parallel block",
        ),
        pytest.param(
            ("attn_q", "attn_output"), LLAMA, llama(num_key_value_heads=4), "C",
            "query heads share key and value heads: 2 of them in A, 4 of them in B",
            id="groups",
        ),
        pytest.param(
            ("ffn_gate_inp", "ffn_up_exps"), ("deepseek_v3", {}), ("deepseek_v3", {"norm_topk_prob": False}), "C",
            "experts are weighed by sigmoids over those of the chosen in A, sigmoids as they are in B",
            id="weights of experts",
        ),
        pytest.param(
            ("ffn_gate_inp", "ffn_up_exps"), ("qwen3_moe", {"norm_topk_prob": True}), ("qwen3_moe", {}), "C",
            "experts are weighed by a softmax over the chosen in A, a softmax over all in B",
            id="what a softmax over experts is over",
        ),
        pytest.param(
            ("token_embd", "output"), LLAMA, ("mistral", {}), "C",
            "its rows are tokens, which A and B may number differently",
            id="vocabulary",
        ),
        pytest.param(
            ("output",), LLAMA, llama(tie_word_embeddings=True), "A",
            "B has no output matrix of its own; its embedding is taken",
            id="a tied donor",
        ),
        pytest.param(
            ("token_embd",), llama(tie_word_embeddings=True), LLAMA, "C",
            "A also computes its logits with it, B with a matrix of its own, which is dropped: merging it changes both "
            "ends of the model",
            id="a tied base",
        ),
        pytest.param(
            ("attn_norm", "ffn_norm", "output_norm"), llama(rms_norm_eps=1e-5), llama(rms_norm_eps=1e-6), "A",
            "the epsilon of norms is 1e-05 in A, 1e-06 in B",
            id="eps",
        ),
    ],
)  # fmt: skip
def test_a_difference_that_no_shape_shows_is_told(compare, roles, ours, theirs, grade, reason):
    """Each difference has its class and its words, for the roles whose meaning it changes."""
    for role in roles:
        found, reasons = compare(role, ours, theirs)
        assert reason in reasons
        assert found == grade


@pytest.mark.parametrize(
    ("roles", "theirs"),
    [
        (("attn_v", "attn_output", *FEED_FORWARD), llama(rope_theta=5e5)),
        (("attn_v", "attn_output", *FEED_FORWARD), llama(rope_scaling={"rope_type": "mystery"})),
        (ATTENTION, llama(hidden_act="gelu", mlp_bias=True)),
        (FEED_FORWARD, llama(attention_bias=True, num_key_value_heads=4)),
        (("attn_k", "attn_v"), llama(num_key_value_heads=4)),
        (LAYER, llama(tie_word_embeddings=True, vocab_size=64)),
        ((*ATTENTION, *FEED_FORWARD), llama(rms_norm_eps=1e-3)),
        (FEED_FORWARD, llama(hidden_act="swish")),
        (("attn_q", "attn_k"), llama(rope_scaling={"type": "default"})),
    ],
    ids=str,
)
def test_a_difference_elsewhere_changes_nothing(compare, roles, theirs):
    """A tensor is judged by what changes its own meaning, and by the same thing under another name."""
    for role in roles:
        assert compare(role, LLAMA, theirs) == ("A", [])


def test_equal_rotations_of_an_unknown_kind_do_not_differ(compare):
    """Two models that turn q and k alike may be merged, whatever it is that they do."""
    mystery = llama(rope_scaling={"rope_type": "mystery", "factor": 2})
    assert compare("attn_q", mystery, mystery) == ("A", [])


@pytest.mark.parametrize(
    ("role", "fold", "key", "what"),
    [
        ("attn_q", "softmax_scale", "attention_multiplier", "attention scores are multiplied by"),
        ("attn_output", "residual_scale", "residual_multiplier", "what it gives is multiplied by"),
        ("ffn_down", "residual_scale", "residual_multiplier", "what it gives is multiplied by"),
    ],
)
def test_a_scale_that_is_folded_is_exact(compare, role, fold, key, what):
    """A fold that the configuration names makes up for its scale, and for no other."""
    theirs = ("granite", {key: 0.22})
    told = [f"{what} 0.22 in B: folded into the weights"]
    assert compare(role, ("granite", {}), theirs, folds=(fold,)) == ("B", told)
    assert compare(role, ("granite", {}), theirs, folds=("input_norm",))[0] == "C"


@pytest.mark.parametrize(
    ("family", "config", "layers", "grade"),
    [
        ("gemma2", {}, (0, 2), "A"),
        ("gemma2", {}, (0, 1), "C"),
        ("smollm3", {"no_rope_layers": [1, 0, 1, 0]}, (1, 3), "A"),
        ("smollm3", {"no_rope_layers": [1, 0, 1, 0]}, (0, 3), "C"),
        ("llama4", {"no_rope_layers": [1, 0, 0, 1]}, (1, 2), "A"),
        ("llama4", {"no_rope_layers": [1, 0, 0, 1]}, (0, 3), "A"),
        ("llama4", {"no_rope_layers": [1, 0, 0, 1]}, (0, 1), "C"),
    ],
)
def test_layers_are_compared_with_those_that_they_meet(compare, family, config, layers, grade):
    """Windows and rotation are those of the two layers that meet."""
    ours, theirs = (family, config), (family, {**config, "rms_norm_eps": 0.1})
    assert compare("attn_q", ours, theirs, layers)[0] == grade


def test_layers_without_rotation_have_no_norm_of_heads_to_differ_in(compare):
    """Llama 4 normalizes q and k only where it rotates them; elsewhere switching the norm off changes nothing."""
    theirs = ("llama4", {"use_qk_norm": False})
    told = "before they meet, q and k also go through an RMS norm without a weight in A, not in B"
    assert compare("attn_q", ("llama4", {}), theirs, (0, 0)) == ("C", [told])
    assert compare("attn_q", ("llama4", {}), theirs, (3, 3)) == ("A", [])


def test_one_norm_of_a_parallel_block_serves_both(compare):
    """In a parallel block feed-forward reads the norm before attention, and is normed as in any other."""
    reasons = compare("ffn_up", ("cohere", {"use_qk_norm": False}), ("phi3", {}))[1]
    assert "what it reads is a LayerNorm (which also takes away the mean) in A, an RMS norm in B" in reasons


def test_models_that_no_file_describes_are_not_judged(tmp_path, compare):
    """Where nothing says how to read a config.json, nothing is said of it."""
    known = describe_model(Location(reference="A", label="A", folder=write_fake(tmp_path / "A")))
    folder = write_fake(tmp_path / "B", model_type="odd", architectures=["Odd"])
    strange = describe_model(Location(reference="B", label="B", folder=folder))
    assert find_differences(known, strange, "attn_q", (0, 0)) == ()
    assert find_differences(known, known, "attn_q", (0, 3)) == ()
