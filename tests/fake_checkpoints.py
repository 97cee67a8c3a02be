"""Checkpoints of headers only, for tests that plan: real names and shapes, and a hole where the weights would be.

They come from the family files and a handful of sizes, without torch or transformers, in a millisecond each.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from xmerge.architecture import TensorTemplate, list_families
from xmerge.checkpoints.headers import build_header

SIZES = {
    "hidden_size": 8,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 4,
    "intermediate_size": 12,
    "num_hidden_layers": 4,
    "vocab_size": 32,
}
"""What config.json says where a test does not say otherwise; heads * head_dim is not hidden."""

Tensors = Mapping[str, tuple[str, Sequence[int]]]
"""name -> (dtype as the header writes it, shape)."""


def write_fake(
    folder: Path, family: str = "llama", *, stored: str = "BF16", extra: Tensors | None = None, **config: Any
) -> Path:
    """A checkpoint of a family that has a file.

    Args:
        folder: Where to write it.
        family: The family's name.
        stored: The dtype of every tensor, as the header writes it.
        extra: More tensors, or other dtypes and shapes for the family's own.
        config: What config.json says beside `SIZES`; None takes a key out.
    """
    described = next(each for each in list_families() if each.family == family)
    data = {"model_type": described.model_types[0], "architectures": [described.architectures[0]], **SIZES, **config}
    data = {key: value for key, value in data.items() if value is not None}
    axes, tied = described.read_axes(data, family), described.is_tied(data)
    placed: list[tuple[TensorTemplate, int | None]] = [(each, None) for each in (*described.before, *described.after)]
    placed += [(template, layer) for layer in range(axes["layers"]) for template in described.layer]
    tensors = {
        template.name.format(layer=layer): (stored, template.shape(axes))
        for template, layer in placed
        if template.exists(data, tied=tied)
    }
    return write_headers(folder, data, {**tensors, **(extra or {})})


def write_headers(folder: Path, config: Mapping[str, Any], tensors: Tensors) -> Path:
    """A checkpoint of these tensors in one file, its weights a hole."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    header, entries = build_header((name, *described) for name, described in tensors.items())
    with (folder / "model.safetensors").open("wb") as file:
        file.write(header)
        file.truncate(len(header) + (entries[-1].end if entries else 0))
    return folder
