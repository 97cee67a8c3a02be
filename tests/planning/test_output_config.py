"""The output's config.json is the target's, with the edits that keep the model loadable and no others."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.fake_checkpoints import Choose
from tests.tiny_models import build_tiny
from xmerge.architecture import describe_model, list_families
from xmerge.architecture.traits import Traits
from xmerge.config import parse_config
from xmerge.run import merge
from xmerge.sources import Location

SLERP = "merge_method: slerp\nbase_model: A\nmodels: [{model: A}, {model: B}]\n"


def stack(*sources: tuple[str, str]) -> str:
    """A passthrough stack of (model, range) pairs."""
    lines = "".join(f"- sources: [{{model: {name}, layer_range: {each}}}]\n" for name, each in sources)
    return f"merge_method: passthrough\nslices:\n{lines}"


def config_of(plan):
    """The output's config.json."""
    return json.loads(plan.config_text)


def test_without_a_reason_nothing_is_edited(bench):
    """Every key of the base, in its order, and none of the donor's."""
    folder = bench.write("A", torch_dtype="bfloat16", rope_theta=5e5, my_key={"b": 1, "a": 2})
    bench.write("B", "qwen3", use_cache=False)
    plan = bench.plan(SLERP + "parameters: {t: 0.5}")
    original = json.loads((folder / "config.json").read_text())
    assert list(config_of(plan).items()) == list(original.items())
    assert plan.config_edits == ()


def test_a_stack_has_its_own_depth(bench):
    """`num_hidden_layers` follows the slices, and the edit is told."""
    bench.write("A", torch_dtype="bfloat16")
    plan = bench.plan(stack(("A", "[0, 3]"), ("A", "[1, 4]")))
    assert config_of(plan)["num_hidden_layers"] == 6
    assert plan.config_edits == ("num_hidden_layers: 4 -> 6",)


def test_lists_with_one_item_a_layer_follow_the_layers(bench):
    """Each layer of a stack keeps the kind that it has in its own model."""
    bench.write("A", "qwen3", layer_types=["full", "slide", "full", "full"], no_rope_layers=[1, 1, 0, 1])
    bench.write("B", "qwen3", layer_types=["x0", "x1", "x2", "x3"], no_rope_layers=[0, 0, 0, 0])
    plan = bench.plan(stack(("A", "[1, 3]"), ("B", "[2, 4]"), ("A", "[0, 1]")))
    assert config_of(plan)["layer_types"] == ["slide", "full", "x2", "x3", "full"]
    assert config_of(plan)["no_rope_layers"] == [1, 0, 0, 0, 1]


def test_a_donor_s_layer_at_its_own_number_brings_its_kind_too(bench):
    """A stack of the base's depth is still a stack: what matters is whose layer stands there."""
    bench.write("A", "qwen3", layer_types=["a", "a", "a", "a"])
    bench.write("B", "qwen3", layer_types=["b", "b", "b", "b"])
    plan = bench.plan(stack(("A", "[0, 2]"), ("B", "[2, 4]")))
    assert config_of(plan)["layer_types"] == ["a", "a", "b", "b"]


def test_merged_layers_keep_the_base_s_kind(bench):
    """Where base and donor meet, the layer is one of the base's kind."""
    bench.write("A", "qwen3", layer_types=["a0", "a1", "a2", "a3"])
    bench.write("B", "qwen3", layer_types=["b0", "b1", "b2", "b3"])
    source = "{{model: {}, layer_range: {}}}"
    plan = bench.plan(
        "merge_method: slerp\nbase_model: A\nparameters: {t: 0.5}\nslices:\n"
        f"- sources: [{source.format('B', '[0, 2]')}, {source.format('A', '[2, 4]')}]\n"
    )
    assert config_of(plan)["layer_types"] == ["a2", "a3"]


def test_a_pattern_that_gemma_implies_is_written_out(bench):
    """Gemma 2 alternates by layer number unless told otherwise, and a stack must be told."""
    bench.write("A", "gemma2")
    plan = bench.plan(stack(("A", "[1, 4]"), ("A", "[1, 2]")))
    assert config_of(plan)["layer_types"] == [
        "full_attention",
        "sliding_attention",
        "full_attention",
        "full_attention",
    ]


def test_a_window_that_begins_at_a_layer_number_is_written_out(bench):
    """Qwen's `max_window_layers` counts layers of the model that was, not of the stack."""
    bench.write("A", "qwen2", use_sliding_window=True, max_window_layers=2)
    plan = bench.plan(stack(("A", "[2, 4]"), ("A", "[0, 1]")))
    assert config_of(plan)["layer_types"] == ["sliding_attention", "sliding_attention", "full_attention"]


