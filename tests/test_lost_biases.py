"""Lost biases: measured beside the weight in the pass that merges it, and told wherever a person looks."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.fake_checkpoints import write_fake
from tests.small_merges import load_weights, make_plan, run, write_model
from tests.tiny_models import write_tiny_llama, write_tiny_qwen2
from xmerge.architecture import ResolvedArchitecture, describe_model
from xmerge.engine import LayerResult, TensorResult
from xmerge.lost_biases import list_bias_losses
from xmerge.methods import list_methods
from xmerge.planning.alignment import Aligner
from xmerge.planning.slices import Input
from xmerge.run import MergeOutcome
from xmerge.sources import Location

RECIPES = {
    "slerp": "merge_method: slerp\nparameters: {t: 0.3}\n",
    "linear": "merge_method: linear\nparameters: {weight: 0.5}\n",
    "the donor's own": "merge_method: slerp\nparameters: {t: 1}\n",
}
TWO = "base_model: base\nmodels: [{model: base}, {model: donor}]\n"
PARTS = {"attn_q": "q_proj", "attn_k": "k_proj", "attn_v": "v_proj"}


def norm_of(weights: dict[str, torch.Tensor], *names: str) -> float:
    """The norm of all numbers of some tensors together, in float64."""
    return math.sqrt(sum(float(weights[name].double().square().sum()) for name in names))


def merge_pair(
    folder: Path, recipe: str, *, base: str = "llama", donor: str = "qwen2", **options: Any
) -> tuple[MergeOutcome, dict[str, Any], dict[str, torch.Tensor]]:
    """What became of a merge, the provenance of its tensors, and the donor's weights; `options` are the donor's."""
    write_model(folder / "base", base, seed=1)
    write_model(folder / "donor", donor, seed=2, **options)
    return merge_models(folder, recipe)


def merge_models(folder: Path, recipe: str) -> tuple[MergeOutcome, dict[str, Any], dict[str, torch.Tensor]]:
    """The same of models that are there."""
    outcome = run(folder, recipe=f"{recipe}{TWO}")
    tensors = json.loads((folder / "out" / "provenance.json").read_text())["tensors"]
    return outcome, tensors, load_file(folder / "donor" / "model.safetensors")


def tell(outcome: MergeOutcome) -> dict[str, str]:
    """The findings about lost biases: component -> text."""
    assert outcome.report is not None and outcome.report.ok
    found = [each for each in outcome.report.findings if each.code == "lost_bias"]
    assert all(each.severity == "warning" for each in found)
    return {each.text.split(" (")[0]: each.text for each in found}


def list_norms(tensors: dict[str, Any], role: str, part: str) -> list[list[float]]:
    """What is told of a component: for each layer the ratio of every donor that loses a bias there."""
    lost = [tensors[f"model.layers.{layer}.self_attn.{part}.weight"]["lost_biases"] for layer in range(4)]
    assert all(each["roles"] == [f"{role}_bias"] for layer in lost for each in layer)
    return [[each["norm_over_weight"] for each in layer] for layer in lost]


def expect_norms(part: str, *donors: dict[str, torch.Tensor]) -> list[list[float]]:
    """The same, worked out from the donors' weights."""
    names = [f"model.layers.{layer}.self_attn.{part}" for layer in range(4)]
    return [[norm_of(donor, f"{name}.bias") / norm_of(donor, f"{name}.weight") for donor in donors] for name in names]


@pytest.mark.slow
@pytest.mark.parametrize("method", [each for each in list_methods() if each.inputs[1] != 1], ids=lambda each: each.name)
def test_a_bias_is_measured_beside_its_weight_whatever_the_method_is(tmp_path, method):
    """Norm of the bias over that of the donor's weight, for each layer and donor; nothing where no bias is lost."""
    donors = [f"donor{number}" for number in range(max(1, method.inputs[0] - (method.base != "optional")))]
    write_model(tmp_path / "base", seed=1)
    for seed, donor in enumerate(donors):
        write_model(tmp_path / donor, "qwen2", seed=2 + seed)
    needed = [f"{each.name}: 0.5" for each in method.parameters if each.default is None]
    named = ", ".join(f"{{model: {name}}}" for name in ["base", *donors])
    recipe = f"merge_method: {method.name}\nbase_model: base\nmodels: [{named}]\nparameters: {{{', '.join(needed)}}}\n"
    run(tmp_path, recipe=recipe)
    tensors = json.loads((tmp_path / "out" / "provenance.json").read_text())["tensors"]
    weights = [load_file(tmp_path / donor / "model.safetensors") for donor in donors]
    for role, part in PARTS.items():
        for told, expected in zip(list_norms(tensors, role, part), expect_norms(part, *weights), strict=True):
            assert told == pytest.approx(expected, rel=5e-5)
    assert "lost_biases" not in tensors["model.layers.0.self_attn.o_proj.weight"]


