"""How a donor's tensor fits a tensor of the target: by what it does, not by its name or its shape."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from tests.planning.conftest import decisions_of, tensors_of
from xmerge.architecture import ResolvedArchitecture, describe_model
from xmerge.config import parse_reference
from xmerge.planning.alignment import Aligner
from xmerge.planning.plan import Source
from xmerge.sources import Location

SLERP = "merge_method: slerp\nbase_model: A\nmodels: [{model: A}, {model: B}]\n"
COPY = SLERP + "parameters: {t: 1}"


def source_of(plan, name):
    """The one source of a tensor that is taken whole."""
    (source,) = tensors_of(plan)[name].sources
    return source


@pytest.mark.parametrize(
    ("ours", "theirs", "part"),
    [
        ({"num_attention_heads": 8, "head_dim": 2}, {"num_attention_heads": 4, "head_dim": 4}, "attn_q"),
        ({"num_attention_heads": 8, "head_dim": 2}, {"num_attention_heads": 4, "head_dim": 4}, "attn_output"),
        ({"num_key_value_heads": 4, "head_dim": 2}, {"num_key_value_heads": 2, "head_dim": 4}, "attn_k"),
        ({"num_key_value_heads": 4, "head_dim": 2}, {"num_key_value_heads": 2, "head_dim": 4}, "attn_v"),
    ],
)
@pytest.mark.parametrize("donor", ["llama", "qwen3", "mistral"])
def test_equal_shapes_with_other_heads_do_not_fit(bench, ours, theirs, part, donor):
    """As many rows cut into other heads are another thing: Llama-3.2-1B's 32 x 64 is not Qwen3-1.7B's 16 x 128."""
    bench.write("A", **ours)
    bench.write("B", donor, **theirs)
    error = bench.refuse(SLERP + "parameters: {t: 0.5}")
    assert error.why is not None
    assert f"\n    class E, refused: {part}: A has [" in error.why
    axis = "heads" if part in ("attn_q", "attn_output") else "kv_heads"
    key = "num_attention_heads" if axis == "heads" else "num_key_value_heads"
    line = next(line for line in error.why.splitlines() if f" {part}:" in line)
    assert f"{axis} {ours[key]}, head_dim 2" in line
    assert f"{axis} {theirs[key]}, head_dim 4" in line


def test_every_misfit_is_told_once_with_both_shapes(bench):
    """One refusal lists all components that do not fit, with shapes and named axes of both, and how many tensors."""
    bench.write("A")
    bench.write("B", "qwen3", intermediate_size=20, vocab_size=50)
    error = bench.refuse(SLERP + "parameters:\n  t: 0.5")
    assert error.what == "14 tensors of the output cannot be merged as asked, model.embed_tokens.weight first."
    assert error.where == "recipe.yml, line 4: parameters"
    assert str(error.why).splitlines() == ["the models' shapes differ:"] + [
        f"    class D, needs a bridge: {told}"
        for told in (
            "token_embd: A has [32, 8] (vocab 32, hidden 8), B has [50, 8] (vocab 50, hidden 8) (tensors: 1)",
            "ffn_down: A has [8, 12] (hidden 8, ffn 12), B has [8, 20] (hidden 8, ffn 20) (tensors: 4)",
            "ffn_gate: A has [12, 8] (ffn 12, hidden 8), B has [20, 8] (ffn 20, hidden 8) (tensors: 4)",
            "ffn_up: A has [12, 8] (ffn 12, hidden 8), B has [20, 8] (ffn 20, hidden 8) (tensors: 4)",
            "output: A has [32, 8] (vocab 32, hidden 8), B has [50, 8] (vocab 50, hidden 8) (tensors: 1)",
        )
    ]
    assert error.remedy == (
        "filter the parameters to what fits (self_attn.k_proj, self_attn.o_proj, self_attn.q_proj, self_attn.v_proj), "
        "or set 'on_mismatch: base' to keep the base's there."
    )


def test_gemma_s_norms_are_told_apart_by_what_they_do(bench):
    """Llama's post_attention_layernorm stands before the MLP, Gemma 2's of the same name after attention."""
    bench.write("A", "gemma2", tie_word_embeddings=True)
    bench.write("B", "llama")
    plan = bench.plan(COPY)
    before_mlp = source_of(plan, "model.layers.0.pre_feedforward_layernorm.weight")
    assert before_mlp.segments[0].tensor == "model.layers.0.post_attention_layernorm.weight"
    for name in ("post_attention_layernorm", "post_feedforward_layernorm"):
        assert decisions_of(plan, name) == {"keep"}


@pytest.mark.parametrize(("base", "donor", "shift"), [("gemma2", "llama", -1.0), ("llama", "gemma2", 1.0)])
def test_a_norm_that_multiplies_by_one_more_than_its_weight_is_shifted(bench, base, donor, shift):
    """A gain of 1 is stored as 0 by Gemma and as 1 by Llama; every norm is brought to the base's convention."""
    bench.write("A", base)
    bench.write("B", donor)
    plan = bench.plan(COPY)
    for name in ("model.layers.0.input_layernorm.weight", "model.norm.weight"):
        tensor = tensors_of(plan)[name]
        assert (tensor.decision, tensor.sources[0].shift) == ("convert", shift)
        assert tensor.base is None
    assert source_of(plan, "model.layers.0.mlp.up_proj.weight").shift == 0.0


