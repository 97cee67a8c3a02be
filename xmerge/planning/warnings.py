"""What a person should know before the merge runs: said in the plan, the report and the card."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from xmerge.architecture import ResolvedArchitecture, ResolvedModel
from xmerge.config import MergeConfig
from xmerge.config.source import Path
from xmerge.methods import MergeMethod
from xmerge.planning.plan import MISFIT, LayerPlan, TensorPlan
from xmerge.planning.slices import OutputLayer, walk_paths
from xmerge.planning.slots import is_stray_head

DEFAULT_ROPE_THETA = 10_000.0


def list_foreign(architecture: ResolvedArchitecture, index: int, layout: Sequence[OutputLayer]) -> tuple[str, ...]:
    """What a donor's tensors do, in the layers that take part, that the target has no tensor for."""
    donor, target = architecture.models[index], architecture.target
    if donor is target:
        return ()
    own = [spec for spec in target.tensors if not is_stray_head(spec, target)]
    roles = {part.role for spec in own for part in spec.parts}
    templates = {spec.template for spec in own} if donor.model_type == target.model_type else set()
    layers = {each.layer for layer in layout for each in layer.inputs if each.model == index}
    foreign: Counter[str] = Counter()
    for spec in donor.tensors:
        if spec.layer in layers and not is_stray_head(spec, donor):
            if spec.parts:
                foreign.update(part.role for part in spec.parts if part.role not in roles)
            elif spec.template not in templates:
                foreign[spec.template] += 1
    return tuple(f"{role} ({count} tensor{'' if count == 1 else 's'})" for role, count in sorted(foreign.items()))


def list_warnings(
    config: MergeConfig,
    architecture: ResolvedArchitecture,
    layout: Sequence[OutputLayer],
    layers: Sequence[LayerPlan],
    method: MergeMethod,
) -> tuple[str, ...]:
    """Every warning, in a fixed order."""
    tensors = [tensor for layer in layers for tensor in layer.tensors]
    found = [
        *_warn_of_dropped_layers(config, architecture, layout),
        *_warn_of_nothing_merged(architecture, tensors),
        *_warn_of_stray_heads(architecture),
        *_warn_of_attention(architecture, tensors),
        *_warn_of_idle_keys(config),
        *_warn_of_idle_parameters(config, layout, method),
        *_warn_of_kept_misfits(tensors),
        *_warn_of_hidden_entries(config, layout),
        *_warn_of_filters_inside_words(config, layout, tensors),
    ]
    return tuple(dict.fromkeys(found))


def _warn_of_dropped_layers(
    config: MergeConfig, architecture: ResolvedArchitecture, layout: Sequence[OutputLayer]
) -> Iterator[str]:
    target = architecture.target_index
    used = {each.layer for layer in layout for each in layer.inputs if each.model == target and each.layer is not None}
    gone = architecture.target.layers - len(used)
    if _uses_slices(config) and gone and config.unlisted_layers == "drop":
        yield (
            f"{gone} of the {architecture.target.layers} layers of {architecture.target.label} are in no slice, and "
            "the output does not have them; 'unlisted_layers: base' keeps them in place."
        )


def _warn_of_nothing_merged(architecture: ResolvedArchitecture, tensors: Sequence[TensorPlan]) -> Iterator[str]:
    if all(_is_own(tensor, architecture.target_index) for tensor in tensors):
        yield f"nothing is merged: every tensor of the output is {architecture.target.label}'s own."


def _is_own(tensor: TensorPlan, target: int) -> bool:
    if len(tensor.sources) != 1 or tensor.decision not in ("keep", "cast"):
        return False
    (source,) = tensor.sources
    return source.model == target and [segment.tensor for segment in source.segments] == [tensor.name]


def _warn_of_stray_heads(architecture: ResolvedArchitecture) -> Iterator[str]:
    for model in architecture.models:
        if any(is_stray_head(spec, model) for spec in model.tensors):
            yield (
                f"{model.label} holds an output matrix beside an embedding that is its output; programs ignore it, "
                "and so does the merge."
            )


def _warn_of_attention(architecture: ResolvedArchitecture, tensors: Sequence[TensorPlan]) -> Iterator[str]:
    """Queries and keys have a meaning that no shape shows: how they are normalized, and how position turns them."""
    crossing = {
        source.model
        for tensor in tensors
        if tensor.role and {"attn_q", "attn_k"} & set(tensor.role.split("+"))
        for source in tensor.sources
    }
    target = architecture.target
    for index, donor in enumerate(architecture.models):
        if donor is not target and index in crossing:
            yield from _compare_norms(target, donor)
            ropes = [_tell_rope(model.checkpoint.config) for model in (target, donor)]
            if ropes[0] != ropes[1]:
                yield (
                    f"q and k turn with position in other ways ({ropes[0]} in {target.label}, {ropes[1]} in "
                    f"{donor.label}): no change of weights makes up for that."
                )


