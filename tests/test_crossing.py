"""Across families: a model rewritten into another family's layout, by nothing but a merge, computes the same."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.fake_checkpoints import everywhere, write_fake
from tests.small_merges import load_weights, write_model
from tests.tiny_models import SIZES, write_tiny_model
from xmerge.architecture import ResolvedArchitecture, ResolvedModel, describe_model, list_families
from xmerge.config import parse_config
from xmerge.planning.alignment import Aligner
from xmerge.planning.plan import Source
from xmerge.run import merge
from xmerge.sources import Location

TEXT = torch.tensor([[5, 17, 3, 250, 9, 88, 1, 40, 12, 7]])
WHOLE = "parameters: {t: 1}"
SQUARE = {"num_attention_heads": 4, "num_key_value_heads": 4, "hidden_size": 64, "head_dim": 16}
"""For families whose heads fill the hidden size."""
NO_TIE = {"tie_word_embeddings": False}
GRANITE = {"attention_multiplier": 0.21, "residual_multiplier": 0.4, "embedding_multiplier": 1.0, "logits_scaling": 1.0}


@dataclass(frozen=True)
class Crossing:
    """A donor, a target of another family that can compute the same, and what is asked of the merge."""

    donor: str
    target: str
    donor_options: Mapping[str, Any] = field(default_factory=dict)
    target_options: Mapping[str, Any] = field(default_factory=dict)
    recipe: str = WHOLE
    zeroed: str | None = None
    """A part of the names of what only the target has, and has no effect where it is 0."""
    prepare: Callable[[dict[str, torch.Tensor]], None] | None = None
    """A change to the donor's weights without which the target could not compute the same."""
    finish: Callable[[dict[str, torch.Tensor]], None] | None = None
    """What no merge is asked to do, done to the output's weights."""


def share_norms(weights: dict[str, torch.Tensor]) -> None:
    """One norm before attention and feed-forward, as a parallel block of the other family has."""
    for name in [name for name in weights if "post_attention_layernorm" in name]:
        weights[name] = weights[name.replace("post_attention_layernorm", "input_layernorm")].clone()


def zero(part: str) -> Callable[[dict[str, torch.Tensor]], None]:
    """A change that sets to 0 every tensor whose name has a part."""

    def change(weights: dict[str, torch.Tensor]) -> None:
        for name, weight in weights.items():
            if re.search(part, name):
                weight.zero_()

    return change


def scale_embedding(weights: dict[str, torch.Tensor]) -> None:
    """Gemma multiplies its embeddings by the root of the hidden size when it reads them."""
    if "model.embed_tokens.weight" in weights:
        weights["model.embed_tokens.weight"] *= SIZES["hidden_size"] ** 0.5


