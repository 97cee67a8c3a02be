"""A person's mistakes, through the command line: refused before anything is written, in words that help."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import pytest

from tests.fake_checkpoints import write_fake

SLERP = """\
merge_method: slerp
base_model: base
models:
- model: base
- model: donor
parameters:
  t: 0.5
"""
ACROSS = """\
merge_method: slerp
base_model: Llama-3-8B
unlisted_layers: base
slices:
- sources:
  - model: Llama-3-8B
    layer_range: [5, 6]
  - model: Qwen2.5-7B
    layer_range: [10, 11]
  parameters:
    t:
    - filter: mlp.gate_proj.weight
      value: 0.5
    - filter: mlp.up_proj.weight
      value: 0.5
    - filter: mlp.down_proj.weight
      value: 0.5
"""
SLICES = """\
merge_method: slerp
base_model: base
slices:
- sources:
  - model: base
    layer_range: [0, 4]
  - model: donor
    layer_range: [0, 4]
parameters:
  t: 0.5
"""
LINEAR = """\
merge_method: linear
models:
- model: base
  parameters: {weight: 0.5}
- model: donor
  parameters: {weight: 0.5}
"""


def test_an_unknown_key_is_refused(refuse):
    """An unknown key is named with its line and the key that was meant."""
    refuse(SLERP.replace("parameters:", "paramters:"), 2, "line 6", "'paramters'", "'parameters'")


def test_an_unknown_method_is_refused(refuse):
    """An unknown method is named with the nearest one there is."""
    refuse(SLERP.replace("slerp", "slurp", 1), 2, "line 1", "'slurp'", "'slerp'")


def test_an_unknown_parameter_is_refused(refuse):
    """A parameter that the method does not have is named with its place and the nearest one."""
    refuse(SLERP.replace("  t:", "  tt:"), 2, "line 7", "slerp has no parameter 'tt'", "'t'")


def test_a_missing_weight_is_refused(refuse):
    """A model without a weight is named with the place where it belongs."""
    without = LINEAR.replace("- model: donor\n  parameters: {weight: 0.5}", "- model: donor")
    refuse(without, 2, "linear needs 'weight' for every model, and donor has none", "parameters")


def test_a_missing_base_is_refused(refuse):
    """A method that measures from a base refuses to choose one."""
    refuse(SLERP.replace("base_model: base\n", ""), 2, "slerp needs a base", "'base_model'")


def test_a_filter_without_a_match_is_refused(refuse):
    """A filter that no tensor's name contains is named with its line and the nearest part of a name."""
    recipe = SLERP.replace("t: 0.5", "t: [{filter: q_porj, value: 0.5}]")
    refuse(recipe, 2, "line 7", "'q_porj' matches no tensor", "'q_proj'")


@pytest.mark.parametrize(
    ("range_", "named"),
    [
        ("[1, 5]", ("ends at 5", "donor has 4 layers")),
        ("[4, 0]", ("[4, 0] covers no layer", "[0, 4]")),
        ("[1, 4]", ("donor gives 3 layers [1, 4]", "base gives 4 [0, 4]")),
        ("[-1, 3]", ("[-1, 3] starts below",)),
    ],
)
def test_a_wrong_layer_range_is_refused(refuse, range_, named):
    """A range out of bounds, reversed, or unequal to the others' is named with its line and what would be right."""
    recipe = SLICES.replace("donor\n    layer_range: [0, 4]", f"donor\n    layer_range: {range_}")
    refuse(recipe, 2, "slices[0].sources[1].layer_range", "line 8", *named)


def test_the_same_model_twice_in_a_slice_is_no_mistake(place, xmerge):
    """Two ranges of one model can meet in a slice."""
    twice = SLICES.replace("donor\n    layer_range: [0, 4]", "base\n    layer_range: [2, 4]")
    (place / "recipe.yml").write_text(twice.replace("[0, 4]", "[0, 2]"), encoding="utf-8")
    said = xmerge("plan", "recipe.yml")
    assert said.exit_code == 0, said.err


def test_a_wrong_dtype_is_refused(refuse):
    """A dtype that no merge can be written in is named with those that can."""
    refuse(SLERP + "dtype: int8\n", 2, "line 8", "'int8'", "bfloat16, float16, float32")


def test_a_shape_that_does_not_fit_is_refused(refuse, place):
    """Shapes that differ are named with both models, both shapes and two ways out."""
    write_fake(place / "donor", intermediate_size=20)
    refuse(SLERP, 2, "12 tensors", "base has [12, 8] (ffn 12, hidden 8)", "donor has [20, 8]", "filter", "on_mismatch")


