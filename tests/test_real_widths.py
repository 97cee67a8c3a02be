"""The case xmerge was asked for at its real widths: attention of a Qwen3-8B in a Llama-3-8B, two layers of it."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from tests.fake_checkpoints import write_fake
from xmerge import disk
from xmerge.architecture import describe_model
from xmerge.config import parse_config
from xmerge.run import merge
from xmerge.sources import Location

SIZES = {"hidden": 4096, "heads": 32, "kv_heads": 8, "head_dim": 128, "vocab": 512}
ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
RECIPE = """\
merge_method: slerp
base_model: llama
models: [{model: llama}, {model: qwen3}]
layer_map: proportional
parameters:
  t:
  - {filter: q_proj, value: 0.3}
  - {filter: k_proj, value: 0.3}
  - {filter: v_proj, value: 0.3}
  - {filter: o_proj, value: 0.3}
"""


def write_random(folder: Path, family: str, seed: int, **sizes: int) -> Path:
    """A checkpoint of a family at these sizes, with weights of the usual spread."""
    write_fake(folder, family, sizes={**SIZES, **sizes}, rope_theta=500000.0)
    model = describe_model(Location(reference=family, label=family, folder=folder))
    random = torch.Generator().manual_seed(seed)
    weights = {
        spec.name: torch.ones(spec.shape, dtype=torch.bfloat16)
        if str(spec.role).endswith("_norm")
        else torch.empty(spec.shape, dtype=torch.bfloat16).normal_(std=0.02, generator=random)
        for spec in model.tensors
    }
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    return folder


@pytest.mark.slow
def test_attention_of_a_qwen3_in_a_llama_at_real_widths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The output is a Llama byte for byte but for q, k, v and o, and of the donor nothing else is read."""
    write_random(tmp_path / "llama", "llama", 1, ffn=14336, layers=2)
    write_random(tmp_path / "qwen3", "qwen3", 2, ffn=12288, layers=3)
    read = count_reads(monkeypatch, tmp_path / "qwen3" / "model.safetensors")
    merge(parse_config(RECIPE, "recipe.yml", tmp_path), tmp_path / "out", workers=2, trial=False)
    with safe_open(tmp_path / "qwen3" / "model.safetensors", "pt") as donor:
        names = [name for name in donor.keys() if name.split(".")[-2] in ATTENTION]  # noqa: SIM118 - it is no mapping
        sizes = {name: 2 * math.prod(donor.get_slice(name).get_shape()) for name in names}
    # Layers 0 and 2 meet the base's two; slerp reads twice, once for the angle and once for the numbers.
    used = sum(size for name, size in sizes.items() if ".layers.1." not in name)
    assert sum(read) == 2 * used
    check_bytes(tmp_path / "out", tmp_path / "llama" / "model.safetensors")
    check_loading(tmp_path / "out")


def count_reads(monkeypatch: pytest.MonkeyPatch, path: Path) -> list[int]:
    """How many bytes each read takes from a file's weights, from now on; copies inside the kernel count too."""
    read: list[int] = []
    with path.open("rb") as file:
        weights = 8 + int.from_bytes(file.read(8), "little")
    originals: dict[str, Callable[..., int]] = {"preadv": disk.preadv, "copy_file_range": disk.copy_file_range}

    def watch(name: str) -> Callable[..., int]:
        def call(descriptor: int, *arguments: Any) -> int:
            count = originals[name](descriptor, *arguments)
            in_header = name == "preadv" and arguments[1] < weights
            if os.path.samestat(os.fstat(descriptor), path.stat()) and not in_header:
                read.append(count)
            return count

        return call

    for name in originals:
        monkeypatch.setattr(disk, name, watch(name))
    return read


def check_bytes(out: Path, base: Path) -> None:
    """Every tensor that was not asked for is the base's, bit for bit; every one that was is not."""
    index = json.loads((out / "model.safetensors.index.json").read_text(encoding="utf-8"))["weight_map"]
    with safe_open(base, "pt") as ours:
        assert set(index) == set(ours.keys())
        for name, file in index.items():
            with safe_open(out / file, "pt") as theirs:
                same = torch.equal(ours.get_tensor(name), theirs.get_tensor(name))
            assert same is (name.split(".")[-2] not in ATTENTION), name


def check_loading(out: Path) -> None:
    """The class in transformers finds every tensor it wants, and none that it does not know."""
    from transformers import LlamaForCausalLM
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    model, info = LlamaForCausalLM.from_pretrained(out, output_loading_info=True, dtype=torch.bfloat16)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs"))
    assert not any("q_norm" in name or "k_norm" in name for name, _ in model.named_parameters())
    assert type(model).__name__ == "LlamaForCausalLM"
