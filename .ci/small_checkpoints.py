"""Write two small checkpoints in Llama's layout, `base` and `donor`, with random weights.

The standard library is enough, so that the checkpoints do not come from the code that is to read them.
"""

from __future__ import annotations

import json
import math
import random
import struct
import sys
from pathlib import Path

LAYERS, HIDDEN, HEADS, KV_HEADS, HEAD_DIM, FFN, VOCAB = 2, 64, 4, 2, 16, 128, 256

CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": HIDDEN,
    "intermediate_size": FFN,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "num_key_value_heads": KV_HEADS,
    "head_dim": HEAD_DIM,
    "vocab_size": VOCAB,
    "max_position_embeddings": 128,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "hidden_act": "silu",
    "attention_bias": False,
    "mlp_bias": False,
    "tie_word_embeddings": False,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "torch_dtype": "bfloat16",
}

TOKENIZER = {
    "version": "1.0",
    "truncation": None,
    "padding": None,
    "added_tokens": [],
    "normalizer": None,
    "pre_tokenizer": {"type": "Whitespace"},
    "post_processor": None,
    "decoder": None,
    "model": {"type": "WordLevel", "vocab": {f"w{i}": i for i in range(VOCAB)}, "unk_token": "w0"},
}


def shapes() -> dict[str, tuple[int, ...]]:
    """Every tensor of the layout, by name."""
    layer = {
        "self_attn.q_proj": (HEADS * HEAD_DIM, HIDDEN),
        "self_attn.k_proj": (KV_HEADS * HEAD_DIM, HIDDEN),
        "self_attn.v_proj": (KV_HEADS * HEAD_DIM, HIDDEN),
        "self_attn.o_proj": (HIDDEN, HEADS * HEAD_DIM),
        "mlp.gate_proj": (FFN, HIDDEN),
        "mlp.up_proj": (FFN, HIDDEN),
        "mlp.down_proj": (HIDDEN, FFN),
        "input_layernorm": (HIDDEN,),
        "post_attention_layernorm": (HIDDEN,),
    }
    return {
        "model.embed_tokens.weight": (VOCAB, HIDDEN),
        **{f"model.layers.{i}.{name}.weight": shape for i in range(LAYERS) for name, shape in layer.items()},
        "model.norm.weight": (HIDDEN,),
        "lm_head.weight": (VOCAB, HIDDEN),
    }


def bfloat16(values: list[float]) -> bytes:
    """Little-endian bfloat16: the upper half of each float32."""
    singles = struct.pack(f"<{len(values)}f", *values)
    return b"".join(singles[i + 2 : i + 4] for i in range(0, len(singles), 4))


def safetensors(tensors: dict[str, tuple[tuple[int, ...], bytes]]) -> bytes:
    """A safetensors file: the header's length, the header, the tensors one after another."""
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, (shape, data) in tensors.items():
        start, end = end, end + len(data)
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": (start, end)}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + b"".join(data for _, data in tensors.values())


def write(folder: Path, seed: int) -> None:
    """One checkpoint: config, tokenizer, and one shard of random weights."""
    folder.mkdir(parents=True)
    drawn = random.Random(seed)
    tensors = {
        name: (shape, bfloat16([drawn.gauss(0, 0.05) for _ in range(math.prod(shape))]))
        for name, shape in shapes().items()
    }
    (folder / "model.safetensors").write_bytes(safetensors(tensors))
    (folder / "config.json").write_text(json.dumps(CONFIG, indent=2), encoding="utf-8")
    (folder / "tokenizer.json").write_text(json.dumps(TOKENIZER), encoding="utf-8")
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}', encoding="utf-8")


if __name__ == "__main__":
    write(Path(sys.argv[1]) / "base", seed=1)
    write(Path(sys.argv[1]) / "donor", seed=2)
