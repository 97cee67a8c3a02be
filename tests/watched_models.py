"""Tiny models of transformers that are watched while they read a text: what meets in every attention and feed-forward.

Beside them stands what xmerge makes of the file that transformers wrote, to be compared step by step.
"""

from __future__ import annotations

import string
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.tiny_models import SIZES
from xmerge.architecture import ResolvedModel, describe_model
from xmerge.sources import Location

WHOLE_HEADS = {key: value for key, value in SIZES.items() if key != "head_dim"}
LATENT = WHOLE_HEADS | {
    "num_key_value_heads": 4, "kv_lora_rank": 12, "qk_nope_head_dim": 8, "qk_rope_head_dim": 4, "v_head_dim": 6,
    "first_k_dense_replace": 1, "moe_intermediate_size": 20, "n_routed_experts": 4, "num_experts_per_tok": 2,
    "n_group": 2, "topk_group": 1,
}  # fmt: skip
EYES = {"num_hidden_layers": 1, "hidden_size": 16, "num_attention_heads": 2, "image_size": 28, "patch_size": 14}
SPARSE = {"num_local_experts": 4, "intermediate_size_mlp": 90, "interleave_moe_layer_step": 2, "attention_bias": True}
MIXED = SIZES | SPARSE | {"no_rope_layers": [1, 0, 1], "layer_types": None}


@dataclass(frozen=True)
class Case:
    """A tiny model that transformers can build, and where its layers are."""

    family: str
    model_type: str
    config: dict[str, Any]
    layers: str
    attention: str = "self_attn"
    feed_forward: str = "mlp"


def wrap(text: dict[str, Any], eyes: dict[str, Any]) -> dict[str, Any]:
    """The config.json of a wrapper."""
    return {"text_config": text, "vision_config": eyes, "tie_word_embeddings": False}


def make_falcon(family: str, **config: Any) -> Case:
    """A Falcon of one of its layouts."""
    return Case(family, "falcon", WHOLE_HEADS | config, "transformer.h", "self_attention")


def make_llama4(**config: Any) -> Case:
    """A Llama 4 of which one layer has experts and another one no rotation."""
    return Case("llama4", "llama4_text", MIXED | config, "model.layers", feed_forward="feed_forward")


QWEN_TEXT = WHOLE_HEADS | {"rope_parameters": {"rope_type": "default", "rope_theta": 5e5, "mrope_section": [2, 2, 1]}}
QWEN_EYES = {"depth": 1, "num_heads": 2}
LLAMA_EYES = {"intermediate_size": 24, "vision_output_dim": 16, "projector_input_dim": 16, "projector_output_dim": 16}
NEOX = ("gpt_neox", "gpt_neox")
WRAPPED = "model.language_model.layers"
PER_HEAD = {"multi_query": False, "bias": True, "parallel_attn": False}
PER_GROUP = {"new_decoder_architecture": True, "num_kv_heads": 2}
CASES = {
    "gpt_neox": Case(*NEOX, WHOLE_HEADS | {"rotary_pct": 0.4}, "gpt_neox.layers", "attention"),
    "gpt_neox, sequential": Case(
        *NEOX, WHOLE_HEADS | {"use_parallel_residual": False}, "gpt_neox.layers", "attention"
    ),
    "gpt2": Case("gpt2", "gpt2", WHOLE_HEADS, "transformer.h", "attn"),
    "gpt2, no scale": Case(
        "gpt2", "gpt2", WHOLE_HEADS | {"scale_attn_weights": False, "n_inner": 52}, "transformer.h", "attn"
    ),
    "falcon": make_falcon("falcon"),
    "falcon, sequential": make_falcon("falcon", parallel_attn=False, bias=True),
    "falcon_old": make_falcon("falcon_old", **PER_HEAD),
    "falcon_old, alibi": make_falcon("falcon_old", **PER_HEAD, alibi=True),
    "falcon_new": make_falcon("falcon_new", **PER_GROUP, bias=True),
    "falcon2": make_falcon("falcon2", **PER_GROUP, num_ln_in_parallel_attn=1),
    "llama4": make_llama4(),
    "llama4, no norm": make_llama4(use_qk_norm=False),
    "llama4_multimodal": Case(
        "llama4_multimodal", "llama4", wrap(MIXED, EYES | LLAMA_EYES), "language_model.model.layers",
        feed_forward="feed_forward",
    ),
    "gpt_oss": Case(
        "gpt_oss", "gpt_oss",
        SIZES | {"num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 3,
                 "rope_parameters": {"rope_type": "default", "rope_theta": 150000.0}},
        "model.layers",
    ),
    "mistral3": Case(
        "mistral3", "mistral3",
        wrap(SIZES | {"model_type": "mistral", "sliding_window": None},
             EYES | {"model_type": "pixtral", "head_dim": 8, "intermediate_size": 24}),
        WRAPPED,
    ),
    "qwen2_vl": Case(
        "qwen2_vl", "qwen2_vl", wrap(QWEN_TEXT, QWEN_EYES | {"embed_dim": 16, "hidden_size": 40}), WRAPPED
    ),
    "qwen2_5_vl": Case(
        "qwen2_5_vl", "qwen2_5_vl",
        wrap(QWEN_TEXT, QWEN_EYES | {"hidden_size": 16, "out_hidden_size": 40, "intermediate_size": 24}), WRAPPED,
    ),
    "deepseek_v2": Case(
        "deepseek_v2", "deepseek_v2", LATENT | {"q_lora_rank": 16, "attention_bias": True, "mlp_bias": True},
        "model.layers",
    ),
    "deepseek_v2, whole queries": Case("deepseek_v2", "deepseek_v2", LATENT | {"q_lora_rank": None}, "model.layers"),
    "deepseek_v3": Case("deepseek_v3", "deepseek_v3", LATENT | {"q_lora_rank": 16}, "model.layers"),
}  # fmt: skip
LATENT_CASES = [name for name in CASES if name.startswith("deepseek")]
SPARSE_CASES = [name for name in CASES if name.startswith(("deepseek", "llama4", "gpt_oss"))]
WITH_HEADS = [name for name in CASES if name not in LATENT_CASES]
DENSE = [name for name in CASES if name != "gpt_oss"]
TOKENS = [5, 17, 3, 250, 9, 44]
AXES = ("experts", "kv_heads", "group", "heads", "head_dim", "expert_ffn", "shared_ffn", "ffn", "hidden")
"""The order in which numbers are compared."""


