"""Tiny real checkpoints: built by transformers, random weights from a seed, nothing downloaded.

All families have the same sizes unless a test says otherwise, so that any two of them fit together where their
families do. A checkpoint asked for twice is built once in each process.
"""

from __future__ import annotations

import json
import tempfile
import zlib
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

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
    with torch.no_grad():
        for name, weight in model.named_parameters():
            drawn = torch.Generator().manual_seed(zlib.crc32(f"{seed} {name}".encode()))
            # Around what it was made as, so that no norm is all ones and no bias all zeros.
            weight.copy_(weight.mean().round() + 0.05 * torch.randn(weight.shape, generator=drawn))
    with tempfile.TemporaryDirectory() as place:
        model.save_pretrained(place, max_shard_size=max_shard_size or 2**40)
        return _read_files(Path(place))


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