def test_a_bias_is_measured_where_all_of_the_weight_is_the_donor_s(tmp_path):
    """A weight that is taken over byte for byte loses its bias all the same."""
    _, tensors, donor = merge_pair(tmp_path, RECIPES["the donor's own"])
    told, expected = list_norms(tensors, "attn_q", "q_proj"), expect_norms("q_proj", donor)
    assert [each for layer in told for each in layer] == pytest.approx(
        [r for layer in expected for r in layer], rel=5e-5
    )
    name = "model.layers.1.self_attn.q_proj.weight"
    assert torch.equal(load_weights(tmp_path / "out")[name], donor[name])


def test_the_biases_of_a_fused_tensor_are_measured_together(tmp_path):
    """One tensor for q, k and v loses three biases of a donor that has them apart."""
    _, tensors, donor = merge_pair(tmp_path, RECIPES["slerp"], base="phi3")
    names = [f"model.layers.2.self_attn.{part}" for part in PARTS.values()]
    (told,) = tensors["model.layers.2.self_attn.qkv_proj.weight"]["lost_biases"]
    biases, weights = ([f"{name}.{end}" for name in names] for end in ("bias", "weight"))
    assert told["roles"] == ["attn_q_bias", "attn_k_bias", "attn_v_bias"]
    assert told["norm_over_weight"] == pytest.approx(norm_of(donor, *biases) / norm_of(donor, *weights), rel=5e-5)


@pytest.mark.parametrize("method", ["slerp", "linear"])
@pytest.mark.parametrize("base", ["llama", "phi3"])
def test_a_scale_that_is_folded_into_a_weight_is_in_its_bias_too(tmp_path, method, base):
    """What is compared is what would have been added with what is multiplied: both scaled, each by its own scale."""
    recipe = f"{RECIPES[method]}folds: [softmax_scale]\n"
    _, tensors, donor = merge_pair(
        tmp_path, recipe, base=base, donor="granite", attention_multiplier=2.0, attention_bias=True
    )
    fused = base == "phi3"
    roles = PARTS if fused else {"attn_q": "q_proj"}
    scale = 2.0 * math.sqrt(4)
    squares = {
        end: sum(
            (scale if role == "attn_q" else 1.0) ** 2 * norm_of(donor, f"model.layers.0.self_attn.{part}.{end}") ** 2
            for role, part in roles.items()
        )
        for end in ("bias", "weight")
    }
    (told,) = tensors[f"model.layers.0.self_attn.{'qkv_proj' if fused else 'q_proj'}.weight"]["lost_biases"]
    assert told["norm_over_weight"] == pytest.approx(math.sqrt(squares["bias"] / squares["weight"]), rel=5e-5)


def test_the_loss_is_told_by_component_with_its_layers_and_range(tmp_path):
    """The report and the card name component, layers, donor, base and the smallest and largest ratio."""
    outcome, tensors, _ = merge_pair(tmp_path, RECIPES["slerp"])
    told = tell(outcome)
    assert list(told) == ["attn_k", "attn_q", "attn_v"]
    ratios = [
        tensors[f"model.layers.{layer}.self_attn.q_proj.weight"]["lost_biases"][0]["norm_over_weight"]
        for layer in range(4)
    ]
    assert told["attn_q"] == (
        "attn_q (layers 0-3): the bias of donor is dropped, because base has no place for it; its norm is "
        f"{min(ratios):.3g} to {max(ratios):.3g} times the weight's."
    )
    assert outcome.report is not None
    remedies = [each.remedy for each in outcome.report.findings if each.code == "lost_bias"]
    assert remedies[1] == "leave attn_q out of the merge, or choose a base with biases."
    card = (tmp_path / "out" / "README.md").read_text().replace("\\_", "_")
    assert all(f"- {text}" in card for text in told.values())


def test_only_the_layers_that_lose_something_are_told(tmp_path):
    """Where nothing of the donor's goes in, nothing of it is lost."""
    recipe = "merge_method: slerp\nparameters: {t: [{filter: q_proj, value: [0, 0, 0.5, 0.5]}, {value: 0}]}\n"
    outcome, tensors, _ = merge_pair(tmp_path, recipe)
    told = tell(outcome)
    assert list(told) == ["attn_q"]
    assert told["attn_q"].startswith("attn_q (layers 2-3): ")
    assert "lost_biases" not in tensors["model.layers.0.self_attn.q_proj.weight"]


def change_biases(folder: Path, value: float) -> None:
    """Set every bias of a checkpoint to a number."""
    path = folder / "donor" / "model.safetensors"
    weights = load_file(path)
    for name, tensor in weights.items():
        if name.endswith("_proj.bias"):
            tensor.fill_(value)
    save_file(weights, path, {"format": "pt"})


