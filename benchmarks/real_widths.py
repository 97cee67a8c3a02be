"""Make a pair of models with the widths of Llama-3-8B and Qwen3-8B, few layers each, and the recipe that merges them.

Usage: python benchmarks/real_widths.py FOLDER. Then, with /usr/bin/time -v for memory:
    xmerge merge FOLDER/recipe.yml FOLDER/merged
    cp -r FOLDER/base FOLDER/copy
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
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


def main(folder: Path) -> None:
    """Write base, donor and recipe."""
    llama = LlamaConfig(**ATTENTION, intermediate_size=14336, num_hidden_layers=4, vocab_size=VOCABULARY)
    qwen = Qwen3Config(**ATTENTION, intermediate_size=12288, num_hidden_layers=6, vocab_size=VOCABULARY)
    write_model(LlamaForCausalLM, llama, folder / "base", seed=1)
    write_model(Qwen3ForCausalLM, qwen, folder / "donor", seed=2)
    (folder / "recipe.yml").write_text(RECIPE.format(folder=folder.resolve()), encoding="utf-8")


def write_model(kind: type[PreTrainedModel], config: LlamaConfig | Qwen3Config, folder: Path, *, seed: int) -> None:
    """A checkpoint with random weights, in the shards that transformers makes."""
    torch.manual_seed(seed)
    config.dtype = torch.bfloat16
    with torch.device("meta"):
        model = kind._from_config(config, dtype=torch.bfloat16)  # noqa: SLF001 - skips an initialisation of minutes
    model = model.to_empty(device="cpu")
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.fill_(1.0) if "norm" in name else parameter.normal_(std=0.02)
    model.save_pretrained(folder, max_shard_size="1GB")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
