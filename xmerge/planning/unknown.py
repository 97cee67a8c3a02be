"""Models that no family file describes: which of their tensors are divided into heads, and what to say of them.

Names and shapes are all there is to go by. A tensor counts as divided into heads if either of them speaks for it,
because rows that met rows of another head cannot be told apart afterwards.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import product
from typing import Any

from xmerge.architecture import ResolvedModel, TensorSpec

ATTENTION_WORDS = ("attn", "attention")
"""Parts of the names of modules that hold attention."""
HEADS, KV_HEADS, HEAD_DIM = "num_attention_heads", "num_key_value_heads", "head_dim"
HIDDEN_KEYS = ("hidden_size", "n_embd", "d_model")
"""Where a config.json says how wide the residual stream is."""
WITHOUT_MEANING = (
    "architectures", "auto_map", "dtype", "quantization_config", "torch_dtype", "transformers_version", "use_cache",
)  # fmt: skip
"""What a config.json says that changes nothing about what its weights mean."""


def tell_unknown(model: ResolvedModel) -> str:
    """Why nothing says what a model's tensors do: its type has no family file, or none that fits its config.json."""
    if model.unfit is not None:
        return f"no family file describes {model.label}: {model.unfit}"
    return f"there is no family file for {model.model_type}"


def list_changed_keys(target: ResolvedModel, donor: ResolvedModel) -> list[str]:
    """The keys under which the config.json of two models say different things that may change what weights mean."""
    ours, theirs = (model.checkpoint.config for model in (target, donor))
    return sorted(
        key
        for key in {*ours, *theirs}
        if ours.get(key) != theirs.get(key) and key not in WITHOUT_MEANING and not key.startswith("_")
    )


def find_divided(target: ResolvedModel, donor: ResolvedModel) -> frozenset[str]:
    """The names, with `{layer}`, of the target's tensors that two unknown models divide into other heads."""
    if _read_heads(target) == _read_heads(donor):
        return frozenset()
    shapes = [shape for model in (target, donor) for shape in _list_shapes(model)]
    matrices = {spec.template for spec in target.tensors if _is_divided_matrix(spec, shapes)}
    modules = {template.rpartition(".")[0] for template in matrices}
    widths = {width for width, _ in shapes}
    return frozenset(matrices) | {
        spec.template
        for spec in target.tensors
        if len(spec.shape) == 1
        and spec.shape[0] in widths
        and (spec.template.rpartition(".")[0] in modules or _lies_in_attention(spec.template.split(".")[:-2]))
    }


def tell_heads(model: ResolvedModel, other: ResolvedModel) -> str:
    """How a model divides heads where another does otherwise: `num_attention_heads 32`."""
    ours, theirs = _read_heads(model), _read_heads(other)
    keys = [key for key in sorted({*ours, *theirs}) if ours.get(key) != theirs.get(key)]
    return ", ".join(f"{key} {ours[key]}" if key in ours else f"no {key}" for key in keys)


def _read_heads(model: ResolvedModel) -> dict[str, Any]:
    """Everything that a config.json says of heads, in all its parts; what it leaves out is derived by one rule."""
    return {
        f"{path}{key}": value
        for path, part in _list_parts(model.checkpoint.config)
        for key, value in _read_own_heads(part).items()
    }


def _read_own_heads(part: Mapping[str, Any]) -> dict[str, Any]:
    said = {key: value for key, value in part.items() if "head" in key and type(value) in (int, list)}
    heads, hidden = said.get(HEADS), _find_hidden(part)
    if type(heads) is int and heads > 0:
        said.setdefault(KV_HEADS, heads)
        if hidden is not None:
            said.setdefault(HEAD_DIM, hidden // heads)
    return said


def _list_parts(config: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """A config.json, and the models that it nests, each with the beginning of its keys."""
    yield "", config
    yield from ((f"{key}.", value) for key, value in config.items() if isinstance(value, Mapping))


def _find_hidden(part: Mapping[str, Any]) -> int | None:
    return next((part[key] for key in HIDDEN_KEYS if type(part.get(key)) is int), None)


def _list_shapes(model: ResolvedModel) -> Iterator[tuple[int, int]]:
    """(rows of heads, width of the residual stream, 0 if unsaid) of every matrix that a config.json's heads make."""
    for _, part in _list_parts(model.checkpoint.config):
        said = {key: value for key, value in _read_own_heads(part).items() if type(value) is int}
        sizes = [value for key, value in said.items() if HEAD_DIM in key]
        counts = [value for key, value in said.items() if HEAD_DIM not in key]
        # q, k and v may share a tensor.
        fused = [said[HEADS] + 2 * said[KV_HEADS]] if HEADS in said else []
        yield from ((count * size, _find_hidden(part) or 0) for count, size in product([*counts, *fused], sizes))


def _is_divided_matrix(spec: TensorSpec, shapes: list[tuple[int, int]]) -> bool:
    if len(spec.shape) < 2:
        return False
    if _lies_in_attention(spec.template.split(".")[:-1]):
        return True
    return spec.layer is not None and any(sorted(spec.shape) == sorted(shape) for shape in shapes)


def _lies_in_attention(modules: list[str]) -> bool:
    return any(word in module for module in modules for word in ATTENTION_WORDS)
