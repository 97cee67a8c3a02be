"""Tiny real checkpoints: built by transformers, random weights from a seed, nothing downloaded.

All families have the same sizes unless a test says otherwise, so that any two of them fit together where their
families do. A checkpoint asked for twice is built once in each process.

`RECIPES` at the end makes models of every family that has a file, as many kinds as its lines tell apart; a family that
is not in it is made of `SMALL` alone.
"""

from __future__ import annotations

import json
import tempfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from xmerge.architecture import Family

SIZES = {
    "hidden_size": 40,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 12,
    "intermediate_size": 72,
    "num_hidden_layers": 3,
    "vocab_size": 320,
    "max_position_embeddings": 128,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 2,
    "tie_word_embeddings": False,
}
"""What a tiny checkpoint's config.json says where a test does not say otherwise; heads * head_dim is not hidden."""

SPECIAL_TOKENS = ("<bos>", "<eos>", "<pad>")
_TEXT = ["A merge takes two models and makes one.", "The base keeps its names, the donor lends its weights."]


def write_tiny_llama(folder: Path, **options: Any) -> Path:
    """A tiny Llama checkpoint; `options` as for `write_tiny_model`."""
    return write_tiny_model("llama", folder, **options)


def write_tiny_mistral(folder: Path, **options: Any) -> Path:
    """A tiny Mistral checkpoint; `options` as for `write_tiny_model`."""
    return write_tiny_model("mistral", folder, **options)


def write_tiny_qwen2(folder: Path, **options: Any) -> Path:
    """A tiny Qwen2 checkpoint; `options` as for `write_tiny_model`."""
    return write_tiny_model("qwen2", folder, **options)


def write_tiny_qwen3(folder: Path, **options: Any) -> Path:
    """A tiny Qwen3 checkpoint; `options` as for `write_tiny_model`."""
    return write_tiny_model("qwen3", folder, **options)


def write_tiny_gemma2(folder: Path, **options: Any) -> Path:
    """A tiny Gemma 2 checkpoint; `options` as for `write_tiny_model`."""
    return write_tiny_model("gemma2", folder, **options)


def write_tiny_phi3(folder: Path, **options: Any) -> Path:
    """A tiny Phi-3 checkpoint; `options` as for `write_tiny_model`."""
    return write_tiny_model("phi3", folder, **options)


WRITERS: Mapping[str, Callable[..., Path]] = {
    "gemma2": write_tiny_gemma2,
    "llama": write_tiny_llama,
    "mistral": write_tiny_mistral,
    "phi3": write_tiny_phi3,
    "qwen2": write_tiny_qwen2,
    "qwen3": write_tiny_qwen3,
}
"""family -> the function that writes a tiny checkpoint of it."""


def write_tiny_model(
    model_type: str,
    folder: Path,
    *,
    seed: int = 0,
    dtype: str = "bfloat16",
    max_shard_size: int | None = None,
    tokenizer: bool = False,
    **config: Any,
) -> Path:
    """Write a tiny checkpoint of any model type that transformers knows, and give its folder back.

    Args:
        model_type: As in config.json.
        folder: Made if it does not exist.
        seed: Two seeds give two models; one seed gives the same weight to tensors of one name and shape.
        dtype: What the weights are written in.
        max_shard_size: Bytes; None: one file and no index.
        tokenizer: Write a byte-level BPE tokenizer too; it has at most 320 tokens.
        config: What config.json says instead of, or beside, `SIZES`.
    """
    said = json.dumps(SIZES | config, sort_keys=True)
    files = dict(_build_model(model_type, seed, dtype, max_shard_size, said))
    if tokenizer:
        files |= _build_tokenizer()
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return folder


@cache
def _build_model(model_type: str, seed: int, dtype: str, max_shard_size: int | None, config: str) -> dict[str, bytes]:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    with torch.random.fork_rng(devices=[]):
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(model_type, **json.loads(config)))
    model = model.to(getattr(torch, dtype))
    _draw_weights(model, seed, 0.05)
    with tempfile.TemporaryDirectory() as place:
        model.save_pretrained(place, max_shard_size=max_shard_size or 2**40)
        return _read_files(Path(place))