@pytest.mark.parametrize("recipe", ["slerp", "linear"])
def test_a_bias_that_is_zero_is_no_loss(tmp_path, recipe):
    """Zeros are measured and stated, and nobody is warned."""
    write_model(tmp_path / "base", seed=1)
    write_model(tmp_path / "donor", "qwen2", seed=2)
    change_biases(tmp_path, 0.0)
    outcome, tensors, _ = merge_models(tmp_path, RECIPES[recipe])
    assert tell(outcome) == {}
    assert tensors["model.layers.0.self_attn.q_proj.weight"]["lost_biases"][0]["norm_over_weight"] == 0.0


@pytest.mark.parametrize("recipe", ["slerp", "linear"])
def test_a_bias_that_is_no_number_is_lost_all_the_same(tmp_path, recipe):
    """NaN in what is dropped stops no merge; that it could not be measured is told."""
    write_model(tmp_path / "base", seed=1)
    write_model(tmp_path / "donor", "qwen2", seed=2)
    change_biases(tmp_path, math.nan)
    outcome, tensors, _ = merge_models(tmp_path, RECIPES[recipe])
    assert tell(outcome)["attn_q"].endswith("; how large it is beside the weight cannot be told.")
    assert tensors["model.layers.0.self_attn.q_proj.weight"]["lost_biases"][0]["norm_over_weight"] is None
    assert run(tmp_path, tmp_path / "again", recipe=f"{RECIPES[recipe]}{TWO}").report is not None


def test_of_the_biases_of_all_experts_an_expert_loses_its_own(tmp_path):
    """A weight for each expert in the base stands beside a bias for all of them in the donor."""
    sizes: dict[str, Any] = {
        "num_hidden_layers": 1,
        "num_local_experts": 3,
        "num_experts": 3,
        "moe_intermediate_size": 6,
    }
    write_fake(tmp_path / "base", "qwen3_moe", maybe=lambda role, _: role == "ffn_up_exps", **sizes)
    write_fake(tmp_path / "donor", "gpt_oss", **{**sizes, "intermediate_size": 6})
    models = tuple(
        describe_model(Location(reference=name, label=name, folder=tmp_path / name)) for name in ("base", "donor")
    )
    aligner = Aligner(ResolvedArchitecture(models=models, references=(), target_index=0))
    specs = [each for each in models[0].tensors if each.role == "ffn_up_exps"]
    lost = [aligner.find_lost_biases(spec, 1, Input(model=1, layer=0, parameters={}, path=())) for spec in specs]
    places = [[(bias.tensor, bias.offset, bias.elements) for bias in each.biases] for each in lost if each]
    stored = models[1].checkpoint.tensors["model.layers.0.mlp.experts.gate_up_proj_bias"]
    # Two bytes a number, gate and up in turns, 6 of each for an expert.
    assert places == [[(stored.name, stored.offset + 2 * (12 * expert + 1), 6)] for expert in range(3)]


def test_results_without_a_loss_tell_none(tmp_path):
    """A merge that loses no bias has nothing to say of it."""
    write_model(tmp_path / "base", seed=1)
    write_model(tmp_path / "donor", seed=2)
    plan = make_plan(tmp_path, f"{RECIPES['slerp']}{TWO}")[1]
    results = [
        LayerResult(
            label=layer.label,
            fingerprint="",
            bytes=0,
            sha256="",
            tensors=tuple(TensorResult(name=tensor.name) for tensor in layer.tensors),
            stamps=(),
            device="cpu",
            seconds=0.0,
        )
        for layer in plan.layers
    ]
    assert list_bias_losses(plan, results) == ()


@pytest.mark.slow
def test_a_real_qwen2_into_a_real_llama_loads_and_says_what_it_lost(tmp_path):
    """The output of two checkpoints that transformers wrote is a Llama without biases, and the report warns."""
    write_tiny_llama(tmp_path / "base")
    write_tiny_qwen2(tmp_path / "donor")
    outcome = run(tmp_path, recipe=f"{RECIPES['slerp']}{TWO}", trial=True)
    assert list(tell(outcome)) == ["attn_k", "attn_q", "attn_v"]
    assert outcome.report is not None
    assert dict(outcome.report.facts)["loaded with transformers"].startswith("LlamaForCausalLM, strictly")
    donor = load_file(tmp_path / "donor" / "model.safetensors")
    told = json.loads((tmp_path / "out" / "provenance.json").read_text())["tensors"]
    name = "model.layers.1.self_attn.v_proj"
    expected = norm_of(donor, f"{name}.bias") / norm_of(donor, f"{name}.weight")
    assert told[f"{name}.weight"]["lost_biases"][0]["norm_over_weight"] == pytest.approx(expected, rel=5e-5)
