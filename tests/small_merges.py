"""Small merges with real weights and without transformers: a Llama, a deeper Qwen3, and what is asked of them."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from tests.fake_checkpoints import write_fake
from xmerge.architecture import resolve
from xmerge.checkpoints.checkpoint import read_local_shard
from xmerge.config import MergeConfig, parse_config
from xmerge.engine.reading import TORCH_DTYPES
from xmerge.planning import MergePlan, map_slices
from xmerge.run import MergeOutcome, merge

ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
RECIPE = """\
merge_method: slerp
base_model: llama
models:
- model: llama
- model: qwen3
layer_map: proportional
parameters:
  t:
  - {filter: q_proj, value: 0.3}
  - {filter: k_proj, value: 0.3}
  - {filter: v_proj, value: 0.3}
  - {filter: o_proj, value: 0.3}
"""


def write_model(folder: Path, family: str = "llama", *, seed: int = 0, **options: Any) -> Path:
    """A checkpoint of a family with random weights; `options` as for `write_fake`."""
    write_fake(folder, family, **options)
    path = folder / "model.safetensors"
    _, entries, start = read_local_shard(path, path.name)
    random = torch.Generator().manual_seed(seed)
    with path.open("r+b") as file:
        for entry in entries:
            values = torch.randn(entry.shape, generator=random).to(TORCH_DTYPES[entry.dtype])
            file.seek(start + entry.begin)
            file.write(values.reshape(-1).view(torch.uint8).numpy().tobytes())
    return folder


def write_models(folder: Path) -> Path:
    """The models of `RECIPE`, beside each other."""
    write_model(folder / "llama", seed=1)
    write_model(folder / "qwen3", "qwen3", seed=2, num_hidden_layers=6, intermediate_size=16)
    return folder


def make_plan(folder: Path, recipe: str = RECIPE) -> tuple[MergeConfig, MergePlan]:
    """The configuration and the plan of a recipe whose models lie in a folder."""
    config = parse_config(recipe, "recipe.yml", folder)
    return config, map_slices(config, resolve(config))


def run(folder: Path, out: Path | None = None, recipe: str = RECIPE, **options: Any) -> MergeOutcome:
    """Merge without the trial load, which takes seconds."""
    return merge(parse_config(recipe, "recipe.yml", folder), out or folder / "out", **{"trial": False, **options})


def load_weights(folder: Path) -> dict[str, torch.Tensor]:
    """Every tensor of a checkpoint, read by the reference library."""
    return {name: tensor for path in sorted(folder.glob("*.safetensors")) for name, tensor in load_file(path).items()}


def digest_files(folder: Path) -> dict[str, str]:
    """File -> SHA-256 of everything in a folder."""
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}


def list_tree(folder: Path) -> list[str]:
    """Every path below a folder, hidden ones too."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))