def _draw_weights(model: PreTrainedModel, seed: int, deviation: float) -> None:
    import torch

    with torch.no_grad():
        for name, weight in model.named_parameters():
            drawn = torch.Generator().manual_seed(zlib.crc32(f"{seed} {name}".encode()))
            # Around what it was made as, so that no norm is all ones and no bias all zeros.
            weight.copy_(weight.mean().round() + deviation * torch.randn(weight.shape, generator=drawn))


@cache
def _build_tokenizer() -> dict[str, bytes]:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=SIZES["vocab_size"],
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_TEXT, trainer)
    bos, eos, pad = SPECIAL_TOKENS
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=bos, eos_token=eos, pad_token=pad)
    with tempfile.TemporaryDirectory() as place:
        fast.save_pretrained(place)
        return _read_files(Path(place))


def _read_files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


SMALL: Mapping[str, Any] = {
    "hidden_size": 32,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "intermediate_size": 40,
    "num_hidden_layers": 4,
    "vocab_size": 48,
    "max_position_embeddings": 64,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 2,
    "rope_theta": 500.0,
    # Each spelling with a value of its own, so that reading another one is seen.
    "rms_norm_eps": 0.011,
    "layer_norm_eps": 0.012,
    "layer_norm_epsilon": 0.013,
    "norm_epsilon": 0.014,
    "norm_eps": 0.015,
}
"""What is said of every language model that is compared with its family: sizes and constants no two of which agree."""

_EXPERTS = {
    "num_experts": 3,
    "num_local_experts": 3,
    "n_routed_experts": 3,
    "num_experts_per_tok": 3,
    "moe_intermediate_size": 20,
    "shared_expert_intermediate_size": 28,
}
_LATENT = {
    "num_key_value_heads": 4,
    **_EXPERTS,
    "q_lora_rank": 20,
    "kv_lora_rank": 12,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 10,
    "v_head_dim": 14,
    "n_shared_experts": 1,
    "first_k_dense_replace": 2,
    "n_group": 1,
    "topk_group": 1,
}
_SIGHT = {
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 8,
    "patch_size": 4,
}
_QWEN_SIGHT = {"depth": 1, "embed_dim": 16, "hidden_size": 16, "num_heads": 2, "patch_size": 4, "intermediate_size": 16}
_GROWING = {
    "rope_type": "default",
    "rope_theta": 500.0,
    "llama_4_scaling_beta": 0.5,
    "original_max_position_embeddings": 3,
}
_YARN = {"rope_parameters": {"rope_type": "yarn", "factor": 4.0, "mscale": 0.7, "mscale_all_dim": 0.9}}
_LONG = {"attn_temperature_tuning": True, "attn_scale": 0.5, "floor_scale": 3}
_SCALES = {"query_pre_attn_scalar": 20, "sliding_window": 5}
_OF_QWEN = {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 1}


@dataclass(frozen=True)
class Recipe:
    """How to make tiny models of a family."""

    always: Mapping[str, Any] = field(default_factory=dict)
    """What config.json says of the language model besides `SMALL`."""
    kinds: tuple[Mapping[str, Any], ...] = ()
    """What it may say instead, each by itself."""
    around: Mapping[str, Any] = field(default_factory=dict)
    """What config.json says outside of the language model."""
    without: tuple[str, ...] = ()
    """What it cannot say."""