def test_a_fused_donor_gives_its_rows(bench):
    """q, k and v are consecutive rows of Phi-3's one tensor, and are read as byte ranges of it."""
    bench.write("A")
    bench.write("B", "phi3")
    plan = bench.plan(COPY)
    fused = describe_model(Location(reference="B", label="B", folder=bench.folder / "B")).checkpoint.tensors
    start = fused["model.layers.2.self_attn.qkv_proj.weight"].offset
    q, k, v = (source_of(plan, f"model.layers.2.self_attn.{each}_proj.weight") for each in "qkv")
    assert [each.segments[0].offset - start for each in (q, k, v)] == [0, 16 * 8 * 2, 24 * 8 * 2]
    assert [each.segments[0].elements for each in (q, k, v)] == [16 * 8, 8 * 8, 8 * 8]
    assert k.steps == ("attn_k taken out of model.layers.{layer}.self_attn.qkv_proj.weight",)
    up = source_of(plan, "model.layers.2.mlp.up_proj.weight")
    assert up.segments[0].offset - fused["model.layers.2.mlp.gate_up_proj.weight"].offset == 12 * 8 * 2


def test_a_fused_base_joins_a_donor_s_tensors(bench):
    """Phi-3's one tensor is filled with q, k and v one after another."""
    bench.write("A", "phi3")
    bench.write("B")
    source = source_of(bench.plan(COPY), "model.layers.1.self_attn.qkv_proj.weight")
    assert [segment.tensor.split(".")[-2] for segment in source.segments] == ["q_proj", "k_proj", "v_proj"]
    assert source.steps[0] == "joined with model.layers.{layer}.self_attn.q_proj.weight"


def test_equal_layouts_are_read_in_one_piece(bench):
    """Parts that touch in the file are one segment, so that a fused tensor of one family is copied at once."""
    bench.write("A", "phi3")
    bench.write("B", "phi3")
    source = source_of(bench.plan(COPY), "model.layers.1.self_attn.qkv_proj.weight")
    assert len(source.segments) == 1
    assert source.segments[0].elements == 32 * 8
    assert source.steps == ()


def test_a_tied_donor_gives_its_embedding_for_the_output(bench):
    """Its output matrix is its embedding, also where a stray copy of one lies about."""
    bench.write("A")
    bench.write("B", tie_word_embeddings=True, extra={"lm_head.weight": ("BF16", [32, 8])})
    plan = bench.plan(COPY)
    head = source_of(plan, "lm_head.weight")
    assert head.segments[0].tensor == "model.embed_tokens.weight"
    assert head.steps == ("named model.embed_tokens.weight",)


def test_an_untied_donor_s_output_has_no_place_in_a_tied_base(bench):
    """The donor's output matrix is listed as dropped, and its embedding is what the base takes."""
    bench.write("A", tie_word_embeddings=True)
    bench.write("B")
    plan = bench.plan(COPY)
    assert "lm_head.weight" not in tensors_of(plan)
    assert plan.models[1].dropped == ("output (1 tensor)",)
    assert source_of(plan, "model.embed_tokens.weight").segments[0].tensor == "model.embed_tokens.weight"


def test_a_stray_output_beside_a_tied_embedding_is_left_out(bench):
    """What no program reads is not written, a warning says so, and it hides no foreign tensor of the donor."""
    bench.write("A", tie_word_embeddings=True, extra={"lm_head.weight": ("BF16", [32, 8])})
    bench.write("B")
    plan = bench.plan(SLERP + "parameters: {t: 0.5}")
    assert "lm_head.weight" not in tensors_of(plan)
    assert plan.models[1].dropped == ("output (1 tensor)",)
    assert any(warning.startswith("A holds an output matrix of its own, and its") for warning in plan.warnings)


def test_queries_rotated_by_other_pairs_of_rows_are_reordered(bench):
    """Interleaved and half-split rotation order the rows of q and k differently; values and output do not care."""
    bench.write("A")
    bench.write("B")
    target, donor = (describe_model(Location(reference=name, label=name, folder=bench.folder / name)) for name in "AB")
    assert donor.family is not None
    turned = replace(donor, family=donor.family.model_copy(update={"rope": "interleaved"}))
    references = tuple(parse_reference(name) for name in "AB")
    aligner = Aligner(ResolvedArchitecture((target, turned), references, 0))
    fits = {spec.role: aligner.align(spec, 1, 0) for spec in target.by_layer[0]}
    for role in ("attn_q", "attn_k"):
        fit = fits[role]
        assert isinstance(fit, Source)
        assert fit.steps == ("rotated rows interleaved -> half",)
        assert fit.fit == "B"
        # Of a head of 4 rows the pairs (0, 1) and (2, 3) turn together there, (0, 2) and (1, 3) here.
        assert fit.segments[0].order[-3:] == ((2, 8, 16), (2, 16, 8), (8, 1, 1))
    for role in ("attn_v", "attn_output", "ffn_up", "attn_norm"):
        fit = fits[role]
        assert isinstance(fit, Source)
        assert not fit.steps


