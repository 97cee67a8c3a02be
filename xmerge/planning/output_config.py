"""The output's config.json: the target's, with the edits that keep the model loadable."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from xmerge.architecture import ResolvedArchitecture, ResolvedModel
from xmerge.architecture.models import config_dtype
from xmerge.checkpoints import torch_name_of
from xmerge.errors import PlanError
from xmerge.planning.plan import LayerPlan
from xmerge.planning.slices import OutputLayer
from xmerge.sources import metadata_folder

LAYER_COUNT_KEYS = ("num_hidden_layers", "n_layer", "num_layers", "n_layers")
PER_LAYER_KEYS = ("layer_types", "mlp_layer_types", "no_rope_layers", "layers_block_type", "attention_types")
SIDE_FILES = (
    "added_tokens.json", "chat_template.jinja", "chat_template.json", "generation_config.json", "merges.txt",
    "preprocessor_config.json", "processor_config.json", "sentencepiece.bpe.model", "special_tokens_map.json",
    "spiece.model", "tokenizer.json", "tokenizer.model", "tokenizer_config.json", "video_preprocessor_config.json",
    "vocab.json", "vocab.txt",
)  # fmt: skip


def choose_side_files(target: ResolvedModel) -> tuple[str, ...]:
    """The tokenizer, generation and chat template files that go along from the target."""
    folder = metadata_folder(target.location)
    return tuple(name for name in SIDE_FILES if (folder / name).is_file())


def edit_config(
    config: Any, architecture: ResolvedArchitecture, layout: Sequence[OutputLayer], layers: Sequence[LayerPlan]
) -> tuple[str, tuple[str, ...]]:
    """The text of the output's config.json, and each edit in words.

    Raises:
        PlanError: A list with one item a layer does not have one for every layer.
    """
    target = architecture.target
    data = dict(target.checkpoint.config)
    edits: list[str] = []
    body = [layer for layer in layout if layer.index is not None]
    if len(body) != target.layers or _is_rearranged(architecture, body):
        _edit_depth(data, architecture, body, edits)
    _edit_dtype(data, layers, edits)
    return json.dumps(data, indent=2, ensure_ascii=False) + "\n", tuple(edits)


def _is_rearranged(architecture: ResolvedArchitecture, body: Sequence[OutputLayer]) -> bool:
    return any(_origin(architecture, layer)[1] != layer.index for layer in body)


def _origin(architecture: ResolvedArchitecture, layer: OutputLayer) -> tuple[ResolvedModel, int]:
    """The model and the layer whose kind an output layer has: the target's where it meets there, else the first's."""
    inputs = sorted(layer.inputs, key=lambda each: each.model != architecture.target_index)
    first = inputs[0]
    assert first.layer is not None
    return architecture.models[first.model], first.layer


def _edit_depth(
    data: dict[str, Any], architecture: ResolvedArchitecture, body: Sequence[OutputLayer], edits: list[str]
) -> None:
    _edit(data, next((key for key in LAYER_COUNT_KEYS if key in data), LAYER_COUNT_KEYS[0]), len(body), edits)
    origins = [_origin(architecture, layer) for layer in body]
    family = architecture.target.family
    keys = [key for key in PER_LAYER_KEYS if isinstance(data.get(key), list)]
    if family and family.layer_types and "layer_types" not in keys:
        keys.append("layer_types")
    for key in keys:
        values = [_kind_of_layer(model, layer, key, architecture.target) for model, layer in origins]
        _edit(data, key, values, edits)


def _kind_of_layer(model: ResolvedModel, layer: int, key: str, target: ResolvedModel) -> Any:
    """A layer's item of a per-layer list, from its own model where that has such a list."""
    for owner in (model, target):
        values = owner.checkpoint.config.get(key)
        if isinstance(values, list):
            if len(values) != owner.layers:
                raise PlanError(
                    f"{owner.label}/config.json has {len(values)} items in '{key}' and {owner.layers} layers.",
                    remedy="complete the list from the model's page.",
                )
            return values[min(layer, len(values) - 1)]
        if key == "layer_types" and owner.family and owner.family.layer_types:
            return owner.family.layer_types[layer % len(owner.family.layer_types)]
    raise PlanError(f"{target.label}/config.json has no '{key}' for the layers of {model.label}.")


def _edit_dtype(data: dict[str, Any], layers: Sequence[LayerPlan], edits: list[str]) -> None:
    """Say the dtype that most of the weights have."""
    weight: dict[str, int] = {}
    for layer in layers:
        for tensor in layer.tensors:
            weight[tensor.dtype] = weight.get(tensor.dtype, 0) + tensor.nbytes
    floating = {dtype: size for dtype, size in weight.items() if torch_name_of(dtype) != dtype}
    if not floating:
        return
    dtype = torch_name_of(max(sorted(floating), key=lambda each: floating[each]))
    if config_dtype(data) != dtype:
        _edit(data, "torch_dtype" if "torch_dtype" in data else "dtype", dtype, edits)


def _edit(data: dict[str, Any], key: str, value: Any, edits: list[str]) -> None:
    if data.get(key) != value:
        edits.append(f"{key}: {json.dumps(data.get(key))} -> {json.dumps(value)}")
        data[key] = value