def _compare_norms(target: ResolvedModel, donor: ResolvedModel) -> Iterator[str]:
    ours, theirs = [any(role == "attn_q_norm" for _, role in model.by_role) for model in (target, donor)]
    if theirs and not ours:
        yield (
            f"{donor.label} normalizes every query and key head and {target.label} does not: its q and k lose their "
            "scale. Measured, no formula makes up for that; filtering to v_proj and o_proj avoids it."
        )
    if ours and not theirs:
        yield (
            f"{target.label} normalizes every query and key head and {donor.label} does not: its q and k are rescaled."
        )


def _tell_rope(config: Mapping[str, Any]) -> str:
    """How positions turn q and k, from either of the two places where config.json says it."""
    said: dict[str, Any] = {key: config[key] for key in ("rope_theta", "partial_rotary_factor") if config.get(key)}
    for key in ("rope_scaling", "rope_parameters"):
        said |= config[key] if isinstance(config.get(key), dict) else {}
    kind = said.get("rope_type", said.get("type", "default"))
    told = [f"theta {_show(said.get('rope_theta', DEFAULT_ROPE_THETA))}"]
    told += [f"{kind} scaling by {_show(said.get('factor', 1))}"] if kind != "default" else []
    part = said.get("partial_rotary_factor", 1.0)
    told += [f"{_show(part)} of each head"] if part != 1.0 else []
    return ", ".join(told)


def _show(value: object) -> str:
    return f"{value:g}" if isinstance(value, int | float) else str(value)


def _warn_of_idle_keys(config: MergeConfig) -> Iterator[str]:
    slices = _uses_slices(config)
    for key, idle, where in (("layer_map", slices, "slices"), ("unlisted_layers", not slices, "models")):
        if idle and getattr(config, key) != type(config).model_fields[key].default:
            yield f"{config.source.locate(key)}: '{key}' has no effect with '{where}'."


def _warn_of_idle_parameters(config: MergeConfig, layout: Sequence[OutputLayer], method: MergeMethod) -> Iterator[str]:
    given = {name for _, parameters in walk_paths(layout) for name in parameters}
    for parameter in method.parameters:
        if parameter.name in given and "without effect" in parameter.range.text:
            yield f"'{parameter.name}' has no effect in {method.name}."
    for layer in layout:
        base = layer.inputs[layer.base] if layer.merged and layer.base is not None else None
        if base is not None and base.parameters and method.base == "required":
            yield f"{config.source.locate(*base.path)}: has no effect, because the others are measured from this model."


def _warn_of_kept_misfits(tensors: Sequence[TensorPlan]) -> Iterator[str]:
    counted = Counter(tensor.component for tensor in tensors if tensor.reason.startswith(MISFIT))
    if counted:
        told = ", ".join(f"{component} ({count})" for component, count in sorted(counted.items()))
        yield f"asked for and kept from the base because the donor's does not fit: {told}."


def _warn_of_hidden_entries(config: MergeConfig, layout: Sequence[OutputLayer]) -> Iterator[str]:
    """A filter behind one that always matches first can never decide anything."""
    for path, index, text, earlier in _list_filters(layout):
        hiding = [each for each in earlier if each is None or (text is not None and each in text)]
        if hiding:
            told = "the entry without a filter" if hiding[0] is None else f"'{hiding[0]}'"
            yield f"{config.source.locate(*path, index)}: {told} above it always matches first."


def _warn_of_filters_inside_words(
    config: MergeConfig, layout: Sequence[OutputLayer], tensors: Sequence[TensorPlan]
) -> Iterator[str]:
    """`v_proj` is a part of `qkv_proj`, which is rarely what was meant."""
    fused = {tensor.component: tensor.name for tensor in tensors if tensor.role and "+" in tensor.role}
    for path, index, text, _ in _list_filters(layout):
        for role, name in fused.items():
            at = name.find(text) if text else -1
            if at > 0 and name[at - 1].isalpha():
                place = config.source.locate(*path, index, "filter")
                yield f"{place}: '{text}' is a part of '{name.split('.')[-2]}', which holds {role} in one tensor."


def _list_filters(layout: Sequence[OutputLayer]) -> Iterator[tuple[Path, int, str | None, list[str | None]]]:
    """Every entry of every setting: where it stands, its filter, and the filters before it."""
    for path, parameters in walk_paths(layout):
        for name, setting in parameters.items():
            filters = [entry.filter for entry in setting.entries]
            for index, text in enumerate(filters):
                yield (*path, name), index, text, filters[:index]


def _uses_slices(config: MergeConfig) -> bool:
    return bool(config.slices or any(module.slices for module in config.modules.values()))
