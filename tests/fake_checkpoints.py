"""Checkpoints of headers only, for tests that plan: real names and shapes, and a hole where the weights would be.

They come from the family files and a handful of sizes, without torch or transformers, in a millisecond each.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from xmerge.architecture import Family, TensorTemplate, list_families
from xmerge.checkpoints.headers import build_header

SIZES = {
    "hidden": 8,
    "heads": 4,
    "kv_heads": 2,
    "head_dim": 4,
    "ffn": 12,
    "layers": 4,
    "vocab": 32,
    "experts": 4,
    "expert_ffn": 6,
    "shared_ffn": 10,
    "positions": 16,
}
"""What config.json says of each axis where a test does not say otherwise; heads * head_dim is not hidden."""
OTHER_SIZE = 6
"""That of an axis which only one family has."""

OUTSIDE = ("model_type", "architectures", "tie_word_embeddings", "quantization_config", "dtype", "torch_dtype")
"""What the config.json of a wrapper says at the top."""

_KEY = re.compile(r"[A-Za-z_]\w*")
Tensors = Mapping[str, tuple[str, Sequence[int]]]
"""name -> (dtype as the header writes it, shape)."""
Choose = Callable[[str, int | None], bool]
"""(role, layer) -> whether a tensor that may be missing is there."""


def write_fake(
    folder: Path,
    family: str = "llama",
    *,
    stored: str = "BF16",
    extra: Tensors | None = None,
    without: str | tuple[str, ...] = (),
    maybe: Choose | None = None,
    spelling: int = 0,
    sizes: Mapping[str, int] = SIZES,
    **config: Any,
) -> Path:
    """A checkpoint of a family that has a file.

    Args:
        folder: Where to write it.
        family: The family's name.
        stored: The dtype of every tensor, as the header writes it.
        extra: More tensors, or other dtypes and shapes for the family's own.
        without: The endings of names of tensors that are left out.
        maybe: Which tensors are there of those that only headers tell; None: none of them.
        spelling: Which of the family's spellings names the tensors.
        sizes: Of each axis, where `config` does not say otherwise.
        config: What config.json says beside the sizes; None takes a key out. In a wrapper it is said of the language
            model.
    """
    described = next(each for each in list_families() if each.family == family)
    data = make_config(described, sizes, **config)
    listed = list_tensors(described, data, maybe, spelling)
    tensors = {name: (stored, shape) for name, shape in listed if not name.endswith(without)}
    return write_headers(folder, data, {**tensors, **(extra or {})})


def everywhere(role: str, layer: int | None) -> bool:
    """For `maybe`: every tensor that may be missing is there."""
    return True


def make_config(family: Family, sizes: Mapping[str, int] = SIZES, **config: Any) -> dict[str, Any]:
    """The config.json of a model of a family, its language part nested where the family is a wrapper's."""
    keys = {axis: _find_key(axis, rule, family) for axis, rule in family.axes.items()}
    told = {key: sizes.get(axis, OTHER_SIZE) for axis, key in keys.items() if key}
    said = {
        "model_type": family.model_types[0],
        "architectures": [family.architectures[0]],
        **{rule.split("|")[0].strip(): said for rule, said in family.requires.items()},
        **told,
        **config,
    }
    said = {key: value for key, value in said.items() if value is not None}
    if family.config is None or family.config in said or said["model_type"].endswith("_text"):
        return said
    outside = {key: value for key, value in said.items() if key in OUTSIDE}
    return {**outside, family.config: {key: value for key, value in said.items() if key not in OUTSIDE}}


def list_tensors(
    family: Family, config: Mapping[str, Any], maybe: Choose | None = None, spelling: int = 0
) -> Iterator[tuple[str, tuple[int, ...]]]:
    """(name, shape) of everything that a model with this config.json has."""
    language = family.language_config(config)
    axes, tied = family.read_axes(language, family.family), family.is_tied(language)
    spelled = family.spell(family.spellings[spelling])
    placed: list[tuple[TensorTemplate, int | None]] = [(each, None) for each in (*spelled.before, *spelled.after)]
    placed += [(template, layer) for layer in range(axes["layers"]) for template in spelled.layer]
    for template, layer in placed:
        chosen = maybe is not None and maybe(template.role, layer)
        if chosen if template.maybe else template.exists(language, tied=tied):
            for number in range(axes[template.numbered]) if template.numbered else (None,):
                yield template.name_of(layer, number), template.shape(axes)


def write_headers(folder: Path, config: Mapping[str, Any], tensors: Tensors) -> Path:
    """A checkpoint of these tensors in one file, its weights a hole."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    header, entries = build_header((name, *described) for name, described in tensors.items())
    with (folder / "model.safetensors").open("wb") as file:
        file.write(header)
        file.truncate(len(header) + (entries[-1].end if entries else 0))
    return folder


def _find_key(axis: str, rule: str, family: Family) -> str | None:
    """The key of config.json that says an axis; None where it follows from others."""
    first = rule.split("|", maxsplit=1)[0].strip()
    return first if _KEY.fullmatch(first) and (first == axis or first not in family.axes) else None
