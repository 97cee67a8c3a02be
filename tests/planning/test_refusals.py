"""What cannot be done is refused before any weight is read, with what to do instead."""

from __future__ import annotations

import json

import pytest

from tests.planning.conftest import decisions_of

SLERP = "merge_method: slerp\nbase_model: A\nmodels:\n- model: A\n- model: B\n"
VOCABULARY = {"model": {"vocab": {"a": 0, "b": 1}}, "added_tokens": [{"id": 2, "content": "<s>"}]}


@pytest.fixture
def tokenized(bench):
    """Two Llamas whose tokenizers differ in one token."""
    for name, last in (("A", "<s>"), ("B", "<t>")):
        folder = bench.write(name)
        tokenizer = {**VOCABULARY, "added_tokens": [{"id": 2, "content": last}]}
        (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    return bench


def test_unknown_families_do_not_mix(bench):
    """What an unknown model's tensors do is unknown; the refusal names both kinds and the line of the other model."""
    bench.write("A")
    bench.write_unknown("B", {"h.0.w": ("BF16", [2, 2])})
    error = bench.refuse(SLERP + "parameters: {t: 0.5}")
    assert error.what == "A is a llama and B a unheard-of, and there is no family file for unheard-of."
    assert error.where == "recipe.yml, line 5: models[1].model"
    assert error.why is not None and "models of one model_type merge by name" in error.why
    assert error.remedy is not None and "xmerge/families" in error.remedy


def test_weights_that_sum_to_nothing_are_refused(bench):
    """Dividing by a sum of 0 has no result: the tensor, the weights and the models are named."""
    bench.write("A")
    bench.write("B")
    error = bench.refuse(
        "merge_method: linear\nmodels:\n- {model: A, parameters: {weight: 1}}\n- {model: B, parameters: {weight: -1}}\n"
    )
    assert error.what == (
        "model.embed_tokens.weight cannot be merged: the weights [1.0, -1.0] sum to 0, "
        "and 'normalize' divides by their sum."
    )
    assert error.where == "recipe.yml, line 3: models[0].parameters"
    assert error.why == "of A, B."
    assert error.remedy is not None


@pytest.mark.parametrize("dtype", ["F8_E4M3", "F8_E5M2"])
@pytest.mark.parametrize("t", [0.5, 1])
def test_packed_weights_are_refused_where_they_would_be_merged(bench, dtype, t):
    """Numbers of 8 bits with a scale elsewhere are no weights; as an input that cannot be merged it is exit 3."""
    bench.write("A")
    bench.write("B", extra={f"model.layers.{n}.mlp.up_proj.weight": (dtype, [12, 8]) for n in range(4)})
    text = SLERP + f"parameters: {{t: [{{filter: FILTER, value: {t}}}]}}"
    error = bench.refuse(text.replace("FILTER", "up_proj"), code=3)
    assert error.what == f"B holds model.layers.0.mlp.up_proj.weight as {dtype}, which cannot be merged."
    assert error.why == f"its weights are packed ({dtype})."
    assert decisions_of(bench.plan(text.replace("FILTER", "q_proj")), "up_proj") == {"keep"}


def test_quantized_integers_are_refused_by_the_method_s_name(bench):
    """Integers in a model that says how it was quantized are weights that are packed."""
    for name in "AB":
        bench.write_unknown(name, {"h.0.w": ("U8", [2, 2])}, quantization_config={"quant_method": "bitsandbytes"})
    error = bench.refuse(SLERP + "parameters: {t: 0.5}", code=3)
    assert error.why == "its weights are packed (bitsandbytes)."
    assert decisions_of(bench.plan(SLERP), "h.0.w") == {"keep"}


def test_a_tensor_that_no_model_has_is_refused(bench):
    """A slice of a Llama alone cannot fill a Qwen3's norms, whatever `on_mismatch` says."""
    bench.write("A", "qwen3")
    bench.write("B", "llama")
    text = (
        "merge_method: passthrough\nbase_model: A\non_mismatch: {}\nslices:\n"
        "- sources: [{{model: A, layer_range: [0, 2]}}]\n- sources: [{{model: B, layer_range: [2, 4]}}]\n"
        "- sources: [{{model: A, layer_range: [3, 4]}}]\n"
    )
    for choice in ("error", "base"):
        error = bench.refuse(text.format(choice))
        assert error.what == (
            "4 tensors of the output can be filled by no model that meets there, "
            "model.layers.2.self_attn.k_norm.weight first."
        )
        assert error.why == (
            "the output is a qwen3 like A, which has them:"
            "\n    B (llama) has no attn_k_norm (tensors: 2)\n    B (llama) has no attn_q_norm (tensors: 2)"
        )
        assert error.remedy == "add a source of A there, or let another model give the 'architecture'."


def test_a_misfit_with_nothing_to_keep_is_refused_in_any_case(bench):
    """`on_mismatch: base` needs the base to be there."""
    bench.write("A")
    bench.write("B", intermediate_size=20)
    error = bench.refuse(
        "merge_method: passthrough\nbase_model: A\non_mismatch: base\nslices:\n"
        "- sources: [{model: A, layer_range: [0, 2]}]\n- sources: [{model: B, layer_range: [2, 4]}]\n"
        "- sources: [{model: A, layer_range: [3, 4]}]\n"
    )
    assert "can be filled by no model" in error.what
    assert error.why is not None and "ffn_down: A has [8, 12]" in error.why


@pytest.mark.parametrize("name", ["chatml", "auto"])
def test_built_in_chat_templates_are_refused(bench, name):
    """A template is its own text here."""
    bench.write("A")
    bench.write("B")
    error = bench.refuse(SLERP + f"chat_template: {name}")
    assert (error.where, error.exit_code) == ("recipe.yml, line 6: chat_template", 2)
    assert error.remedy == "leave it out to keep the base's, or write the Jinja text itself."
    assert bench.plan(SLERP + "chat_template: '{{ messages }}'").chat_template == "{{ messages }}"


def test_a_lora_adapter_is_refused(bench):
    """The refusal says how to merge it beforehand."""
    bench.write("A")
    bench.write("B")
    error = bench.refuse(SLERP.replace("model: B", "model: B+some/adapter"))
    assert "has a LoRA adapter" in error.what
    assert error.remedy is not None and "merge_and_unload" in error.remedy


@pytest.mark.parametrize("asked", ["tokens: {x: {source: A}}", "pad_to_multiple_of: 64"])
def test_a_vocabulary_is_not_changed(tokenized, asked):
    """New tokens and padding are refused."""
    error = tokenized.refuse(SLERP + f"tokenizer: {{source: base, {asked}}}")
    assert "does not change a vocabulary" in error.what
    assert error.where == "recipe.yml, line 6: tokenizer"


def test_another_model_s_tokenizer_is_refused(tokenized):
    """Tokenizer and architecture come from one model."""
    error = tokenized.refuse(SLERP + "tokenizer_source: B")
    assert error.what == "the output has the tokenizer of A, whose architecture it has, not of B."
    assert error.where == "recipe.yml, line 6: tokenizer_source"


def test_a_union_of_different_vocabularies_is_refused(tokenized):
    """Even where no embedding is merged, because every model's tokens are asked for."""
    error = tokenized.refuse(SLERP + "tokenizer_source: union\nparameters: {t: [{filter: mlp, value: 0.5}]}")
    assert error.what == "A and B have different vocabularies."
    assert error.remedy == "leave 'tokenizer_source' out: the output has the tokenizer of A."


def test_the_base_s_tokenizer_needs_equal_vocabularies_only_where_embeddings_meet(tokenized):
    """`base` re-orders a donor's embeddings; where none crosses there is nothing to re-order."""
    text = SLERP + "tokenizer_source: base\n"
    error = tokenized.refuse(text + "parameters: {t: 0.5}")
    assert error.remedy is not None and "filter the embeddings out of the merge" in error.remedy
    plan = tokenized.plan(text + "parameters: {t: [{filter: mlp, value: 0.5}]}")
    assert decisions_of(plan, "mlp") == {"merge"}
    assert tokenized.plan(SLERP + "tokenizer_source: A").fingerprint


def test_equal_vocabularies_are_a_union_already(bench):
    """Then every way to ask for a tokenizer means the base's."""
    for name in "AB":
        (bench.write(name) / "tokenizer.json").write_text(json.dumps(VOCABULARY))
    plans = [
        bench.plan(SLERP + f"parameters: {{t: 0.5}}\n{key}") for key in ("", "tokenizer_source: union", "tokenizer: {}")
    ]
    assert len({plan.fingerprint for plan in plans}) == 1