RECIPES: Mapping[str, Recipe] = {
    "cohere": Recipe({"logit_scale": 0.25}),
    "cohere2": Recipe({"logit_scale": 0.25, "sliding_window": 5}, ({"sliding_window_pattern": 2},)),
    "deepseek_v2": Recipe(
        _LATENT,
        ({"q_lora_rank": None}, {"attention_bias": True}, {"mlp_bias": True}, _YARN),
        without=("head_dim",),
    ),
    "deepseek_v3": Recipe(_LATENT, ({"q_lora_rank": None}, {"attention_bias": True}, _YARN), without=("head_dim",)),
    "falcon": Recipe({"parallel_attn": True}, ({"parallel_attn": False}, {"alibi": True}), without=("head_dim",)),
    "falcon2": Recipe({"num_kv_heads": 2}, without=("head_dim",)),
    "falcon_new": Recipe({"num_kv_heads": 2}, ({"num_ln_in_parallel_attn": 2},), without=("head_dim",)),
    "falcon_old": Recipe({"parallel_attn": True}, ({"parallel_attn": False}, {"alibi": True}), without=("head_dim",)),
    "gemma": Recipe({}, ({"hidden_act": "gelu"},)),
    "gemma2": Recipe(
        {**_SCALES, "attn_logit_softcapping": 1.0, "final_logit_softcapping": 2.0},
        ({"attn_logit_softcapping": None}, {"final_logit_softcapping": None}, {"sliding_window": 3}),
    ),
    "gemma3": Recipe(
        {**_SCALES, "rope_local_base_freq": 50.0},
        ({"sliding_window_pattern": 2}, {"use_bidirectional_attention": True, "sliding_window": 4}),
    ),
    "gemma3_multimodal": Recipe(
        {**_SCALES, "rope_local_base_freq": 50.0},
        ({"sliding_window_pattern": 3},),
        {"vision_config": _SIGHT, "mm_tokens_per_image": 4},
    ),
    "gpt2": Recipe({}, ({"scale_attn_weights": False}, {"n_inner": 40})),
    "gpt_neox": Recipe({}, ({"use_parallel_residual": False}, {"rotary_pct": 0.5}), without=("head_dim",)),
    "gpt_oss": Recipe({**_EXPERTS, "sliding_window": 5, "rope_parameters": {"rope_type": "default"}}),
    "granite": Recipe(
        {
            "embedding_multiplier": 3.0,
            "attention_multiplier": 0.4,
            "residual_multiplier": 0.3,
            "logits_scaling": 2,
        }
    ),
    "llama4": Recipe(
        {**_EXPERTS, "intermediate_size_mlp": 80, "attention_chunk_size": 5, "attn_temperature_tuning": False},
        (
            {"moe_layers": []},
            {"interleave_moe_layer_step": 2},
            {"moe_layers": [], "use_qk_norm": False},
            {"moe_layers": [], "no_rope_layers": [1, 0, 0, 1], **_LONG},
        ),
    ),
    "llama4_multimodal": Recipe(
        {**_EXPERTS, "intermediate_size_mlp": 80, "attention_chunk_size": 5, "attn_temperature_tuning": False},
        ({"moe_layers": []}, {"no_rope_layer_interval": 2, "moe_layers": [0]}, {"moe_layers": [], **_LONG}),
        {
            "vision_config": _SIGHT
            | {"intermediate_size": 64, "vision_output_dim": 16, "projector_input_dim": 16, "projector_output_dim": 16}
        },
    ),
    "ministral": Recipe(
        {"sliding_window": 5},
        ({"layer_types": ["full_attention", "sliding_attention"] * 2},),
    ),
    "ministral3": Recipe({"rope_parameters": _GROWING}, ({"sliding_window": 5},), without=("rope_theta",)),
    "mistral": Recipe({"sliding_window": 5}, ({"sliding_window": None}, {"head_dim": None})),
    "mistral3": Recipe(
        {"model_type": "mistral", "sliding_window": 5},
        ({"sliding_window": None}, {"model_type": "ministral3", "rope_parameters": _GROWING}),
        {"vision_config": {**_SIGHT, "head_dim": 8, "model_type": "pixtral"}},
    ),
    "mixtral": Recipe(_EXPERTS, ({"sliding_window": 5},)),
    "phi": Recipe({}, ({"partial_rotary_factor": 0.25},), without=("head_dim",)),
    "phi3": Recipe({}, ({"partial_rotary_factor": 0.75}, {"sliding_window": 5})),
    "qwen2": Recipe({}, (_OF_QWEN,)),
    "qwen2_5_vl": Recipe(
        {"rope_parameters": {"rope_type": "default", "mrope_section": [1, 1, 2]}},
        (),
        {"vision_config": {**_QWEN_SIGHT, "out_hidden_size": 32}},
        ("head_dim", "rope_theta"),
    ),
    "qwen2_moe": Recipe(
        _EXPERTS, ({"mlp_only_layers": [0]}, {"decoder_sparse_step": 2}, {**_OF_QWEN, "max_window_layers": 9})
    ),
    "qwen2_vl": Recipe(
        {"rope_parameters": {"rope_type": "default", "mrope_section": [1, 1, 2]}},
        (),
        {"vision_config": {**_QWEN_SIGHT, "hidden_size": 32}},
        ("head_dim", "rope_theta"),
    ),
    "qwen3": Recipe({}, (_OF_QWEN,)),
    "qwen3_moe": Recipe(_EXPERTS, ({"mlp_only_layers": [0]}, {"decoder_sparse_step": 2}, _OF_QWEN)),
    "stablelm": Recipe(without=("head_dim",)),
    "smollm3": Recipe(
        {},
        ({"no_rope_layer_interval": 3}, {"no_rope_layers": [1, 0, 0, 1]}, {"no_rope_layers": [1, 0, 1, 1]} | _OF_QWEN),
    ),
    "starcoder2": Recipe({}, ({"sliding_window": 5},)),
}
"""family -> its recipe, where it needs one."""