def test_a_missing_model_is_refused(refuse):
    """A model that is nowhere is named, with the places that were looked at."""
    refuse(SLERP.replace("donor", "./doner"), 3, "there is no model './doner'")


def test_a_truncated_checkpoint_is_refused(refuse, place):
    """A shard that ends too early is named with what it should hold."""
    shard = place / "donor" / "model.safetensors"
    with shard.open("r+b") as file:
        file.truncate(shard.stat().st_size - 1)
    refuse(SLERP, 3, "donor/model.safetensors", "damaged")


def test_a_pickle_only_checkpoint_is_refused(refuse, place):
    """A model that only comes as pickle is never opened; the error says how to convert it."""
    (place / "donor" / "model.safetensors").unlink()
    (place / "donor" / "pytorch_model.bin").write_bytes(b"never read")
    refuse(SLERP, 3, "donor", "pytorch_model.bin", "save_pretrained")


def test_an_output_that_exists_is_refused(place, xmerge):
    """A folder that xmerge did not make is left alone."""
    (place / "recipe.yml").write_text(SLERP, encoding="utf-8")
    (place / "out").mkdir()
    (place / "out" / "thesis.txt").write_text("years of work", encoding="utf-8")
    said = xmerge("merge", "recipe.yml", "out", "--direct")
    assert said.exit_code == 2
    assert "was not made by xmerge" in said.err
    assert (place / "out" / "thesis.txt").read_text(encoding="utf-8") == "years of work"
    assert sorted(os.listdir(place)) == ["base", "donor", "out", "recipe.yml"]


@pytest.mark.parametrize("out", ["base", "donor/merged"])
def test_an_output_that_is_or_lies_in_an_input_is_refused(place, xmerge, out):
    """A merge never writes into a model it reads."""
    (place / "recipe.yml").write_text(SLERP, encoding="utf-8")
    said = xmerge("merge", "recipe.yml", out, "--direct")
    assert said.exit_code == 2
    assert sorted(os.listdir(place / "donor")) == ["config.json", "model.safetensors"]


def test_a_device_that_is_not_there_is_refused(place, xmerge):
    """A device that this machine does not have is named before anything is written."""
    (place / "recipe.yml").write_text(SLERP, encoding="utf-8")
    said = xmerge("merge", "recipe.yml", "out", "--direct", "--device", "cuda:99")
    assert said.exit_code == 2
    assert "cuda:99" in said.err
    assert sorted(os.listdir(place)) == ["base", "donor", "recipe.yml"]


def test_a_configuration_that_cannot_be_read_again_is_refused(place, xmerge):
    """A pipe is empty the second time, and a resumed merge reads the configuration again."""
    os.mkfifo(place / "recipe.yml")
    said = xmerge("merge", "recipe.yml", "out", "--direct")
    assert said.exit_code == 2
    assert "save the configuration to a file" in said.err


@pytest.fixture
def published(tmp_path: Path, monkeypatch) -> Path:
    """Headers of the two models of the example, in their published sizes."""
    keys = ("num_hidden_layers", "hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads")
    for name, family, vocabulary, sizes in (
        ("Llama-3-8B", "llama", 128256, (32, 4096, 14336, 32, 8)),
        ("Qwen2.5-7B", "qwen2", 152064, (28, 3584, 18944, 28, 4)),
    ):
        config: dict[str, Any] = dict(zip(keys, sizes, strict=True))
        write_fake(tmp_path / name, family, vocab_size=vocabulary, head_dim=None, **config)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "recipe.yml").write_text(ACROSS, encoding="utf-8")
    return tmp_path


def test_models_of_other_widths_are_refused_at_once(published, xmerge):
    """Llama-3-8B and Qwen2.5-7B share no shape: refused from headers, with both shapes, the class and two ways out."""
    began = time.perf_counter()
    said = xmerge("plan", "recipe.yml")
    assert time.perf_counter() - began < 5
    assert said.exit_code == 2
    assert said.err == (
        "PlanError: 3 tensors of the output cannot be merged as asked, model.layers.5.mlp.down_proj.weight first.\n"
        "  at: recipe.yml, line 10: slices[0].parameters\n"
        "  why: the models' shapes differ:\n"
        "    class D, needs a bridge: ffn_down: Llama-3-8B has [4096, 14336] (hidden 4096, ffn 14336), "
        "Qwen2.5-7B has [3584, 18944] (hidden 3584, ffn 18944) (tensors: 1)\n"
        "    class D, needs a bridge: ffn_gate: Llama-3-8B has [14336, 4096] (ffn 14336, hidden 4096), "
        "Qwen2.5-7B has [18944, 3584] (ffn 18944, hidden 3584) (tensors: 1)\n"
        "    class D, needs a bridge: ffn_up: Llama-3-8B has [14336, 4096] (ffn 14336, hidden 4096), "
        "Qwen2.5-7B has [18944, 3584] (ffn 18944, hidden 3584) (tensors: 1)\n"
        "  do: choose another donor, because no matrix in the layers of Qwen2.5-7B fits (`xmerge compat` says what "
        "crosses between two models), or set 'on_mismatch: base' to keep the base's there.\n"
    )
    assert sorted(os.listdir(published)) == ["Llama-3-8B", "Qwen2.5-7B", "recipe.yml"]


