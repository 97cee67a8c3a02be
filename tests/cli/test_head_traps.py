"""Published models whose matrices have one shape and are divided into other heads."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import pytest

from tests.fake_checkpoints import write_fake

MODELS = {
    "llama-3.2-1b": ("llama", (2048, 8192, 32, 8, 64, 128256)),
    "llama-3.2-3b": ("llama", (3072, 8192, 24, 8, 128, 128256)),
    "smollm2-1.7b": ("llama", (2048, 8192, 32, 32, 64, 49152)),
    "falcon3-1b": ("llama", (2048, 8192, 8, 4, 256, 131072)),
    "falcon3-7b": ("llama", (3072, 23040, 12, 4, 256, 131072)),
    "qwen2.5-3b": ("qwen2", (2048, 11008, 16, 2, 128, 151936)),
    "qwen3-1.7b": ("qwen3", (2048, 6144, 16, 8, 128, 151936)),
    "qwen3-4b": ("qwen3", (2560, 9728, 32, 8, 128, 151936)),
    "smollm3-3b": ("smollm3", (2048, 11008, 16, 4, 128, 128256)),
    "granite-3.1-2b": ("granite", (2048, 8192, 32, 8, 64, 49155)),
    "gemma-3-4b": ("gemma3_multimodal", (2560, 10240, 8, 4, 256, 262208)),
    "phi-3-mini": ("phi3", (3072, 8192, 32, 32, 96, 32064)),
    "phi-4-mini": ("phi3", (3072, 8192, 24, 8, 128, 200064)),
}
"""As published: family, and (hidden, ffn, heads, kv_heads, head_dim, vocab)."""
KEYS = (
    "hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads", "head_dim", "vocab_size",
)  # fmt: skip
Q, K, V, O = "attn_q", "attn_k", "attn_v", "attn_output"  # noqa: E741 - as in every paper
TRAPS = [
    ("llama-3.2-1b", "qwen2.5-3b", (Q, O)),
    ("llama-3.2-1b", "qwen3-1.7b", (Q, O)),
    ("llama-3.2-1b", "smollm3-3b", (Q, K, V, O)),
    ("llama-3.2-1b", "falcon3-1b", (Q, O)),
    ("smollm2-1.7b", "qwen2.5-3b", (Q, O)),
    ("smollm2-1.7b", "falcon3-1b", (Q, O)),
    ("granite-3.1-2b", "qwen2.5-3b", (Q, O)),
    ("granite-3.1-2b", "falcon3-1b", (Q, O)),
    ("llama-3.2-3b", "falcon3-7b", (Q, K, V, O)),
    ("phi-4-mini", "falcon3-7b", (Q, K, V, O)),
    ("llama-3.2-3b", "phi-3-mini", (Q, O)),
    ("qwen3-1.7b", "falcon3-1b", (Q, K, V, O)),
    ("qwen3-4b", "gemma-3-4b", (K, V)),
]
PAIRS = [pair for a, b, roles in TRAPS for pair in ((a, b, roles), (b, a, roles))]
FILTERS = {Q: "self_attn.q_proj", K: "self_attn.k_proj", V: "self_attn.v_proj", O: "self_attn.o_proj"}


@pytest.fixture
def plan(tmp_path: Path, monkeypatch, xmerge):
    """Plan a merge of these parts of two of the models, and see that nothing is written."""
    monkeypatch.chdir(tmp_path)

    def call(base: str, donor: str, roles, *more: str):
        for name in (base, donor):
            family, sizes = MODELS[name]
            config: dict[str, Any] = dict(zip(KEYS, sizes, strict=True))
            write_fake(tmp_path / name, family, num_hidden_layers=2, **config)
        filters = dict.fromkeys(choose_filter(base, role) for role in roles)
        listed = ", ".join(f"{{filter: {each}, value: 0.3}}" for each in filters)
        lines = ["merge_method: slerp", f"base_model: {base}", f"models: [{{model: {base}}}, {{model: {donor}}}]"]
        (tmp_path / "recipe.yml").write_text("\n".join([*lines, f"parameters: {{t: [{listed}]}}", *more]))
        said = xmerge("plan", "recipe.yml", "--json")
        assert sorted(os.listdir(tmp_path)) == sorted([base, donor, "recipe.yml"])
        return said

    return call


def choose_filter(base: str, role: str) -> str:
    """The filter for a role in a base: a fused tensor holds three of them."""
    fused = MODELS[base][0] == "phi3" and role != O
    return "self_attn.qkv_proj" if fused else FILTERS[role]


def tell_heads(name: str, role: str) -> str:
    """The heads that a model divides a matrix into, as a refusal tells them."""
    _, _, heads, kv_heads, head_dim, _ = MODELS[name][1]
    return f"heads {heads}, head_dim {head_dim}" if role in (Q, O) else f"kv_heads {kv_heads}, head_dim {head_dim}"


@pytest.mark.parametrize(("base", "donor", "roles"), PAIRS)
def test_equal_shapes_with_other_heads_are_refused(plan, base, donor, roles):
    """Each of the published traps is refused as class E, with the heads of both models, before anything is written."""
    for role in roles:
        said = plan(base, donor, [role])
        assert said.exit_code == 2, said
        # A fused tensor is refused for the first of its parts.
        part = Q if choose_filter(base, role) == "self_attn.qkv_proj" else role
        line = next(line for line in said.err.splitlines() if f": {part}: " in line)
        assert line.strip().startswith(f"class E, refused: {part}: {base} has [")
        first, second = re.findall(r"\(([^)]*heads \d+, head_dim \d+[^)]*)\)", line)
        assert tell_heads(base, part) in first
        assert tell_heads(donor, part) in second
        assert "on_different_heads: merge" in line
        assert "on_mismatch: base" in said.err


# Phi-3-mini holds q with k and v, whose shapes are its own.
@pytest.mark.parametrize(("base", "donor", "roles"), [pair for pair in PAIRS if pair[0] != "phi-3-mini"])
def test_a_recipe_may_let_rows_of_other_heads_meet(plan, base, donor, roles):
    """`on_different_heads: merge` takes rows for rows."""
    said = plan(base, donor, roles, "on_different_heads: merge")
    assert said.exit_code == 0, said.err
    tensors = [each for layer in json.loads(said.out)["layers"] for each in layer["tensors"]]
    merged = [each["role"].split("+") for each in tensors if each["decision"] == "merge"]
    assert {role for each in merged for role in each} == set(roles)


@pytest.mark.parametrize(("base", "donor", "roles"), PAIRS)
def test_the_base_s_are_kept_on_request_and_listed(plan, base, donor, roles):
    """`on_mismatch: base` keeps what falls into the trap, and says so of each component."""
    said = plan(base, donor, roles, "on_mismatch: base")
    assert said.exit_code == 0, said.err
    made = json.loads(said.out)
    tensors = [each for layer in made["layers"] for each in layer["tensors"]]
    assert {each["decision"] for each in tensors} == {"keep"}
    told = next(each for each in made["warnings"] if each.startswith("asked for and kept from the base"))
    for role in roles:
        held = [each for each in tensors if each["role"] and role in each["role"].split("+")]
        assert len(held) == 2
        assert all("class E" in each["reason"] for each in held)
        assert held[0]["component"] in told
