"""Make a pair of models with the widths of Llama-3-8B and Qwen3-8B, and the recipe that merges them.

Usage: python benchmarks/real_widths.py FOLDER [--layers 4 6], where 32 36 are all that the two have. Then, with
/usr/bin/time -v for memory:
    xmerge merge FOLDER/recipe.yml FOLDER/merged
    cp -r FOLDER/base FOLDER/copy
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel, Qwen3Config, Qwen3ForCausalLM

VOCABULARY = 32000
ATTENTION = {"hidden_size": 4096, "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128}
RECIPE = """\
merge_method: slerp
base_model: {folder}/base
models:
  - model: {folder}/base
  - model: {folder}/donor
layer_map: proportional
parameters:
  t:
    - {{filter: q_proj, value: 0.3}}
    - {{filter: k_proj, value: 0.3}}
    - {{filter: v_proj, value: 0.3}}
    - {{filter: o_proj, value: 0.3}}
"""


def main() -> None:
    """Write base, donor and recipe."""
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--layers", type=int, nargs=2, default=(4, 6), metavar=("BASE", "DONOR"))
    asked = parser.parse_args()
    base, donor = asked.layers
    llama = LlamaConfig(**ATTENTION, intermediate_size=14336, num_hidden_layers=base, vocab_size=VOCABULARY)
    qwen = Qwen3Config(**ATTENTION, intermediate_size=12288, num_hidden_layers=donor, vocab_size=VOCABULARY)
    write_model(LlamaForCausalLM, llama, asked.folder / "base", seed=1)
    write_model(Qwen3ForCausalLM, qwen, asked.folder / "donor", seed=2)
    (asked.folder / "recipe.yml").write_text(RECIPE.format(folder=asked.folder.resolve()), encoding="utf-8")


def write_model(kind: type[PreTrainedModel], config: LlamaConfig | Qwen3Config, folder: Path, *, seed: int) -> None:
    """A checkpoint with random weights, a shard for each layer, so that no model has to fit into memory."""
    config.dtype, config.architectures = torch.bfloat16, [kind.__name__]
    config.save_pretrained(folder)
    with torch.device("meta"):
        shapes = {name: each.shape for name, each in kind._from_config(config).state_dict().items()}  # noqa: SLF001
    shards: dict[str, list[str]] = defaultdict(list)
    for name in shapes:
        layer = name.split(".")[2] if ".layers." in name else "outside"
        shards[f"model-{layer}.safetensors"].append(name)
    random = torch.Generator().manual_seed(seed)
    for file, names in shards.items():
        weights = {
            name: torch.ones(shapes[name], dtype=torch.bfloat16)
            if "norm" in name
            else torch.empty(shapes[name], dtype=torch.bfloat16).normal_(std=0.02, generator=random)
            for name in names
        }
        save_file(weights, folder / file, {"format": "pt"})
    index = {"metadata": {}, "weight_map": {name: file for file, names in shards.items() for name in names}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")


if __name__ == "__main__":
    main()