def test_layers_listed_by_number_are_found_again(bench):
    """A list of layer numbers names the places where those layers stand now."""
    bench.write("A", mlp_only_layers=[0, 3])
    plan = bench.plan(stack(("A", "[2, 4]"), ("A", "[0, 2]")))
    assert config_of(plan)["mlp_only_layers"] == [1, 2]


def test_a_list_as_long_as_a_deep_model_has_one_item_a_layer(bench):
    """Per-layer lists under names that nobody told of follow too, in models deep enough to be sure."""
    bench.write("A", num_hidden_layers=9, ffn_multipliers=list(range(9)), eos_token_id=[1, 2, 3])
    plan = bench.plan(stack(("A", "[5, 8]")))
    assert config_of(plan)["ffn_multipliers"] == [5, 6, 7]
    assert config_of(plan)["eos_token_id"] == [1, 2, 3]


def test_a_list_that_is_too_short_is_refused(bench):
    """The model contradicts itself, which is the input's fault: exit 3."""
    bench.write("A", layer_types=["full", "full"])
    error = bench.refuse(stack(("A", "[1, 4]")), code=3)
    assert error.what == "A/config.json has 2 items in 'layer_types' and 4 layers."


@pytest.mark.parametrize("key", ["dtype", "torch_dtype"])
def test_the_dtype_is_told_under_the_key_that_is_there(bench, key):
    """Both spellings of transformers are kept, and say what the weights are written in."""
    bench.write("A", **{key: "bfloat16"})
    bench.write("B")
    plan = bench.plan(SLERP + "out_dtype: float16")
    assert config_of(plan)[key] == "float16"
    assert plan.config_edits == (f'{key}: "bfloat16" -> "float16"',)


def test_two_spellings_of_the_dtype_never_disagree(bench):
    """Where config.json has both keys, both are edited."""
    bench.write("A", dtype="bfloat16", torch_dtype="torch.bfloat16")
    bench.write("B")
    plan = bench.plan(SLERP + "out_dtype: float32")
    assert (config_of(plan)["dtype"], config_of(plan)["torch_dtype"]) == ("float32", "float32")


def test_a_dtype_that_is_not_told_is_told(bench):
    """The spelling that every version of transformers reads is used where config.json had none."""
    bench.write("A")
    bench.write("B")
    plan = bench.plan(SLERP)
    assert plan.config_edits == ('torch_dtype: null -> "bfloat16"',)


def test_most_of_the_weights_decide_the_dtype(bench):
    """A few tensors in another dtype do not rename the model's."""
    bench.write("A", torch_dtype="bfloat16", extra={"model.norm.weight": ("F32", [8])})
    bench.write("B")
    assert bench.plan(SLERP).config_edits == ()


def test_vocabulary_and_ties_are_the_base_s(bench):
    """An embedding that is kept keeps its rows, whatever the donor's vocabulary is."""
    bench.write("A", tie_word_embeddings=True)
    bench.write("B", vocab_size=77)
    plan = bench.plan(SLERP + "parameters: {t: [{filter: mlp, value: 0.5}]}")
    assert config_of(plan)["vocab_size"] == 32
    assert config_of(plan)["tie_word_embeddings"] is True


def test_the_tokenizer_goes_along_from_the_base(bench):
    """Side files are those of the target that exist, in a fixed order, and never the donor's."""
    a, b = bench.write("A"), bench.write("B")
    for name in ("vocab.json", "tokenizer.json", "generation_config.json", "notes.txt"):
        (a / name).write_text("{}")
    (b / "merges.txt").write_text("")
    assert bench.plan(SLERP).side_files == ("generation_config.json", "tokenizer.json", "vocab.json")


def test_a_changed_tokenizer_is_another_plan(bench):
    """What the side files hold is part of what the output is."""
    a = bench.write("A")
    bench.write("B")
    (a / "tokenizer.json").write_text('{"model": {}}')
    before = bench.plan(SLERP).fingerprint
    (a / "tokenizer.json").write_text('{"model": {"vocab": {}}}')
    assert bench.plan(SLERP).fingerprint != before


@pytest.mark.parametrize("numbers", [5, "x", {}, True], ids=repr)
def test_numbers_of_layers_that_are_no_list_are_refused(bench, numbers):
    """What another model says where a list of layers belongs is told with its key."""
    bench.write("A", mlp_only_layers=[0])
    bench.write("B", mlp_only_layers=numbers)
    error = bench.refuse(stack(("A", "[0, 2]"), ("B", "[1, 4]")), code=3)
    told = "true" if numbers is True else repr(numbers)
    assert error.what == f"B/config.json says mlp_only_layers = {told}, which is no list of layers."


