"""The output's config.json: the target's, with the edits that keep the model loadable."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from xmerge.architecture import ResolvedArchitecture, ResolvedModel
from xmerge.architecture.differences import ROUTER
from xmerge.architecture.family import Family
from xmerge.architecture.models import config_dtype
from xmerge.architecture.rules import list_names, refuse_said, show
from xmerge.architecture.traits import Traits
from xmerge.checkpoints import torch_name_of
from xmerge.checkpoints.checkpoint import refuse_escape
from xmerge.errors import CheckpointError, PlanError
from xmerge.files import hash_file
from xmerge.planning.plan import LayerPlan
from xmerge.planning.slices import OutputLayer
from xmerge.sources import metadata_folder

LAYER_COUNT_KEYS = ("num_hidden_layers", "n_layer", "num_layers", "n_layers")
NO_ROPE = "no_rope_layers"
PER_LAYER_KEYS = ("layer_types", "mlp_layer_types", NO_ROPE, "layers_block_type", "attention_types")
"""Lists with one item a layer, in models of any depth."""
LAYER_NUMBER_KEYS = ("mlp_only_layers", "moe_layers")
"""Lists of the numbers of some layers."""
SURELY_PER_LAYER = 8
"""A list as long as the model is deep has one item a layer, if the model has at least so many."""
DTYPE_KEYS = ("dtype", "torch_dtype")
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


def digest_side_files(target: ResolvedModel, names: Sequence[str]) -> str:
    """SHA-256 of what the files hold.

    Raises:
        CheckpointError: One of them cannot be read, or is a link that leads out of the model.
    """
    folder, digest = metadata_folder(target.location), hashlib.sha256()
    for name in names:
        refuse_escape(folder / name, f"{target.label}/{name}")
        try:
            digest.update(bytes.fromhex(hash_file(folder / name)[1]))
        except OSError as error:
            raise CheckpointError(f"{target.label}/{name} cannot be read: {error.strerror}.") from error
    return digest.hexdigest()


def edit_config(
    architecture: ResolvedArchitecture, layout: Sequence[OutputLayer], layers: Sequence[LayerPlan]
) -> tuple[str, tuple[str, ...]]:
    """The text of the output's config.json, and each edit in words.

    Raises:
        CheckpointError: A list with one item a layer does not have one for every layer.
        PlanError: Nothing says of what kind the layers of another model are.
    """
    target = architecture.target
    data = dict(target.checkpoint.config)
    edits: list[str] = []
    body = [layer for layer in layout if layer.index is not None]
    origins = [_origin(architecture, layer) for layer in body]
    moved = any(model is not target or layer != place for place, (model, layer) in enumerate(origins))
    if moved or len(origins) != target.layers:
        _edit_depth(_open_language_part(data, target), target, origins, edits)
    _edit_dtype(data, layers, edits)
    return json.dumps(data, indent=2, ensure_ascii=False) + "\n", tuple(edits)


def _open_language_part(data: dict[str, Any], target: ResolvedModel) -> dict[str, Any]:
    """The part of a config.json that describes the language model, free to be changed."""
    key = target.family.config if target.family else None
    if key is None or not isinstance(data.get(key), dict):
        return data
    data[key] = dict(data[key])
    nested: dict[str, Any] = data[key]
    return nested


def _origin(architecture: ResolvedArchitecture, layer: OutputLayer) -> tuple[ResolvedModel, int]:
    """The model and the layer whose kind an output layer has: the target's where it meets there, else the first's."""
    inputs = sorted(layer.inputs, key=lambda each: each.model != architecture.target_index)
    first = inputs[0]
    assert first.layer is not None
    return architecture.models[first.model], first.layer


def _edit_depth(
    data: dict[str, Any], target: ResolvedModel, origins: Sequence[tuple[ResolvedModel, int]], edits: list[str]
) -> None:
    _edit(data, next((key for key in LAYER_COUNT_KEYS if key in data), LAYER_COUNT_KEYS[0]), len(origins), edits)
    for key in _list_per_layer_keys(data, target):
        _edit(data, key, [_kind_of_layer(model, layer, key, target) for model, layer in origins], edits)
    for key in LAYER_NUMBER_KEYS:
        if isinstance(data.get(key), list):
            marked = [(_list_numbers(model, key, data[key]), layer) for model, layer in origins]
            _edit(data, key, [place for place, (numbers, layer) in enumerate(marked) if layer in numbers], edits)
    if target.family is not None:
        _edit_experts(data, target, target.family, origins, edits)


def _edit_experts(
    data: dict[str, Any],
    target: ResolvedModel,
    family: Family,
    origins: Sequence[tuple[ResolvedModel, int]],
    edits: list[str],
) -> None:
    """Say which layers have experts, where config.json would count others than have them now."""
    if ROUTER not in target.roles:
        return
    sparse = [(layer, ROUTER) in model.by_role or (layer, ROUTER) in model.packed for model, layer in origins]
    axes = {**target.axes, "layers": len(origins)}
    traits = Traits(family, family.language_config(data), axes, target.label)
    if [traits.has_experts(place) for place in range(len(sparse))] == sparse:
        return
    dense = [place for place, has_experts in enumerate(sparse) if not has_experts]
    if family.sparse_layers:
        _edit(data, family.sparse_layers, [place for place, has_experts in enumerate(sparse) if has_experts], edits)
    elif family.dense_layers:
        _edit(data, family.dense_layers, dense, edits)
        for key in list_names(family.sparse_period):
            _edit(data, key, 1, edits)
    elif dense != list(range(len(dense))):
        raise PlanError(
            f"layer {sparse.index(True)} of the output has experts and layer {dense[-1]} behind it does not.",
            why=f"config.json of a {target.kind} says how many layers without experts come first, and nothing else.",
            remedy="order the slices so that all layers without experts come first.",
        )
    else:
        for key in list_names(family.first_sparse):
            _edit(data, key, len(dense), edits)


def _list_numbers(model: ResolvedModel, key: str, otherwise: Sequence[Any]) -> Sequence[Any]:
    """The layers that a model's config.json lists, or what another's does where it has no such list."""
    numbers = model.config.get(key, otherwise)
    if numbers is not None and not isinstance(numbers, list):
        raise refuse_said(model.label, f"{key} = {show(numbers)}", "no list of layers")
    return numbers or ()


def _list_per_layer_keys(data: dict[str, Any], target: ResolvedModel) -> list[str]:
    # An empty list says nothing: Llama 4's `no_rope_layers` is one.
    lists = [key for key, value in data.items() if isinstance(value, list) and value]
    surely = target.layers if target.layers >= SURELY_PER_LAYER else None
    keys = [key for key in lists if key in PER_LAYER_KEYS or len(data[key]) == surely]
    implied = [key for key in _IMPLIED if key not in keys and _is_implied(target, key)]
    return [*(key for key in keys if key not in LAYER_NUMBER_KEYS), *implied]


def _is_implied(target: ResolvedModel, key: str) -> bool:
    """Whether a layer's number says what a list that config.json does not have would say."""
    family = target.family
    if family is None:
        return _IMPLIED[key](target, 0) is not None
    if key == NO_ROPE:
        return NO_ROPE in family.nope
    kinds = {_imply_kind(target, layer) for layer in range(target.layers)}
    return bool(family.layer_types) or len(kinds) > 1


