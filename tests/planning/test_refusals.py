"""What cannot be done is refused before any weight is read, with what to do instead."""

from __future__ import annotations

import json

import pytest

from tests.fake_checkpoints import everywhere
from tests.planning.conftest import decisions_of
from xmerge.checkpoints import read_checkpoint

SLERP = "merge_method: slerp\nbase_model: A\nmodels:\n- model: A\n- model: B\n"
VOCABULARY = {"model": {"vocab": {"a": 0, "b": 1}}, "added_tokens": [{"id": 2, "content": "<s>"}]}


def headers_of(bench, name):
    """The names of a fake checkpoint's tensors."""
    return list(read_checkpoint(bench.folder / name, name).tensors)


@pytest.fixture
def tokenized(bench):
    """Two Llamas whose tokenizers differ in one token."""
    for name, last in (("A", "<s>"), ("B", "<t>")):
        folder = bench.write(name)
        tokenizer = {**VOCABULARY, "added_tokens": [{"id": 2, "content": last}]}
        (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    return bench


def test_a_misfit_is_refused_with_its_class_and_two_ways_out(bench):
    """A refusal says how far each misfit is from fitting, which filters choose what fits, and what keeps the base's."""
    bench.write("A", num_attention_heads=8, head_dim=2)
    bench.write("B", num_key_value_heads=1, intermediate_size=20)
    error = bench.refuse(SLERP + "parameters: {t: [{filter: proj, value: 0.5}]}")
    assert error.where == "recipe.yml, line 6: parameters"
    told = str(error.why).splitlines()
    assert told[0] == "the models' tensors do not do the same:"
    assert {line.split(":")[0].strip() for line in told[1:]} == {"class D, needs a bridge", "class E, refused"}
    assert error.remedy == (
        "choose another donor, because no matrix in the layers of B fits (`xmerge compat` says what crosses between "
        "two models), or set 'on_mismatch: base' to keep the base's there."
    )
    bench.write("C", intermediate_size=20)
    error = bench.refuse(SLERP.replace("B", "C").replace("A", "B") + "parameters: {t: 0.5}")
    assert str(error.why).startswith("the models' shapes differ:\n    class D, needs a bridge: ")
    assert error.remedy == (
        "filter the parameters to what fits (mlp.down_proj, mlp.gate_proj, mlp.up_proj, self_attn.o_proj, "
        "self_attn.q_proj), or set 'on_mismatch: base' to keep the base's there."
    )


def test_unknown_families_do_not_mix(bench):
    """What an unknown model's tensors do is unknown; the refusal names both kinds and the line of the other model."""
    bench.write("A")
    bench.write_unknown("B", {"h.0.w": ("BF16", [2, 2])})
    error = bench.refuse(SLERP + "parameters: {t: 0.5}")
    assert error.what == "A is a llama and B a unheard-of, and there is no family file for unheard-of."
    assert error.where == "recipe.yml, line 5: models[1].model"
    assert error.why is not None and "models of one model_type merge by name" in error.why
    assert error.remedy is not None and "xmerge/families (docs/adding-a-family.md shows how)" in error.remedy


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


@pytest.mark.parametrize(
    ("dtype", "scale"),
    [
        ("F8_E4M3", {}),
        ("F8_E5M2", {}),
        ("F8_E4M3", {"_scale_inv": ("F32", [1, 1])}),
        ("BF16", {"_scale_inv": ("F32", [1, 1])}),
        ("BF16", {"_scale": ("BF16", [12, 1])}),
        ("U8", {"_scale": ("BF16", [12, 1])}),
    ],
)
@pytest.mark.parametrize("t", [0.5, 1])
@pytest.mark.parametrize("on_mismatch", ["error", "base"])
def test_packed_weights_are_refused_where_they_would_be_merged(bench, dtype, scale, t, on_mismatch):
    """Numbers that need a scale are no weights, and a copy would lose it: exit 3, whatever `on_mismatch` says."""
    bench.write("A")
    up = [f"model.layers.{n}.mlp.up_proj.weight" for n in range(4)]
    beside = {f"{name}{ending}": stored for name in up for ending, stored in scale.items()}
    bench.write("B", extra={**dict.fromkeys(up, (dtype, [12, 8])), **beside})
    text = SLERP + f"on_mismatch: {on_mismatch}\nparameters: {{t: [{{filter: FILTER, value: {t}}}]}}"
    error = bench.refuse(text.replace("FILTER", "up_proj"), code=3)
    assert error.what.startswith("B holds model.layers.0.mlp.up_proj.weight packed (")
    assert error.where == "recipe.yml, line 7: parameters"
    assert all(name in str(error.why) for name in beside if ".0." in name)
    assert decisions_of(bench.plan(text.replace("FILTER", "q_proj")), "up_proj") == {"keep"}


@pytest.mark.parametrize("method", ["slerp", "passthrough", "linear"])
def test_a_packed_base_is_carried_as_it_is(bench, method):
    """Every part of a packed weight of the base stays byte for byte, in any output dtype, while plain weights merge."""
    packed = {"qweight": ("I32", [1, 12]), "qzeros": ("I32", [1, 2]), "scales": ("F16", [1, 12])}
    up = {f"model.layers.{n}.mlp.up_proj.{part}": stored for n in range(4) for part, stored in packed.items()}
    for name in "AB":
        bench.write(name, extra=up, without="up_proj.weight", quantization_config={"quant_method": "gptq"})
    weights = {"slerp": "{t: [VALUE]}", "linear": "{weight: [VALUE]}", "passthrough": "{scale: [VALUE]}"}
    text = f"merge_method: {method}\nbase_model: A\ndtype: float32\n"
    text += "models: [{model: A}]\n" if method == "passthrough" else "models: [{model: A}, {model: B}]\n"
    text += f"parameters: {weights[method]}"
    plan = bench.plan(text.replace("VALUE", "{filter: q_proj, value: 0.5}"))
    assert decisions_of(plan, "q_proj") == {"merge"}
    kept = [each for each in plan.tensors if "up_proj" in each.name]
    assert {(each.decision, each.dtype) for each in kept} == {("keep", dtype) for dtype, _ in packed.values()}
    assert all(each.sources[0].model == 0 and each.sources[0].nbytes == each.nbytes for each in kept)
    error = bench.refuse(text.replace("VALUE", "{filter: up_proj, value: 0.5}"), code=3)
    assert error.what == "A holds model.layers.0.mlp.up_proj.qweight packed (GPTQ), and nothing can be merged into it."


def test_an_embedding_that_is_packed_gives_no_output_either(bench):
    """A donor that ties its output to a packed embedding has neither for a base that holds both."""
    bench.write("A")
    packed = {"model.embed_tokens.weight": ("U32", [32, 1]), "model.embed_tokens.scales": ("BF16", [32, 1])}
    bench.write("B", extra=packed, tie_word_embeddings=True)
    for name in ("embed_tokens", "lm_head"):
        error = bench.refuse(SLERP + f"parameters: {{t: [{{filter: {name}, value: 0.5}}]}}", code=3)
        assert error.what == "B holds model.embed_tokens.weight packed (integers), and it cannot be merged."
        assert "model.embed_tokens.scales" in str(error.why)


def test_what_fits_in_some_layers_only_is_no_way_out(bench):
    """A filter that is offered chooses something that fits in every layer."""
    bench.write("A")
    bench.write("B", intermediate_size=20, extra={"model.layers.0.self_attn.q_proj.weight_scale": ("BF16", [16, 1])})
    error = bench.refuse(SLERP + "parameters: {t: [{filter: mlp, value: 0.5}]}")
    assert "(self_attn.k_proj, self_attn.o_proj, self_attn.v_proj)" in str(error.remedy)


def test_a_plain_donor_is_not_merged_into_a_packed_base(bench):
    """There is no place for plain weights where a model holds packed ones."""
    packed = {f"model.layers.{n}.mlp.up_proj.weight": ("U8", [48, 1]) for n in range(4)}
    bench.write("A", extra=packed, quantization_config={"quant_method": "bitsandbytes"})
    bench.write("B")
    error = bench.refuse(SLERP + "parameters: {t: [{filter: up_proj, value: 1}]}", code=3)
    assert "packed (bitsandbytes in 4 bits), and nothing can be merged into it." in error.what
    plan = bench.plan(SLERP + "parameters: {t: [{filter: down_proj, value: 1}]}")
    assert (decisions_of(plan, "up_proj"), decisions_of(plan, "down_proj")) == ({"keep"}, {"copy"})


def test_what_a_quantised_donor_holds_as_plain_numbers_can_be_used(bench):
    """Packed experts do not keep the attention beside them from being merged."""
    bench.write("A", "gpt_oss", maybe=everywhere)
    experts = [name for name in headers_of(bench, "A") if name.endswith(("gate_up_proj", "down_proj"))]
    packed = {f"{name}_blocks": ("U8", [4, 8, 1, 16]) for name in experts}
    packed |= {f"{name}_scales": ("U8", [4, 8, 1]) for name in experts}
    said = {"quantization_config": {"quant_method": "mxfp4"}}
    bench.write("B", "gpt_oss", maybe=everywhere, extra=packed, without=tuple(experts), **said)
    plan = bench.plan(SLERP + "parameters: {t: [{filter: self_attn, value: 0.5}]}")
    assert (decisions_of(plan, "q_proj"), decisions_of(plan, "experts")) == ({"merge"}, {"keep"})
    error = bench.refuse(SLERP + "parameters: {t: [{filter: experts.down_proj, value: 1}]}", code=3)
    assert error.what == "B holds model.layers.0.mlp.experts.down_proj_blocks packed (MXFP4), and it cannot be merged."
    assert "model.layers.0.mlp.experts.down_proj_scales" in str(error.why)


def test_a_packed_weight_does_not_move_to_another_layer(bench):
    """A packed base that meets itself gives its plain weights, and no part of a packed one."""
    bench.write("A", extra={f"model.layers.{n}.mlp.up_proj.weight_scale": ("BF16", [12, 1]) for n in range(4)})
    text = (
        "merge_method: slerp\nbase_model: A\nunlisted_layers: base\nslices:\n- sources:\n"
        "  - {model: A, layer_range: [0, 2]}\n  - {model: A, layer_range: [2, 4]}\n"
        "parameters: {t: [{filter: FILTER, value: 1}]}"
    )
    assert decisions_of(bench.plan(text.replace("FILTER", "down_proj")), "up_proj") == {"keep"}
    assert "nothing can be merged into it" in bench.refuse(text.replace("FILTER", "up_proj"), code=3).what


def test_layers_of_a_packed_base_can_be_repeated(bench):
    """A stack of a packed model's own layers holds every part of its packed weights, wherever it comes to stand."""
    scales = {f"model.layers.{n}.mlp.up_proj.weight_scale": ("BF16", [12, 1]) for n in range(4)}
    bench.write("A", extra=scales)
    plan = bench.plan(
        "merge_method: passthrough\nbase_model: A\nslices:\n"
        "- sources: [{model: A, layer_range: [0, 3]}]\n- sources: [{model: A, layer_range: [1, 4]}]\n"
    )
    found = {each.name: each.sources[0].segments[0].tensor for each in plan.tensors if "up_proj" in each.name}
    layers = [0, 1, 2, 1, 2, 3]
    for ending in ("weight", "weight_scale"):
        for place, layer in enumerate(layers):
            name = f"model.layers.{{}}.mlp.up_proj.{ending}"
            assert found[name.format(place)] == name.format(layer)


def test_packed_weights_of_unknown_families_are_refused_by_their_names(bench):
    """Where no family file says what tensors do, packed weights are found by their names, and refused alike."""
    bench.write_unknown("A", {"h.0.w.weight": ("BF16", [2, 2]), "h.0.n.weight": ("BF16", [2])})
    parts = {"h.0.w.qweight": ("I32", [1, 2]), "h.0.w.scales": ("F16", [1, 2]), "h.0.n.weight": ("BF16", [2])}
    bench.write_unknown("B", parts, quantization_config={"quant_method": "awq"})
    error = bench.refuse(SLERP + "parameters: {t: 0.5}", code=3)
    assert error.what == "B holds h.0.w.qweight packed (AWQ), and it cannot be merged."
    assert decisions_of(bench.plan(SLERP + "parameters: {t: [{filter: h.0.n, value: 0.5}]}"), "h.0.w") == {"keep"}


def test_quantized_integers_are_refused_by_the_method_s_name(bench):
    """Integers in a model that says how it was quantized are weights that are packed."""
    for name in "AB":
        bench.write_unknown(name, {"h.0.w": ("U8", [2, 2])}, quantization_config={"quant_method": "mystery"})
    error = bench.refuse(SLERP + "parameters: {t: 0.5}", code=3)
    assert error.what == "A holds h.0.w packed (mystery), and nothing can be merged into it."
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


def test_a_tokenizer_of_no_model_is_refused(tokenized):
    """A name that is neither a choice nor a model of the configuration is told to be none."""
    error = tokenized.refuse(SLERP + "tokenizer_source: bsae")
    assert error.what == "'tokenizer_source' names bsae, which is no model of this configuration."
    assert error.where == "recipe.yml, line 6: tokenizer_source"


@pytest.mark.parametrize(
    ("recipe", "place"),
    [
        (SLERP.replace("model: B", "model: ./gone"), "recipe.yml, line 5: models[1].model"),
        (SLERP.replace("base_model: A", "base_model: ./gone"), "recipe.yml, line 2: base_model"),
        (
            "merge_method: passthrough\nslices:\n- sources:\n  - {model: ./gone, layer_range: [0, 1]}\n",
            "recipe.yml, line 4: slices[0].sources[0].model",
        ),
        (
            "merge_method: passthrough\nmodules:\n  default:\n    models:\n    - model: ./gone\n",
            "recipe.yml, line 5: modules.default.models[0].model",
        ),
    ],
)
def test_a_model_that_is_not_found_is_refused_where_it_is_named(bench, recipe, place):
    """Whatever is wrong with a model's name is told with its first mention."""
    bench.write("A")
    assert bench.refuse(recipe, code=3).where == place
    adapted = bench.refuse(recipe.replace("./gone", "A+some/adapter"))
    assert (adapted.where, "LoRA" in adapted.what) == (place, True)


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
