"""What a person should know before the merge runs: said in the plan, the report and the card."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Sequence

from xmerge.architecture import ResolvedArchitecture, ResolvedModel
from xmerge.config import MergeConfig
from xmerge.config.source import Path
from xmerge.methods import MergeMethod
from xmerge.planning.packed import list_as_weights
from xmerge.planning.plan import MISFIT, LayerPlan, TensorPlan
from xmerge.planning.slices import OutputLayer, walk_paths
from xmerge.planning.slots import is_stray_head
from xmerge.planning.table import show_ranges
from xmerge.planning.unknown import list_changed_keys, tell_unknown


def list_foreign(architecture: ResolvedArchitecture, index: int, layout: Sequence[OutputLayer]) -> tuple[str, ...]:
    """What a donor's tensors do, in the layers that take part, that the target has no tensor for."""
    donor, target = architecture.models[index], architecture.target
    layers = {each.layer for layer in layout for each in layer.inputs if each.model == index}
    return () if donor is target else list_foreign_roles(target, donor, layers)


def list_foreign_roles(
    target: ResolvedModel, donor: ResolvedModel, layers: Collection[int | None] | None
) -> tuple[str, ...]:
    """What a donor's tensors do that the target has no tensor for: `attn_q_norm (36 tensors)`.

    Args:
        target: The model that receives.
        donor: The model that gives.
        layers: The donor's layers that take part, with None for what is outside the layers; None: all.
    """
    own = [spec for spec in list_as_weights(target) if not is_stray_head(spec, target)]
    roles = {part.role for spec in own for part in spec.parts}
    templates = {name for _, name in target.by_template} if donor.model_type == target.model_type else set()
    foreign: Counter[str] = Counter()
    for spec in list_as_weights(donor):
        if (layers is None or spec.layer in layers) and not is_stray_head(spec, donor):
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
        *_warn_of_unknown_models(architecture, tensors),
        *_warn_of_differences(architecture, layers),
        *_warn_of_twins(config, architecture, layout),
        *_warn_of_idle_keys(config),
        *_warn_of_idle_folds(config, tensors),
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
    if len(tensor.sources) != 1 or tensor.decision not in ("keep", "convert"):
        return False
    (source,) = tensor.sources
    return source.model == target and [segment.tensor for segment in source.segments] == [tensor.name]


def _warn_of_stray_heads(architecture: ResolvedArchitecture) -> Iterator[str]:
    for model in architecture.models:
        if any(is_stray_head(spec, model) for spec in model.tensors):
            yield (
                f"{model.label} holds an output matrix of its own, and its config.json makes the embedding the output: "
                "the merge leaves the matrix out, as transformers 4 does. Transformers 5 uses it where it differs from "
                "the embedding; 'tie_word_embeddings: false' in config.json merges it."
            )


def _warn_of_unknown_models(architecture: ResolvedArchitecture, tensors: Sequence[TensorPlan]) -> Iterator[str]:
    """Equal names and shapes are all that such tensors were compared by."""
    target, giving = architecture.target, {source.model for tensor in tensors for source in tensor.sources}
    donors = [each for index, each in enumerate(architecture.models) if index in giving and each is not target]
    if target.family is not None or not donors:
        return
    yield f"{tell_unknown(target)}: tensors of equal name and shape are taken for the same thing."
    for donor in donors:
        keys = list_changed_keys(target, donor)
        if keys:
            yield (
                f"{target.label} and {donor.label} differ in config.json, and nothing says for which tensors that "
                f"matters: {', '.join(keys)}."
            )


def _warn_of_differences(architecture: ResolvedArchitecture, layers: Sequence[LayerPlan]) -> Iterator[str]:
    """What no shape shows: each difference that changes what a tensor means, with the components it concerns."""
    components: dict[str, dict[str, None]] = {}
    places: dict[str, set[int]] = {}
    for layer in layers:
        for tensor in layer.tensors:
            for note in _list_notes(tensor, architecture.target_index):
                components.setdefault(note, {}).setdefault(tensor.component)
                places.setdefault(note, set()).update([] if layer.index is None else [layer.index])
    depth = sum(layer.index is not None for layer in layers)
    for note, concerned in components.items():
        where = f" in layers {show_ranges(places[note])}" if 0 < len(places[note]) < depth else ""
        yield f"{', '.join(concerned)}{where}: {note}."


def _list_notes(tensor: TensorPlan, target: int) -> Iterator[str]:
    for source in tensor.sources:
        if source.fit == "C" and source.model != target:
            yield from source.notes


def _warn_of_twins(
    config: MergeConfig, architecture: ResolvedArchitecture, layout: Sequence[OutputLayer]
) -> Iterator[str]:
    """A layer that meets itself gives what it has, or counts for more than it seems to."""
    for layer in layout:
        seen: set[tuple[int, int | None]] = set()
        for each in layer.inputs:
            if layer.index is not None and (each.model, each.layer) in seen:
                place, label = config.source.locate(*each.path[:-1]), architecture.models[each.model].label
                yield f"{place}: {label} meets itself, layer by layer; each mention counts as a model of its own."
            seen.add((each.model, each.layer))


def _warn_of_idle_keys(config: MergeConfig) -> Iterator[str]:
    slices = _uses_slices(config)
    for key, idle, where in (("layer_map", slices, "slices"), ("unlisted_layers", not slices, "models")):
        if idle and getattr(config, key) != type(config).model_fields[key].default:
            yield f"{config.source.locate(key)}: '{key}' has no effect with '{where}'."


def _warn_of_idle_folds(config: MergeConfig, tensors: Sequence[TensorPlan]) -> Iterator[str]:
    folded = {fold for tensor in tensors for source in tensor.sources for fold in source.folds}
    for index, fold in enumerate(config.folds):
        if fold not in folded:
            place = config.source.locate("folds", index)
            yield f"{place}: '{fold}' has no effect: nothing that is merged differs in it."


def _warn_of_idle_parameters(config: MergeConfig, layout: Sequence[OutputLayer], method: MergeMethod) -> Iterator[str]:
    given = {name for _, parameters in walk_paths(layout) for name in parameters}
    for parameter in method.parameters:
        if parameter.name in given and "without effect" in parameter.range.text:
            yield f"'{parameter.name}' has no effect in {method.name}."
    for layer in layout:
        base = layer.inputs[layer.base] if layer.merged and layer.base is not None else None
        if base is not None and base.parameters and method.base != "as_input":
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