def _kind_of_layer(model: ResolvedModel, layer: int, key: str, target: ResolvedModel) -> Any:
    """A layer's item of a per-layer list, from its own model where that has such a list or implies it."""
    for owner in (model, target):
        values = owner.config.get(key)
        if isinstance(values, list) and values:
            if len(values) != owner.layers:
                raise CheckpointError(
                    f"{owner.label}/config.json has {len(values)} items in '{key}' and {owner.layers} layers.",
                    remedy="complete the list from the model's page.",
                )
            return values[min(layer, len(values) - 1)]
        kind = _IMPLIED[key](owner, layer) if key in _IMPLIED else None
        if kind is not None:
            return kind
    raise PlanError(f"{target.label}/config.json has no '{key}' for the layers of {model.label}.")


def _imply_kind(model: ResolvedModel, layer: int) -> str | None:
    """The kind that a layer has by its number, where config.json has no list of kinds."""
    if model.traits is not None:
        kind, window = model.traits.kind_of(layer), model.traits.window_of(layer)
        if kind is not None and window is not None:
            return kind
        return "full_attention" if window is None else "sliding_attention"
    config = model.config
    if config.get("use_sliding_window") and type(config.get("max_window_layers")) is int:
        return "sliding_attention" if layer >= config["max_window_layers"] else "full_attention"
    return None


def _imply_rotation(model: ResolvedModel, layer: int) -> int | None:
    """1 where a layer rotates its queries and keys, 0 where it does not."""
    return None if model.traits is None else int(model.traits.rope_of(layer) is not None)


_IMPLIED: Mapping[str, Callable[[ResolvedModel, int], Any]] = {"layer_types": _imply_kind, NO_ROPE: _imply_rotation}
"""What the number of a layer says where config.json has no list that does."""


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
    # transformers of every version reads `torch_dtype`; `dtype` alone is read from 4.56 on.
    for key in [key for key in DTYPE_KEYS if key in data] or ["torch_dtype"]:
        if config_dtype({key: data.get(key)}) != dtype:
            _edit(data, key, dtype, edits)


def _edit(data: dict[str, Any], key: str, value: Any, edits: list[str]) -> None:
    if data.get(key) != value:
        edits.append(f"{key}: {json.dumps(data.get(key))} -> {json.dumps(value)}")
        data[key] = value