def list_kinds(family: Family) -> Iterator[dict[str, Any]]:
    """What config.json may say in models of a family: nothing else, each key of its lines, its recipe's kinds."""
    recipe = RECIPES.get(family.family, Recipe())
    told = {key for said in (recipe.always, *recipe.kinds) for key in said}
    keys = [key for line in family.templates for key in (line.when, line.when_not) if key and key not in told]
    yield {}
    for key in dict.fromkeys(["tie_word_embeddings", *keys]):
        yield from ({key: False}, {key: True})
    yield from map(dict, recipe.kinds)


def say_config(family: Family, kind: Mapping[str, Any]) -> dict[str, Any]:
    """What is said to the config class of a family, the language model's part nested where it has one."""
    recipe = RECIPES.get(family.family, Recipe())
    # The first choice of a rule is the key that a config.json would have.
    required = {rule.split("|")[0].strip(): value for rule, value in family.requires.items()}
    said = {**SMALL, **required, **recipe.always, **kind}
    said = {key: value for key, value in said.items() if key not in recipe.without}
    if not family.config:
        return said
    tied = {key: said[key] for key in ("tie_word_embeddings",) if key in said}
    return {**recipe.around, **tied, family.config: said}


@dataclass(frozen=True)
class TinyModel:
    """A tiny model as transformers has it, and the files it writes."""

    model: PreTrainedModel
    files: Mapping[str, bytes]

    @property
    def config(self) -> dict[str, Any]:
        """What its config.json says."""
        said: dict[str, Any] = json.loads(self.files["config.json"])
        return said

    def write(self, folder: Path, **config: Any) -> Path:
        """Its checkpoint, with another config.json where one is given."""
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in self.files.items():
            (folder / name).write_bytes(content)
        if config:
            (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
        return folder


def build_tiny(family: Family, kind: Mapping[str, Any], architecture: str | None = None) -> TinyModel:
    """A tiny model of a class that a family names, the first where none is given, with the same weights each time."""
    import torch
    import transformers
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    made = getattr(transformers, architecture or family.architectures[0])
    config = made.config_class(**say_config(family, kind))
    with torch.random.fork_rng(devices=[]):
        model = made._from_config(config, attn_implementation="eager").eval()
    _draw_weights(model, 0, 0.3)
    with tempfile.TemporaryDirectory() as place:
        model.save_pretrained(place)
        return TinyModel(model, _read_files(Path(place)))
