"""The sentences above the table."""

from __future__ import annotations

import pytest

from tests.compatibility.sketches import compare
from tests.fake_checkpoints import write_fake, write_headers
from xmerge.compatibility import compare_models, describe_models_named, summarize

GEMMAS = ("gemma-2b", "gemma-2-2b", "gemma-2-9b", "gemma-3-1b", "gemma-3-4b", "gemma-3-12b")


def test_the_summary_says_what_crosses_what_fits_and_what_does_not():
    """Each matrix of attention and feed-forward is in one sentence, with the sizes where shapes differ."""
    assert summarize(compare("llama-3-8b", "qwen3-8b")) == (
        "attn_v, attn_output of qwen3-8b cross exactly or by conversion.",
        "attn_q, attn_k of qwen3-8b fit, but mean something else in llama-3-8b; the notes say what.",
        "ffn_gate, ffn_up, ffn_down do not fit: feed-forward width 14336 in llama-3-8b, 12288 in qwen3-8b.",
    )


@pytest.mark.parametrize("donor", GEMMAS)
def test_it_says_why_no_gemma_crosses_into_a_llama(donor):
    """No Gemma is as wide as Llama-3-8B, and the summary says what that means for every matrix."""
    told = summarize(compare("llama-3-8b", donor))
    assert told[0] == f"Nothing of {donor}'s attention and feed-forward fits into llama-3-8b."
    widths = {"gemma-2b": 2048, "gemma-2-2b": 2304, "gemma-2-9b": 3584, "gemma-3-1b": 1152, "gemma-3-4b": 2560}
    for sentence in told[1:-1]:
        assert f"hidden width 4096 in llama-3-8b, {widths.get(donor, 3840)} in {donor}" in sentence
    assert told[-1] == (
        "Every matrix of a layer reads or writes the hidden width, so models of different widths share none; only a "
        "bridge from one width to the other could join them, and xmerge builds none."
    )


def test_equal_widths_are_not_what_is_in_the_way():
    """Llama-3.2-1B is as wide as Gemma-2B: there it is heads and the feed-forward's width, and the summary says so."""
    told = summarize(compare("llama-3.2-1b", "gemma-2b"))
    assert told[0].startswith("Nothing of gemma-2b's")
    assert "equal shapes and heads of other sizes" in told[1]
    assert "attn_k, attn_v do not fit: key/value heads 8 in llama-3.2-1b, 1 in gemma-2b; head size 64, 256." in told
    assert "ffn_gate, ffn_up, ffn_down do not fit: feed-forward width 8192 in llama-3.2-1b, 16384 in gemma-2b." in told
    assert "bridge" not in told[-1]


def test_what_has_no_counterpart_is_named_once():
    """Four matrices that nothing in latent attention does are one sentence, with what there is in their place."""
    told = summarize(compare("llama-3.2-1b", "deepseek-v2-lite"))
    assert told[1].startswith(
        "attn_q, attn_k, attn_v, attn_output do not fit: deepseek-v2-lite (deepseek_v2) has none;"
    )
    assert told[2].startswith("ffn_gate, ffn_up, ffn_down in layer 0 do not fit: feed-forward width 8192 in")
    assert told[3].startswith(
        "ffn_gate, ffn_up, ffn_down in layers 1-15 do not fit: deepseek-v2-lite (deepseek_v2) has"
    )


def test_the_layers_are_told_where_only_some_cross(tmp_path):
    """A matrix that crosses in a few layers is in two sentences, each with its layers."""

    def choose(role: str, layer: int | None) -> bool:
        return ("_exps" in role or role == "ffn_gate_inp") != (layer == 0)

    write_fake(tmp_path / "llama", num_hidden_layers=4)
    write_fake(tmp_path / "moe", "qwen3_moe", num_hidden_layers=4, maybe=choose)
    told = summarize(compare_models(*describe_models_named([str(tmp_path / "llama"), str(tmp_path / "moe")])))
    assert told[1] == "ffn_gate, ffn_up, ffn_down of moe in layer 0 cross exactly or by conversion."
    assert told[-1].startswith(
        "ffn_gate, ffn_up, ffn_down in layers 1-3 do not fit: moe (qwen3_moe) has none there; it"
    )
    assert told[0] == "attn_v, attn_output of moe cross exactly or by conversion."


def test_one_matrix_crosses():
    """One of a kind is spoken of as one."""
    told = summarize(compare("qwen3-14b", "qwen2.5-14b"))
    assert told[0] == "attn_output of qwen2.5-14b crosses exactly or by conversion."


def test_models_of_one_unknown_type_are_counted(tmp_path):
    """Where nobody knows what tensors do, the summary counts names."""
    config = {"model_type": "unheard-of", "num_hidden_layers": 1}
    write_headers(tmp_path / "a", config, {name: ("F32", [2]) for name in ("h.0.w", "h.0.v", "only", "x")})
    write_headers(tmp_path / "b", config, {"h.0.w": ("F32", [2]), "h.0.v": ("F32", [2]), "x": ("F32", [3])})
    found = compare_models(*describe_models_named([str(tmp_path / "a"), str(tmp_path / "b")]))
    (told,) = summarize(found)
    assert told == (
        "Tensors were compared by name and shape, because there is no family file for unheard-of: 2 of 4 components "
        "match; misfits: 1; only in a: 1."
    )


def test_the_key_is_named_where_no_family_file_fits(tmp_path):
    """Models of a known type that its file does not describe are compared by name, and the summary says which key."""
    config = {"model_type": "deepseek_v3", "num_hidden_layers": 1, "rope_interleave": False}
    for name in "ab":
        write_headers(tmp_path / name, config, {"model.layers.0.w": ("F32", [2])})
    (told,) = summarize(compare_models(*describe_models_named([str(tmp_path / "a"), str(tmp_path / "b")])))
    assert "rope_interleave = true, and config.json says rope_interleave = false" in told