@dataclass
class Step:
    """What went through one layer."""

    entered: torch.Tensor
    """[tokens, hidden]"""
    attended: tuple[torch.Tensor, torch.Tensor] = field(init=False)
    """What attention read and gave."""
    thought: tuple[torch.Tensor, torch.Tensor] = field(init=False)
    """What the feed-forward read and gave."""


@dataclass
class Call:
    """What met in one attention: [heads, tokens, head_dim] each."""

    query: torch.Tensor
    key: torch.Tensor
    value: torch.Tensor
    scale: float | None
    window: int | None


@dataclass
class Run:
    """One text through one model, with its file."""

    case: Case
    folder: Path
    network: Any
    file: ResolvedModel
    weights: dict[str, torch.Tensor]
    steps: list[Step]
    calls: list[Call]
    logits: torch.Tensor

    def read(self, role: str, layer: int | None = None, expert: int = 0) -> tuple[torch.Tensor, tuple[str, ...]]:
        """The numbers of a role as its loops say, with their axes."""
        found = self.file.by_role[layer, role]
        spec, part = found[expert if len(found) > 1 else 0]
        sizes, strides = [count for _, count, _ in part.loops], [step for _, _, step in part.loops]
        numbers = torch.as_strided(self.weights[spec.name], sizes, strides, part.offset)
        return numbers, tuple(axis for axis, _, _ in part.loops)

    def has(self, role: str, layer: int | None = None) -> bool:
        """Whether something in the file does this."""
        return (layer, role) in self.file.by_role

    def expand(self, x: torch.Tensor, role: str, layer: int | None = None, expert: int = 0) -> torch.Tensor:
        """A matrix of this role on [tokens, hidden], with its bias: [tokens, its other axes in the order of AXES]."""
        return self._apply(x, ("hidden",), role, layer, expert)

    def shrink(self, x: torch.Tensor, role: str, layer: int | None, expert: int = 0) -> torch.Tensor:
        """A matrix of this role on all its axes but `hidden`."""
        axes = [axis for axis in self.read(role, layer)[1] if axis not in ("hidden", "experts")]
        return self._apply(x, sorted(axes, key=AXES.index), role, layer, expert)

    def _apply(self, x: torch.Tensor, over: Sequence[str], role: str, layer: int | None, expert: int) -> torch.Tensor:
        weight, axes = self._of_expert(role, layer, expert)
        left = sorted((axis for axis in axes if axis not in over), key=AXES.index)
        letter = dict(zip(AXES, string.ascii_lowercase, strict=False))
        told = "".join(letter[axis] for axis in axes)
        rule = f"t{''.join(letter[axis] for axis in over)},{told}->t{''.join(letter[axis] for axis in left)}"
        given = torch.einsum(rule, x, weight)
        if self.has(f"{role}_bias", layer):
            bias, bias_axes = self._of_expert(f"{role}_bias", layer, expert)
            given = given + bias.permute([bias_axes.index(axis) for axis in left])
        return given

    def _of_expert(self, role: str, layer: int | None, expert: int) -> tuple[torch.Tensor, tuple[str, ...]]:
        numbers, axes = self.read(role, layer, expert)
        if "experts" not in axes or not role.removesuffix("_bias").endswith("_exps"):
            return numbers, axes
        at = axes.index("experts")
        return numbers.select(at, expert), (*axes[:at], *axes[at + 1 :])

    def norm(self, x: torch.Tensor, role: str, layer: int | None = None) -> torch.Tensor:
        """The norm of this role, as the traits say what norms do."""
        traits = self.file.traits
        assert traits is not None
        if traits.family.norm == "layer":
            x = x - x.mean(-1, keepdim=True)
        normed = x * torch.rsqrt(x.square().mean(-1, keepdim=True) + traits.tell("norm_eps"))
        bias = self.read(f"{role}_bias", layer)[0] if self.has(f"{role}_bias", layer) else 0
        return normed * self.read(role, layer)[0] + bias