KINDS_BY_NUMBER: dict[str, dict[str, Any]] = {
    "cohere2": {"sliding_window_pattern": 3},
    "deepseek_v2": {"first_k_dense_replace": 2},
    "deepseek_v3": {"first_k_dense_replace": 2},
    "gemma3": {},
    "gemma3_multimodal": {"sliding_window_pattern": 3},
    "gpt_oss": {},
    "llama4": {"no_rope_layers": [], "interleave_moe_layer_step": 2},
    "qwen2": {"use_sliding_window": True, "max_window_layers": 3},
    "qwen2_moe": {"decoder_sparse_step": 2},
    "qwen3_moe": {"decoder_sparse_step": 2, "mlp_only_layers": [1]},
    "smollm3": {"no_rope_layer_interval": 2, "use_sliding_window": True, "sliding_window": 5},
}
"""family -> what its config.json says where the number of a layer says what kind of layer it is."""
SPARSE = {"llama4": {1, 3, 5}, "qwen2_moe": {1, 3, 5}, "qwen3_moe": {3, 5}}
"""The layers that have experts, of those families that have some without; else all from the third on."""


def choose_experts(layers: set[int]) -> Choose:
    """Which tensors there are where these layers have experts and the others do not."""

    def choose(role: str, layer: int | None) -> bool:
        sparse = role.startswith("ffn_gate_inp") or role.endswith(("_exps", "_shexp"))
        return not role.endswith("_bias") and sparse == (layer in layers)

    return choose


@pytest.mark.parametrize("family", KINDS_BY_NUMBER)
def test_a_layer_of_a_stack_is_what_it_was(bench, family):
    """Whatever a layer's number said of it, the output's config.json says of it in its new place."""
    choose = choose_experts(SPARSE.get(family, {2, 3, 4, 5}))
    bench.write("A", family, num_hidden_layers=6, maybe=choose, **KINDS_BY_NUMBER[family])
    order = [0, 2, 3, 3, 5]
    plan = bench.plan(stack(*(("A", f"[{layer}, {layer + 1}]") for layer in order)))
    model = describe_model(Location(reference="A", label="A", folder=bench.folder / "A"))
    ours = model.traits
    assert ours is not None
    stacked = Traits(ours.family, ours.family.language_config(config_of(plan)), {**ours.axes, "layers": len(order)})
    for place, layer in enumerate(order):
        for tell in (Traits.tell_sight, Traits.rope_of, Traits.has_experts):
            assert tell(stacked, place) == tell(ours, layer), (tell.__name__, place)


def test_a_dense_layer_behind_experts_cannot_be_said(bench):
    """DeepSeek counts the dense layers that come first, so that no config.json describes such a stack."""
    bench.write("A", "deepseek_v3", first_k_dense_replace=1, maybe=choose_experts({1, 2, 3}))
    error = bench.refuse(stack(("A", "[1, 3]"), ("A", "[0, 1]")))
    assert error.what == "layer 0 of the output has experts and layer 2 behind it does not."
    assert error.remedy == "order the slices so that all layers without experts come first."


def test_another_family_s_layer_keeps_its_rotation(bench):
    """A Llama's layer rotates wherever it stands, also where every fourth layer of a SmolLM3 does not."""
    bench.write("A", "smollm3")
    bench.write("B", "llama")
    plan = bench.plan(stack(("A", "[2, 4]"), ("B", "[3, 4]")) + "base_model: A\n")
    assert config_of(plan)["no_rope_layers"] == [1, 0, 1]
    assert config_of(plan)["layer_types"] == ["full_attention"] * 3


@pytest.mark.slow
@pytest.mark.parametrize("family", ["gemma3", "llama4", "qwen3_moe", "smollm3"])
def test_a_model_with_fewer_layers_computes_what_those_layers_compute(tmp_path, family):
    """A stack of a model's layers gives the logits that transformers gives with the same layers taken out by hand."""
    import torch

    described = next(each for each in list_families() if each.family == family)
    kind = {"decoder_sparse_step": 2} if family == "qwen3_moe" else {}
    tiny = build_tiny(described, kind)
    lists = ("layer_types", "no_rope_layers", "moe_layers", "mlp_only_layers")
    said = {key: value for key, value in tiny.config.items() if key not in lists}
    tiny.write(tmp_path / "A", **said)
    order = [1, 3, 3]
    recipe = stack(*(("A", f"[{layer}, {layer + 1}]") for layer in order))
    merge(parse_config(recipe, "recipe.yml", tmp_path), tmp_path / "out", workers=1, trial=False)
    text = torch.arange(3, 17)[None]
    inner = tiny.model.model
    inner.layers = torch.nn.ModuleList([inner.layers[layer] for layer in order])
    tiny.model.config.num_hidden_layers = len(order)
    if getattr(tiny.model.config, "layer_types", None):
        tiny.model.config.layer_types = [tiny.model.config.layer_types[layer] for layer in order]
    stacked = type(tiny.model).from_pretrained(tmp_path / "out", dtype=torch.float32, attn_implementation="eager")
    with torch.no_grad():
        wanted, found = (each(text, use_cache=False).logits for each in (tiny.model, stacked.eval()))
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-5)
