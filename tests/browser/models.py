"""Two models of different families, with layers enough to watch and large enough that della takes a while for each."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

LAYERS, HIDDEN, HEADS, KV_HEADS, HEAD_DIM, FFN, VOCAB = 16, 640, 10, 2, 64, 1920, 512
CLASSES = {"llama": "LlamaForCausalLM", "qwen3": "Qwen3ForCausalLM"}
NAMES = {"llama": "llama-3.2-1b", "qwen3": "qwen3-0.6b"}
"""Family -> what its model is called; no more than names, for random weights."""


@contextlib.contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """A folder that is removed afterwards, with what is in it.

    Raises:
        FileExistsError: It is there already, and so somebody else's.
    """
    folder.mkdir(parents=True)
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


def write_models(folder: Path) -> None:
    """Write a model of each family, with random weights."""
    import torch
    from safetensors.torch import save_file

    for seed, family in enumerate(NAMES):
        source = torch.Generator().manual_seed(seed)
        weights = {
            name: (0.05 * torch.randn(*shape, generator=source) + (len(shape) == 1)).bfloat16()
            for name, shape in list_shapes(family)
        }
        place = folder / NAMES[family]
        place.mkdir(parents=True)
        save_file(weights, place / "model.safetensors", metadata={"format": "pt"})
        (place / "config.json").write_text(json.dumps(describe(family)), encoding="utf-8")


def describe(family: str) -> dict[str, object]:
    """What config.json says."""
    return {
        "architectures": [CLASSES[family]],
        "model_type": family,
        "hidden_size": HIDDEN,
        "intermediate_size": FFN,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "head_dim": HEAD_DIM,
        "num_hidden_layers": LAYERS,
        "vocab_size": VOCAB,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
    }


def list_shapes(family: str) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Every tensor, name and shape."""
    yield "model.embed_tokens.weight", (VOCAB, HIDDEN)
    for number in range(LAYERS):
        layer = f"model.layers.{number}."
        yield f"{layer}self_attn.q_proj.weight", (HEADS * HEAD_DIM, HIDDEN)
        yield f"{layer}self_attn.k_proj.weight", (KV_HEADS * HEAD_DIM, HIDDEN)
        yield f"{layer}self_attn.v_proj.weight", (KV_HEADS * HEAD_DIM, HIDDEN)
        yield f"{layer}self_attn.o_proj.weight", (HIDDEN, HEADS * HEAD_DIM)
        yield f"{layer}mlp.gate_proj.weight", (FFN, HIDDEN)
        yield f"{layer}mlp.up_proj.weight", (FFN, HIDDEN)
        yield f"{layer}mlp.down_proj.weight", (HIDDEN, FFN)
        yield f"{layer}input_layernorm.weight", (HIDDEN,)
        yield f"{layer}post_attention_layernorm.weight", (HIDDEN,)
        if family == "qwen3":
            yield f"{layer}self_attn.q_norm.weight", (HEAD_DIM,)
            yield f"{layer}self_attn.k_norm.weight", (HEAD_DIM,)
    yield "model.norm.weight", (HIDDEN,)
    yield "lm_head.weight", (VOCAB, HIDDEN)