@contextmanager
def watch_attention(network: Any, calls: list[Call]) -> Iterator[None]:
    """Write down what meets in attention, and let every head give its values as they are."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import eager_mask

    def attend(module: Any, query: Any, key: Any, value: Any, mask: Any, scaling: Any = None, **more: Any) -> Any:
        calls.append(Call(query[0], key[0], value[0], scaling, more.get("sliding_window")))
        return value.repeat_interleave(query.shape[1] // value.shape[1], dim=1).transpose(1, 2).contiguous(), None

    def attend_alone(query: Any, key: Any, value: Any, **_: Any) -> Any:
        return attend(None, query, key, value, None)[0].transpose(1, 2)

    AttentionInterface.register("watched", attend)
    AttentionMaskInterface.register("watched", eager_mask)
    with pytest.MonkeyPatch.context() as patch:
        if network.config.model_type == "falcon":  # It has no interface, and calls torch itself.
            patch.setattr(torch.nn.functional, "scaled_dot_product_attention", attend_alone)
        else:
            for config in (network.config, getattr(network.config, "text_config", network.config)):
                config._attn_implementation = "watched"
        yield


def watch_layers(layers: Any, case: Case, steps: list[Step]) -> None:
    """Write down what every layer reads, and what its two halves read and give."""

    def see(what: str) -> Callable[..., None]:
        def hook(_: Any, args: Any, kwargs: Any, output: Any) -> None:
            x = args[0] if args else kwargs["hidden_states"]
            given = output[0] if isinstance(output, tuple) else output
            setattr(steps[-1], what, (x.reshape(-1, x.shape[-1]), given.reshape(-1, given.shape[-1]).clone()))

        return hook

    def enter(_: Any, args: Any, kwargs: Any) -> None:
        steps.append(Step((args[0] if args else kwargs["hidden_states"])[0]))

    for layer in layers:
        layer.register_forward_pre_hook(enter, with_kwargs=True)
        layer.get_submodule(case.attention).register_forward_hook(see("attended"), with_kwargs=True)
        layer.get_submodule(case.feed_forward).register_forward_hook(see("thought"), with_kwargs=True)


def build_network(case: Case) -> Any:
    """A tiny model of transformers, in float32, with weights that are nowhere the same."""
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText
    from transformers.utils.logging import disable_progress_bar, set_verbosity_error

    disable_progress_bar()
    set_verbosity_error()
    kind = AutoModelForImageTextToText if "text_config" in case.config else AutoModelForCausalLM
    with torch.random.fork_rng(devices=[]):
        network = kind.from_config(AutoConfig.for_model(case.model_type, **case.config)).eval()
    with torch.no_grad():
        for name, weight in network.named_parameters():
            drawn = torch.Generator().manual_seed(zlib.crc32(name.encode()))
            weight.copy_(weight.mean().round() + 0.3 * torch.randn(weight.shape, generator=drawn))
    return network


def run_case(case: Case, folder: Path) -> Run:
    """Build a model, write it, and let it read a text while it is watched."""
    network = build_network(case)
    network.save_pretrained(folder)
    steps: list[Step] = []
    calls: list[Call] = []
    watch_layers(network.get_submodule(case.layers), case, steps)
    with torch.no_grad(), watch_attention(network, calls):
        logits = network(torch.tensor([TOKENS])).logits[0]
    file = describe_model(Location(reference="model", label="model", folder=folder))
    return Run(case, folder, network, file, load_file(folder / "model.safetensors"), steps, calls, logits)