STRANGE = {
    "wte.weight": ("BF16", [32, 8]),
    "h.0.attn.c_attn.weight": ("BF16", [24, 8]),
    "h.1.attn.c_attn.weight": ("BF16", [24, 8]),
    "h.0.mlp.c_fc.weight": ("BF16", [12, 8]),
    "h.1.mlp.c_fc.weight": ("BF16", [12, 8]),
}


def test_models_of_one_unknown_type_merge_by_name(bench):
    """Without a family file equal names are equal things, in any layer."""
    bench.write_unknown("A", STRANGE)
    bench.write_unknown("B", {**STRANGE, "h.0.extra.weight": ("BF16", [3])})
    plan = bench.plan(SLERP + "parameters: {t: 0.5}")
    assert set(tensors_of(plan)) == set(STRANGE)
    assert {tensor.decision for tensor in plan.tensors} == {"merge"}
    assert plan.models[1].dropped == ("h.{layer}.extra.weight (1 tensor)",)


def test_unknown_models_of_other_shapes_are_told_by_name(bench):
    """Both shapes stand in the refusal."""
    bench.write_unknown("A", STRANGE)
    bench.write_unknown("B", {**STRANGE, "h.0.mlp.c_fc.weight": ("BF16", [16, 8])})
    error = bench.refuse(SLERP + "parameters: {t: 0.5}")
    assert error.why is not None
    assert "h.{layer}.mlp.c_fc.weight: A has [12, 8], B has [16, 8] (tensors: 1)" in error.why


def test_a_tensor_without_a_known_role_crosses_no_families(bench):
    """Of what no family file knows, the base's is kept and the donor's is dropped, even under one name."""
    for name, family in (("A", "llama"), ("B", "qwen3")):
        bench.write(name, family, extra={"model.layers.0.self_attn.rotary_emb.inv_freq": ("F32", [2])})
    plan = bench.plan(COPY)
    assert decisions_of(plan, "inv_freq") == {"keep"}
    assert "model.layers.{layer}.self_attn.rotary_emb.inv_freq (1 tensor)" in plan.models[1].dropped


def test_rows_that_meet_rows_of_other_heads_say_so(bench):
    """What `on_different_heads: merge` lets through is approximate, and no step is told that is not done."""
    bench.write("A", num_attention_heads=8, num_key_value_heads=4, head_dim=2)
    bench.write("B", "cohere", num_attention_heads=4, num_key_value_heads=2, head_dim=4)
    text = SLERP + "parameters: {t: [{filter: self_attn, value: 1}]}\non_different_heads: merge"
    source = source_of(bench.plan(text), "model.layers.0.self_attn.q_proj.weight")
    assert source.fit == "C"
    assert any("rows of one head meet rows of another" in note for note in source.notes)
    assert not any("rotated" in step for step in source.steps)


def test_one_fused_arrangement_into_another_is_a_step(bench):
    """Group by group into one after another is a conversion, also where both tensors hold the same roles."""
    bench.write("A", "phi3", hidden_size=16)
    bench.write("B", "internlm2", hidden_size=16)
    source = source_of(bench.plan(COPY), "model.layers.0.self_attn.qkv_proj.weight")
    assert source.fit == "B"
    assert "attn_q rearranged from model.layers.{layer}.attention.wqkv.weight" in source.steps


def test_a_model_that_its_family_file_does_not_fit_crosses_nothing_by_name(bench):
    """Equal names of a layout that no file describes and of one that a file does need not mean the same."""
    bench.write("A", "deepseek_v3", maybe=lambda *_: True)
    bench.write("B", "deepseek_v3", maybe=lambda *_: True)
    config = bench.folder / "B" / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "rope_interleave": False}))
    error = bench.refuse(SLERP + "parameters: {t: [{filter: q_b_proj, value: 0.5}]}")
    assert "the family file of deepseek_v3 describes only models with rope_interleave = true" in (error.why or "")


def test_the_blocks_of_a_tower_are_no_layers_of_an_unknown_model(bench):
    """Only blocks as many as config.json says are layers; others are carried whole, whatever layers are listed."""
    tower = {f"visual.blocks.{layer}.attn.qkv.weight": ("BF16", [3]) for layer in range(3)}
    bench.write_unknown("A", {**STRANGE, **tower})
    plan = bench.plan("merge_method: passthrough\nslices: [{sources: [{model: A, layer_range: [0, 1]}]}]")
    assert set(tower) <= set(tensors_of(plan))
