"""Packed weights are known for what they are, with or without a word of config.json."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.fake_checkpoints import Tensors, write_fake, write_headers
from xmerge.architecture import ResolvedModel, describe_model
from xmerge.architecture.quantization import PACKINGS, find_packed, refuse_packed
from xmerge.architecture.rules import show
from xmerge.checkpoints import StoredTensor
from xmerge.checkpoints.headers import size_of
from xmerge.errors import CheckpointError
from xmerge.sources import Location

Q = "model.layers.1.self_attn.q_proj"
GATE_UP = "model.layers.1.mlp.experts.gate_up_proj"
PARTS: Mapping[str, tuple[str, Tensors]] = {
    "bitsandbytes in 4 bits": (
        f"{Q}.weight",
        {
            f"{Q}.weight": ("U8", (64, 1)),
            f"{Q}.weight.absmax": ("U8", (2,)),
            f"{Q}.weight.quant_map": ("F32", (16,)),
            f"{Q}.weight.nested_absmax": ("F32", (1,)),
            f"{Q}.weight.nested_quant_map": ("F32", (8,)),
            f"{Q}.weight.quant_state.bitsandbytes__nf4": ("U8", (9,)),
        },
    ),
    "bitsandbytes in 8 bits": (
        f"{Q}.weight",
        {f"{Q}.weight": ("I8", (16, 8)), f"{Q}.SCB": ("F32", (16,)), f"{Q}.weight_format": ("U8", ())},
    ),
    "GPTQ": (
        f"{Q}.weight",
        {
            f"{Q}.qweight": ("I32", (8, 16)),
            f"{Q}.qzeros": ("I32", (1, 2)),
            f"{Q}.scales": ("F16", (1, 16)),
            f"{Q}.g_idx": ("I32", (8,)),
        },
    ),
    "AWQ": (
        f"{Q}.weight",
        {f"{Q}.qweight": ("I32", (8, 16)), f"{Q}.qzeros": ("I32", (1, 2)), f"{Q}.scales": ("F16", (1, 16))},
    ),
    "NVFP4": (
        f"{Q}.weight",
        {
            f"{Q}.weight": ("U8", (16, 4)),
            f"{Q}.weight_scale": ("F8_E4M3", (16, 1)),
            f"{Q}.weight_scale_2": ("F32", ()),
            f"{Q}.input_scale": ("F32", ()),
        },
    ),
    "compressed-tensors": (
        f"{Q}.weight",
        {
            f"{Q}.weight_packed": ("I32", (16, 4)),
            f"{Q}.weight_scale": ("BF16", (16, 1)),
            f"{Q}.weight_shape": ("I64", (2,)),
        },
    ),
    "MXFP4": (GATE_UP, {f"{GATE_UP}_blocks": ("U8", (4, 12, 1, 16)), f"{GATE_UP}_scales": ("U8", (4, 12, 1))}),
    "FP8": (f"{Q}.weight", {f"{Q}.weight": ("F8_E4M3", (16, 8)), f"{Q}.weight_scale_inv": ("F32", (1, 1))}),
    "HQQ": (
        f"{Q}.weight",
        {f"{Q}.W_q": ("U8", (64, 1)), f"{Q}.scale": ("BF16", (2, 1)), f"{Q}.zero": ("BF16", (2, 1))},
    ),
    "AQLM": (
        f"{Q}.weight",
        {f"{Q}.codes": ("I16", (16, 8)), f"{Q}.codebooks": ("F16", (1, 4, 1, 8)), f"{Q}.scales": ("F16", (16, 1))},
    ),
    "torchao": (
        f"{Q}.weight",
        {f"{Q}._weight_qdata": ("I8", (16, 8)), f"{Q}._weight_scale": ("BF16", (16,))},
    ),
    "Quanto": (f"{Q}.weight", {f"{Q}.weight._data": ("I8", (16, 8)), f"{Q}.weight._scale": ("BF16", (16, 1))}),
    "EETQ": (f"{Q}.weight", {f"{Q}.weight": ("I8", (8, 16)), f"{Q}.weight_scales": ("F16", (16,))}),
    "HIGGS": (
        f"{Q}.weight",
        {
            f"{Q}.weight": ("I16", (16, 8)),
            f"{Q}.scales": ("F16", (16, 1)),
            f"{Q}.tables": ("F16", (16,)),
            f"{Q}.tables2": ("F16", (16, 2)),
        },
    ),
    "EXL2": (f"{Q}.weight", {f"{Q}.q_weight": ("I32", (16, 8)), f"{Q}.q_scale": ("I32", (2, 2))}),
    "EXL3": (f"{Q}.weight", {f"{Q}.trellis": ("I16", (16, 8)), f"{Q}.suh": ("F16", (8,)), f"{Q}.svh": ("F16", (8,))}),
    "MLX": (
        f"{Q}.weight",
        {f"{Q}.weight": ("U32", (16, 1)), f"{Q}.scales": ("BF16", (16, 1)), f"{Q}.biases": ("BF16", (16, 1))},
    ),
    "scaled weights": (f"{Q}.weight", {f"{Q}.weight": ("BF16", (16, 8)), f"{Q}.weight_scale": ("BF16", (16, 1))}),
}
"""What each way of packing writes for one weight: its plain name, and the tensors, its numbers first."""

SAID = [
    ({"quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True}}, "bitsandbytes in 4 bits"),
    ({"quantization_config": {"quant_method": "bitsandbytes", "load_in_8bit": True}}, "bitsandbytes in 8 bits"),
    ({"quantization_config": {"quant_method": "awq", "bits": 4}}, "AWQ"),
    ({"quantization_config": {"quant_method": "auto-round", "bits": 4}}, "AutoRound"),
    ({"quantization_config": {"quant_method": "fbgemm_fp8"}}, "FP8"),
    ({"quantization_config": {"quant_method": "modelopt", "quant_algo": "NVFP4"}}, "NVFP4"),
    ({"quantization_config": {"quant_method": "bitnet"}}, "BitNet"),
    ({"quantization_config": {"quant_method": "vptq"}}, "vptq"),
    ({"quantization_config": {"quant_method": ["gptq"]}}, "['gptq']"),
    ({"quantization_config": {"group_size": 64, "bits": 4}, "quantization": {"group_size": 64, "bits": 4}}, "MLX"),
    ({"quantization_config": {}}, "unknown"),
    ({"compression_config": {"quant_method": "compressed-tensors"}}, "compressed-tensors"),
    ({"quantization_config": None}, "integers"),
]
"""What a config.json says, and how the weight of integers beside it is packed."""


def store(tensors: Tensors) -> dict[str, StoredTensor]:
    """The tensors as headers tell them."""
    return {
        name: StoredTensor(name, "model.safetensors", dtype, tuple(shape), 0, size_of(dtype, shape))
        for name, (dtype, shape) in sorted(tensors.items())
    }


def write_packed(folder: Path, tensors: Tensors, **config: Any) -> ResolvedModel:
    """A Llama, called `m`, that holds these tensors in the place of one weight."""
    plain = describe(write_fake(folder, **config))
    kept = {each.name: (each.dtype, each.shape) for each in plain.tensors if each.name != f"{Q}.weight"}
    return describe(write_headers(folder, plain.checkpoint.config, {**kept, **tensors}))


def describe(folder: Path) -> ResolvedModel:
    """The model in a folder."""
    return describe_model(Location(reference="m", label="m", folder=folder))


@pytest.mark.parametrize("kind", PARTS)
def test_headers_alone_tell_how_a_weight_is_packed(kind):
    """Without a word of config.json, every tensor of a packed weight is known for a part of it."""
    weight, tensors = PARTS[kind]
    found = find_packed({}, store(tensors), "m")
    assert set(found) == set(tensors)
    assert {(each.packing.name, each.name) for each in found.values()} == {(kind, weight)}
    assert {each.stored[0] for each in found.values()} == {next(iter(tensors))}


def test_every_way_of_packing_that_leaves_a_mark_is_tested():
    """The kinds above are those that headers alone can tell."""
    assert {each.name for each in PACKINGS if each.mark} == set(PARTS)


@pytest.mark.parametrize(("said", "kind"), SAID, ids=str)
def test_config_json_names_the_way_of_packing(tmp_path, said, kind):
    """What config.json says names the packing of integers that no other tensor explains."""
    model = write_packed(tmp_path, {f"{Q}.weight": ("U8", (64, 1))}, **said)
    assert model.packed[1, "attn_q"].packing.name == kind
    assert model.quantization == kind


def test_a_word_of_config_json_comes_before_the_look_of_the_names(tmp_path):
    """Two programs may name their tensors alike; config.json knows which it was."""
    said = {"quantization_config": {"quant_method": "auto-round"}}
    assert write_packed(tmp_path, PARTS["GPTQ"][1], **said).packed[1, "attn_q"].packing.name == "AutoRound"


@pytest.mark.parametrize(
    ("said", "kind"),
    [
        ({"quant_method": "bitsandbytes"}, "bitsandbytes in 8 bits"),
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, "bitsandbytes in 8 bits"),
        ({}, "bitsandbytes in 8 bits"),
    ],
    ids=str,
)
def test_the_look_of_the_names_decides_what_config_json_leaves_open(tmp_path, said, kind):
    """Of the ways that config.json may mean, it is the one that the tensors show."""
    tensors = PARTS["bitsandbytes in 8 bits"][1]
    assert write_packed(tmp_path, tensors, quantization_config=said).packed[1, "attn_q"].packing.name == kind


@pytest.mark.parametrize(
    ("tensors", "kind"),
    [
        ({f"{Q}.weight": ("F8_E4M3", (16, 8)), f"{Q}.weight_scale": ("F32", ())}, "FP8"),
        ({f"{Q}.weight": ("F8_E4M3", (16, 8)), f"{Q}.qscale_weight": ("F32", ())}, "FP8"),
        (
            {f"{Q}.weight": ("F8_E4M3", (16, 8)), f"{Q}.weight_scale": ("F32", ()), f"{Q}.input_scale": ("F32", ())},
            "FP8",
        ),
        ({GATE_UP: ("F8_E4M3", (4, 8, 12)), f"{GATE_UP}_scale_inv": ("F32", (4, 1, 1))}, "FP8"),
        ({GATE_UP: ("F8_E4M3", (4, 8, 12)), f"{GATE_UP}_scale": ("F32", (4, 1, 1))}, "FP8"),
        ({GATE_UP: ("F8_E4M3", (4, 8, 12))}, "floats of 8 bits or fewer"),
        ({f"{Q}.weight": ("I8", (16, 8)), f"{Q}.weight_scale": ("BF16", (16, 1))}, "scaled weights"),
    ],
    ids=str,
)
def test_small_numbers_are_told_by_what_lies_beside_them(tensors, kind):
    """One dtype serves several ways of packing; every tensor that belongs to a weight is found all the same."""
    found = find_packed({}, store(tensors), "m")
    assert set(found) == set(tensors)
    assert {each.packing.name for each in found.values()} == {kind}


@pytest.mark.parametrize("kind", [kind for kind, (weight, _) in PARTS.items() if weight == f"{Q}.weight"])
def test_a_packed_weight_has_a_place_and_its_tensors_no_role(tmp_path, kind):
    """A model with a packed weight is whole: what is packed is known by layer and role, and all else is as ever."""
    tensors = PARTS[kind][1]
    model = write_packed(tmp_path, tensors)
    held = [each for each in model.tensors if each.packed]
    assert {each.name for each in held} == set(tensors)
    assert {(each.layer, each.role, each.parts, each.after_layers) for each in held} == {(1, None, (), False)}
    assert model.packed[1, "attn_q"] is held[0].packed
    assert set(model.packed) == {(1, "attn_q"), (1, "model.layers.{layer}.self_attn.q_proj.weight")}
    assert (1, "attn_k") in model.by_role
    assert (1, "attn_q") not in model.by_role


def test_what_lies_in_the_place_of_a_weight_is_taken_for_it_where_config_json_says_so(tmp_path):
    """Names that nobody knows are a packed weight if config.json says that weights are packed, else one is missing."""
    strange = {f"{Q}.indices": ("I32", (1, 4)), f"{Q}.centroids.weight": ("F16", (1, 8))}
    other = {f"{Q}x.weight": ("BF16", (2,)), "visual.weight": ("BF16", (2,))}
    model = write_packed(tmp_path / "said", {**strange, **other}, quantization_config={"quant_method": "vptq"})
    assert {each.name for each in model.tensors if each.packed} == set(strange)
    assert model.packed[1, "attn_q"].packing.name == "vptq"
    with pytest.raises(CheckpointError, match=f"m lacks {Q}.weight"):
        write_packed(tmp_path / "silent", {f"{Q}.centroids": ("F16", (1, 8))})


def test_an_output_matrix_that_is_packed_stands_behind_the_layers(tmp_path):
    """The parts of a packed weight lie where the weight would, in families with a file and without."""
    parts = {"lm_head.qweight": ("I32", (1, 32)), "lm_head.scales": ("F16", (1, 32))}
    plain = describe(write_fake(tmp_path / "known"))
    kept = {each.name: (each.dtype, each.shape) for each in plain.tensors if each.name != "lm_head.weight"}
    for kind, names in (("llama", ["LlamaForCausalLM"]), ("unheard-of", ["Unheard"])):
        config = {**plain.checkpoint.config, "model_type": kind, "architectures": names}
        model = describe(write_headers(tmp_path / kind, config, {**kept, **parts}))
        assert {each.name for each in model.by_layer[None] if each.after_layers and each.packed} == set(parts)


@pytest.mark.parametrize(
    "plain",
    [
        {"model.layers.1.self_attn.rotary_emb.inv_freq": ("F32", (2,))},
        {"model.layers.1.self_attn.bias": ("BOOL", (1, 1, 4, 4)), "model.embeddings.position_ids": ("I64", (1, 4))},
        {"model.layers.1.layer_scale": ("BF16", (1,)), "logit_scale": ("F32", ()), "visual.norm.scale": ("F32", (4,))},
        {"visual.gate.weight": ("BF16", (4, 8)), "visual.gate.biases": ("BF16", (4,)), "visual.pos": ("BF16", (4,))},
        {
            "visual.pos": ("BF16", (4,)),
            "visual.pos_scale": ("BF16", (4,)),
            "audio.codebooks": ("F32", (2, 4)),
        },
        {"visual.num_blocks": ("F32", ()), "visual.gate.scales": ("F32", (4,))},
    ],
    ids=str,
)
def test_plain_numbers_are_not_taken_for_packed_ones(tmp_path, plain):
    """Buffers, gains and codebooks of a model's own make no weight packed."""
    model = describe(write_fake(tmp_path, extra=plain))
    assert (model.packed, model.quantization) == ({}, None)
    assert not any(each.packed for each in model.tensors)