CROSSINGS = {
    "separate to fused": Crossing("llama", "phi3"),
    "fused to separate": Crossing("phi3", "llama"),
    "half to interleaved rotation, and fused": Crossing(
        "llama", "glm", {}, {"attention_bias": False, "partial_rotary_factor": 1.0}
    ),
    "interleaved to half rotation": Crossing("glm", "llama", {"attention_bias": False, "partial_rotary_factor": 1.0}),
    "biases turn with their rows": Crossing("glm", "qwen2", {"attention_bias": True, "partial_rotary_factor": 1.0}),
    "a parallel block with interleaved rotation to one with halves": Crossing(
        "cohere",
        "stablelm",
        {"logit_scale": 1.0, "layer_norm_eps": 1e-5, "hidden_size": 48, **NO_TIE},
        {
            "use_parallel_residual": True,
            "partial_rotary_factor": 1.0,
            "layer_norm_eps": 1e-5,
            "use_qkv_bias": False,
            "hidden_size": 48,
        },
        zeroed="norm.bias",
    ),
    "norms of 1+w": Crossing(
        "gemma",
        "llama",
        {"rms_norm_eps": 1e-6},
        {"hidden_act": "gelu_pytorch_tanh", "rms_norm_eps": 1e-6},
        finish=scale_embedding,
    ),
    "head by head to separate": Crossing(
        "gpt_neox",
        "phi",
        {"rotary_pct": 0.25, "hidden_act": "gelu_new", "layer_norm_eps": 1e-5, "use_parallel_residual": True, **SQUARE},
        {"partial_rotary_factor": 0.25, "hidden_act": "gelu_new", "layer_norm_eps": 1e-5, **SQUARE},
        zeroed="lm_head.bias",
        prepare=share_norms,
    ),
    "separate to head by head": Crossing(
        "phi",
        "gpt_neox",
        {"partial_rotary_factor": 0.25, "hidden_act": "gelu_new", "layer_norm_eps": 1e-5, **SQUARE},
        {"rotary_pct": 0.25, "hidden_act": "gelu_new", "layer_norm_eps": 1e-5, "use_parallel_residual": True, **SQUARE},
        zeroed=None,
        prepare=lambda weights: weights.update({"lm_head.bias": torch.zeros_like(weights["lm_head.bias"])}),
        finish=share_norms,
    ),
    "experts by other names": Crossing(
        "mixtral",
        "qwen2_moe",
        {"num_local_experts": 4, "num_experts_per_tok": 2},
        {
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": SIZES["intermediate_size"],
            "shared_expert_intermediate_size": 16,
            "norm_topk_prob": True,
            "rms_norm_eps": 1e-5,
        },
        recipe=f"{WHOLE}\non_mismatch: base",
        zeroed=r"proj.bias|shared_expert.down_proj",
    ),
    "scales folded into the weights": Crossing(
        "granite", "llama", {**GRANITE, **NO_TIE}, recipe=f"{WHOLE}\nfolds: [softmax_scale, residual_scale]"
    ),
    "scales folded into fused weights": Crossing(
        "granite", "phi3", {**GRANITE, **NO_TIE}, recipe=f"{WHOLE}\nfolds: [softmax_scale, residual_scale]"
    ),
    "the gains of the norms folded into what reads them": Crossing(
        "qwen2",
        "llama",
        {},
        {"attention_bias": True},
        recipe="parameters: {t: [{filter: layernorm, value: 0}, {value: 1}]}\nfolds: [input_norm]",
        zeroed="o_proj.bias",
    ),
    "gains of another convention folded": Crossing(
        "gemma",
        "phi3",
        {"rms_norm_eps": 1e-5},
        {"hidden_act": "gelu_pytorch_tanh"},
        recipe="parameters: {t: [{filter: layernorm, value: 0}, {value: 1}]}\nfolds: [input_norm]",
        finish=scale_embedding,
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("crossing", CROSSINGS.values(), ids=CROSSINGS)
def test_a_model_in_another_family_s_layout_computes_the_same(tmp_path: Path, crossing: Crossing):
    """The donor's logits and those of the target's class on the merged weights agree to 1e-5."""
    common = {"dtype": "float32", "head_dim": 12, "rope_theta": 10000.0, "rms_norm_eps": 1e-5}
    donor = write_tiny_model(crossing.donor, tmp_path / "donor", seed=1, **{**common, **crossing.donor_options})
    target = write_tiny_model(crossing.target, tmp_path / "target", seed=2, **{**common, **crossing.target_options})
    change_weights(donor, crossing.prepare)
    change_weights(target, zero(crossing.zeroed) if crossing.zeroed else None)
    rewrite(tmp_path, crossing.recipe)
    change_weights(tmp_path / "out", crossing.finish)
    ours, theirs = compute(tmp_path / "out"), compute(donor)
    assert theirs.std() > 0.01, "a model that says nothing agrees with everything"
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5 * max(1.0, theirs.abs().max().item()))
    with pytest.raises(AssertionError):
        torch.testing.assert_close(compute(target), theirs, rtol=0, atol=1e-2)


def test_heads_join_the_group_of_the_keys_they_share(tmp_path: Path):
    """InternLM2's one tensor has for each key head the query heads that read it, the key and the value."""
    sizes = {"hidden": 16, "heads": 6, "kv_heads": 2, "head_dim": 4, "layers": 1}
    llama = write_model(tmp_path / "donor", seed=1, sizes=sizes, hidden_size=24)
    write_model(tmp_path / "target", "internlm2", seed=2, sizes=sizes, hidden_size=24)
    rewrite(tmp_path, WHOLE)
    given = load_file(llama / "model.safetensors")
    q, k, v = (given[f"model.layers.0.self_attn.{each}_proj.weight"].split(4) for each in "qkv")
    # Query head h reads key head h // 3.
    expected = torch.cat([*q[:3], k[0], v[0], *q[3:], k[1], v[1]])
    assert torch.equal(load_weights(tmp_path / "out")["model.layers.0.attention.wqkv.weight"], expected)


SMALL = {"layers": 1, "vocab": 6, "ffn": 6, "experts": 2, "expert_ffn": 6, "shared_ffn": 4, "positions": 4}
SHAPES = {
    "every head its own keys": {"hidden": 16, "heads": 4, "kv_heads": 4, "head_dim": 4},
    "two heads share keys": {"hidden": 16, "heads": 4, "kv_heads": 2, "head_dim": 4},
}


@pytest.fixture(scope="module", params=list(SHAPES.values()), ids=list(SHAPES))
def models(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> list[ResolvedModel]:
    """A model of every family at the same sizes, as far as it has them, with everything that only headers tell."""
    folder = tmp_path_factory.mktemp("families")
    found = []
    for each in list_families():
        write_fake(
            folder / each.family,
            each.family,
            sizes={**SMALL, **request.param},
            maybe=everywhere,
            tie_word_embeddings=False,
        )
        location = Location(reference=each.family, label=each.family, folder=folder / each.family)
        found.append(describe_model(location))
    return found


@pytest.mark.slow
def test_every_conversion_is_undone_by_the_way_back(models: list[ResolvedModel]):
    """Whatever of one family fits into another, exactly or not, comes back element by element."""
    maps = {(ours.label, theirs.label): map_elements(ours, theirs) for ours in models for theirs in models}
    for ours, theirs in itertools.product(models, models):
        there, back = maps[ours.label, theirs.label], maps[theirs.label, ours.label]
        crossed = 0
        for name, origins in there.items():
            places = np.arange(len(origins))
            for number in np.unique(origins[origins >= 0] >> BITS):
                origin = theirs.tensors[number].name
                taken = (origins >> BITS == number) & (origins >= 0)
                if origin in back:
                    returned = back[origin][origins[taken] & LOW]
                    known = returned >= 0
                    own = next(each for each, spec in enumerate(ours.tensors) if spec.name == name)
                    assert (returned[known] == (own << BITS) + places[taken][known]).all(), (name, origin)
                    crossed += int(known.sum())
        assert crossed > 0 or ours.label != theirs.label


BITS = 32
LOW = (1 << BITS) - 1


def map_elements(target: ResolvedModel, donor: ResolvedModel) -> dict[str, np.ndarray]:
    """For each of the target's tensors, where its elements come from: tensor's number and element, or -1."""
    aligner = Aligner(ResolvedArchitecture((target, donor), (), 0))
    numbers = {spec.name: number for number, spec in enumerate(donor.tensors)}
    found = {}
    for spec in target.tensors:
        fit = aligner.align(spec, 1, spec.layer)
        if not isinstance(fit, Source):
            continue
        origins = np.full(math.prod(spec.shape), -1, dtype=np.int64)
        for segment in fit.segments:
            stored = donor.checkpoint.tensors[segment.tensor]
            order = segment.order or ((segment.elements, 1, 1),)
            grid = np.indices([count for count, _, _ in order]).reshape(len(order), -1)
            from_, to = (sum(each * loop[side] for each, loop in zip(grid, order, strict=True)) for side in (1, 2))
            assert (origins[segment.at + to] == -1).all(), "an element comes from two places"
            first = (segment.offset - stored.offset) // 2
            origins[segment.at + to] = (numbers[segment.tensor] << BITS) + first + from_
        found[spec.name] = origins
    return found


def rewrite(folder: Path, recipe: str) -> None:
    """Merge donor into target so that nothing of the target stays that the donor has too."""
    text = f"merge_method: slerp\nbase_model: target\nmodels: [{{model: target}}, {{model: donor}}]\n{recipe}\n"
    merge(parse_config(text, "recipe.yml", folder), folder / "out", workers=1, trial=False)


def change_weights(folder: Path, change: Callable[[dict[str, torch.Tensor]], None] | None) -> None:
    """Change a checkpoint's weights in place."""
    for path in sorted(folder.glob("*.safetensors")) if change else ():
        assert change is not None
        weights = load_file(path)
        before = {name: weight.clone() for name, weight in weights.items()}
        change(weights)
        if any(not torch.equal(weights[name], before[name]) for name in before):
            save_file(weights, path, {"format": "pt"})


def compute(folder: Path) -> torch.Tensor:
    """What the model in a folder answers to a short text, in float32."""
    from transformers import AutoModelForCausalLM
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.no_grad():
        logits: torch.Tensor = model(TEXT).logits
    return logits