def test_models_of_other_widths_keep_the_base_s_on_request(published, xmerge):
    """With `on_mismatch: base` the same recipe is planned, and says what stays the base's and why."""
    (published / "recipe.yml").write_text(ACROSS + "on_mismatch: base\n", encoding="utf-8")
    said = xmerge("plan", "recipe.yml", "--json")
    assert said.exit_code == 0, said.err
    made = json.loads(said.out)
    kept = {each["role"]: each for each in made["layers"][6]["tensors"] if each["reason"].startswith("it does not fit")}
    assert set(kept) == {"ffn_down", "ffn_gate", "ffn_up"}
    assert {each["decision"] for layer in made["layers"] for each in layer["tensors"]} == {"keep"}
    assert kept["ffn_up"]["reason"] == (
        "it does not fit (class D): ffn_up: Llama-3-8B has [14336, 4096] (ffn 14336, hidden 4096), Qwen2.5-7B has "
        "[18944, 3584] (ffn 18944, hidden 3584)"
    )
    assert (
        "asked for and kept from the base because the donor's does not fit: ffn_down (1), ffn_gate (1), ffn_up (1)."
        in made["warnings"]
    )
    assert "nothing is merged: every tensor of the output is Llama-3-8B's own." in made["warnings"]


def test_a_merge_lists_what_stayed_the_base_s(place, xmerge):
    """With `on_mismatch: base` a merge runs, and its report and card list what did not fit beside what was merged."""
    write_fake(place / "donor", "qwen2", intermediate_size=20, vocab_size=50)
    recipe = SLERP.replace("  t: 0.5", "  t: [{filter: proj.weight, value: 0.5}]")
    (place / "recipe.yml").write_text(recipe + "on_mismatch: base\n", encoding="utf-8")
    said = xmerge("merge", "recipe.yml", "out", "--direct")
    assert said.exit_code == 0, said.err
    told = "asked for and kept from the base because the donor's does not fit: ffn_down (4), ffn_gate (4), ffn_up (4)"
    assert told in (place / "out" / "README.md").read_text(encoding="utf-8").replace("\\_", "_")
    assert told in " ".join((said.out + said.err).split())


def test_an_unknown_rope_type_is_refused_where_it_matters(place, xmerge):
    """Queries and keys of models that turn them otherwise do not cross if nobody knows how; all else does."""
    write_fake(place / "donor", rope_scaling={"rope_type": "mystery", "factor": 2})
    (place / "recipe.yml").write_text(SLERP, encoding="utf-8")
    said = xmerge("plan", "recipe.yml")
    assert said.exit_code == 2
    assert said.err == (
        "PlanError: 8 tensors of the output cannot be merged as asked, model.layers.0.self_attn.k_proj.weight first.\n"
        "  at: recipe.yml, line 6: parameters\n"
        "  why: the models' tensors do not do the same:\n"
        "    class E, refused: donor/config.json has the rope type 'mystery', and what it does to q and k is unknown; "
        "known are default, dynamic, linear, llama3, longrope, mrope, proportional, su, yarn (tensors: 8)\n"
        "  do: filter the parameters to what fits (mlp.down_proj, mlp.gate_proj, mlp.up_proj, self_attn.o_proj, "
        "self_attn.v_proj), or set 'on_mismatch: base' to keep the base's there.\n"
    )
    assert sorted(os.listdir(place)) == ["base", "donor", "recipe.yml"]
    (place / "recipe.yml").write_text(SLERP + "on_mismatch: base\n", encoding="utf-8")
    assert xmerge("plan", "recipe.yml").exit_code == 0
    write_fake(place / "base", rope_scaling={"rope_type": "mystery", "factor": 2.0})
    (place / "recipe.yml").write_text(SLERP, encoding="utf-8")
    assert xmerge("plan", "recipe.yml").exit_code == 0