@pytest.mark.parametrize("dtype", ["F8_E4M3", "F8_E5M2", "F8_E8M0", "F4", "I8", "U8", "U32"])
def test_a_weight_of_few_bits_is_packed_even_if_nothing_else_says_so(tmp_path, dtype):
    """Integers and floats of 8 bits or fewer are no weights to combine, whatever lies beside them."""
    model = write_packed(tmp_path, {f"{Q}.weight": (dtype, (16, 8))})
    assert model.packed[1, "attn_q"].stored == (f"{Q}.weight",)


@pytest.mark.parametrize("key", ["quantization_config", "compression_config"])
@pytest.mark.parametrize("said", ["gptq", ["gptq"], 4, True])
def test_a_word_on_packing_that_cannot_be_understood_is_refused(tmp_path, key, said):
    """What is no mapping says nothing of how weights are packed, and no program loads the model."""
    with pytest.raises(CheckpointError) as caught:
        describe(write_fake(tmp_path, **{key: said}))
    assert caught.value.what == f"m/config.json says {key} = {show(said)}, which is no mapping."
    assert caught.value.remedy == "take config.json from the model's page again."
    assert describe(write_fake(tmp_path, quantization=said)).quantization is None


@pytest.mark.parametrize("kind", PARTS)
def test_every_way_of_packing_has_words_of_its_own(kind):
    """The refusal names model, way of packing and tensors, says what they mean, and what to do instead."""
    weight = next(iter(find_packed({}, store(PARTS[kind][1]), "org/model").values()))
    error = refuse_packed(weight, into=False, where="recipe.yml, line 6")
    assert error.what == f"org/model holds {weight.stored[0]} packed ({kind}), and it cannot be merged."
    assert error.where == "recipe.yml, line 6"
    assert error.why is not None and error.why.startswith(weight.packing.reason)
    assert weight.stored[1] in error.why
    assert error.remedy is not None and "in bfloat16, float16 or float32" in error.remedy
    assert "filter it out of the merge" in error.remedy
    assert refuse_packed(weight, into=True, where=None).what.endswith("and nothing can be merged into it.")


def test_the_text_of_a_refusal():
    """A packed weight is refused with what, why and what to do."""
    weight = next(iter(find_packed({}, store(PARTS["FP8"][1]), "m").values()))
    assert str(refuse_packed(weight, into=False, where=None)) == (
        "m holds model.layers.1.self_attn.q_proj.weight packed (FP8), and it cannot be merged.\n"
        "  why: its 8-bit floats mean something only when they are multiplied by the scales beside them; here they are "
        "model.layers.1.self_attn.q_proj.weight_scale_inv.\n"
        "  do: load it with transformers and FineGrainedFP8Config(dequantize=True), save it with save_pretrained, and "
        "merge that; or merge the model it was made from, in bfloat16, float16 or float32, and quantise the result; or "
        "filter it out of the merge."
    )
