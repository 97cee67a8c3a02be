"""Tiny Llama checkpoints, written without transformers, and what a test does with them."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

LAYERS, HIDDEN, HEADS, FFN, VOCAB = 6, 32, 4, 48, 64
HEAD_DIM = HIDDEN // HEADS


def write_llama(folder: Path, seed: int) -> Path:
    """A Llama of six layers with random weights: `model.safetensors` and config.json."""
    import torch
    from safetensors.torch import save_file

    source = torch.Generator().manual_seed(seed)
    folder.mkdir(parents=True)
    weights = {name: torch.randn(*shape, generator=source).bfloat16() for name, shape in _shapes().items()}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": HIDDEN,
        "intermediate_size": FFN,
        "num_attention_heads": HEADS,
        "num_key_value_heads": HEADS // 2,
        "head_dim": HEAD_DIM,
        "num_hidden_layers": LAYERS,
        "vocab_size": VOCAB,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
    }
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder


def _shapes() -> dict[str, tuple[int, ...]]:
    outside: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (VOCAB, HIDDEN),
        "model.norm.weight": (HIDDEN,),
        "lm_head.weight": (VOCAB, HIDDEN),
    }
    layer: dict[str, tuple[int, ...]] = {
        "self_attn.q_proj.weight": (HIDDEN, HIDDEN),
        "self_attn.k_proj.weight": (HIDDEN // 2, HIDDEN),
        "self_attn.v_proj.weight": (HIDDEN // 2, HIDDEN),
        "self_attn.o_proj.weight": (HIDDEN, HIDDEN),
        "mlp.gate_proj.weight": (FFN, HIDDEN),
        "mlp.up_proj.weight": (FFN, HIDDEN),
        "mlp.down_proj.weight": (HIDDEN, FFN),
        "input_layernorm.weight": (HIDDEN,),
        "post_attention_layernorm.weight": (HIDDEN,),
    }
    return outside | {f"model.layers.{n}.{name}": shape for n in range(LAYERS) for name, shape in layer.items()}


@dataclass
class Bench:
    """Two models, and a place to merge them in."""

    models: Path
    place: Path

    @property
    def out(self) -> Path:
        """Where the output goes."""
        return self.place / "out"

    @property
    def store(self) -> Path:
        """A store that outlives a merge."""
        return self.place / "store"

    def recipe(self, t: float | list[float] = 0.3, **more: Any) -> str:
        """A merge of the two models, as text."""
        config = {
            "merge_method": "slerp",
            "base_model": str(self.models / "base"),
            "models": [{"model": str(self.models / name)} for name in ("base", "donor")],
            "parameters": {"t": t},
            **more,
        }
        return json.dumps(config)

    def recipe_file(self, **options: Any) -> Path:
        """The same, in a file."""
        path = self.place / "recipe.yml"
        path.write_text(self.recipe(**options), encoding="utf-8")
        return path

    def merge(self, out: Path | None = None, *, t: float | list[float] = 0.3, **options: Any) -> dict[str, Any]:
        """Call the flow, without a trial in transformers, which takes seconds; what the flow returns."""
        from flows.merge import merge_models

        made = merge_models(self.recipe(t), out=str(out or self.out), trial=False, **options)
        assert isinstance(made, dict)
        return made


def digest(folder: Path) -> str:
    """One SHA-256 over the names and bytes of all files in a folder."""
    total = hashlib.sha256()
    for path in sorted(folder.iterdir()):
        total.update(path.name.encode() + hashlib.sha256(path.read_bytes()).digest())
    return total.hexdigest()