def write_config(folder: Path, **config: Any) -> None:
    """Let a config.json say something else, null too, beside weights that stay."""
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text(encoding="utf-8")), **config}), encoding="utf-8")


@pytest.mark.parametrize(
    ("config", "named"),
    [
        ({"hidden_size": None}, "donor/config.json does not say how large 'hidden' is"),
        ({"num_hidden_layers": "4"}, "donor/config.json says num_hidden_layers = '4', which is no size"),
        ({"intermediate_size": 16}, "donor contradicts itself: model.layers.0.mlp.down_proj.weight has shape [8, 12]"),
        ({"num_hidden_layers": 3}, "donor contradicts itself: it holds model.layers.3."),
        ({"rope_theta": "fast"}, "donor/config.json says rope_theta = 'fast', which is no number above 0"),
        ({"rope_scaling": ["yarn", 4]}, "donor/config.json says rope_scaling = ['yarn', 4], which is no mapping"),
        (
            {"layer_types": ["full_attention"]},
            "donor/config.json says layer_types = ['full_attention'], which is",
        ),
        ({"tie_word_embeddings": "no"}, "donor/config.json says tie_word_embeddings = 'no', which is neither true nor"),
        ({"quantization_config": "gptq"}, "donor/config.json says quantization_config = 'gptq', which is no mapping"),
        ({"num_hidden_layers": 10**9}, "donor contradicts itself: its config.json says 1000000000 layers"),
    ],
    ids=str,
)
def test_a_config_json_that_cannot_be_is_refused(refuse, place, config, named):
    """What config.json lacks, contradicts or says in jest is told with file, key, value and what to do."""
    write_config(place / "donor", **config)
    told = refuse(SLERP, 3, named)
    assert "\n  do: " in told


@pytest.mark.parametrize(
    ("config", "kept"),
    [
        ({"head_dim": None}, {"hidden_size": 16}),
        ({"num_key_value_heads": None}, {"num_key_value_heads": 4}),
        ({"rope_theta": None, "rope_scaling": None, "layer_types": None, "quantization_config": None}, {}),
    ],
    ids=str,
)
def test_what_config_json_leaves_out_follows_from_the_rest(place, xmerge, config, kept):
    """head_dim is hidden_size / heads where it is not told, and keys have as many heads as queries."""
    for name in ("base", "donor"):
        write_fake(place / name, **kept)
    write_config(place / "donor", **config)
    (place / "recipe.yml").write_text(SLERP, encoding="utf-8")
    said = xmerge("plan", "recipe.yml", "--json")
    assert said.exit_code == 0, said.err
    tensors = [each for layer in json.loads(said.out)["layers"] for each in layer["tensors"]]
    assert {each["decision"] for each in tensors} == {"merge"}


@pytest.mark.parametrize(
    ("method", "packed"),
    [
        ("bitsandbytes", {"weight": ("U8", (48, 1)), "weight.absmax": ("F32", (2,))}),
        ("gptq", {"qweight": ("I32", (1, 12)), "g_idx": ("I32", (8,))}),
        ("awq", {"qweight": ("I32", (8, 2)), "scales": ("F16", (1, 12))}),
        ("fp8", {"weight": ("F8_E4M3", (12, 8)), "weight_scale_inv": ("F32", (1, 1))}),
        ("mxfp4", {"weight_blocks": ("U8", (12, 4)), "weight_scales": ("U8", (12, 1))}),
        ("compressed-tensors", {"weight_packed": ("U8", (12, 4)), "weight_scale": ("F8_E4M3", (12, 1))}),
    ],
)
@pytest.mark.parametrize("silent", [False, True])
def test_a_quantised_donor_is_refused_by_its_kind(refuse, place, method, packed, silent):
    """Each way of packing is told by its name, with or without a word of config.json, and nothing is written."""
    said: dict[str, Any] = {} if silent else {"quantization_config": {"quant_method": method}}
    parts = {f"model.layers.{n}.mlp.up_proj.{part}": each for n in range(4) for part, each in packed.items()}
    write_fake(place / "donor", extra=parts, without=() if "weight" in packed else "up_proj.weight", **said)
    recipe = SLERP.replace("  t: 0.5", "  t: [{filter: up_proj, value: 0.5}]")
    told = refuse(recipe, 3, "donor holds model.layers.0.mlp.up_proj.", "and it cannot be merged", "\n  do: ")
    assert method.lower() in told.lower()
