"""What a person should know before the merge runs: said in the plan, the report and the card."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from xmerge.architecture import ResolvedArchitecture, ResolvedModel
from xmerge.config import MergeConfig
from xmerge.methods import MergeMethod
from xmerge.planning.plan import LayerPlan
from xmerge.planning.slices import OutputLayer, walk_paths


def list_foreign(architecture: ResolvedArchitecture, index: int, layout: Sequence[OutputLayer]) -> tuple[str, ...]:
    """What a donor's tensors do, in the layers that take part, that the target has no tensor for."""
    donor, target = architecture.models[index], architecture.target
    if donor is target:
        return ()
    roles = {part.role for spec in target.tensors for part in spec.parts}
    templates = {spec.template for spec in target.tensors}
    layers = {each.layer for layer in layout for each in layer.inputs if each.model == index}
    foreign: dict[str, int] = {}
    for spec in donor.tensors:
        if spec.layer not in layers or (spec.role is None and spec.template in templates):
            continue
        for role in [part.role for part in spec.parts] or [spec.template]:
            if role not in roles:
                foreign[role] = foreign.get(role, 0) + 1
    return tuple(f"{role} ({count} tensors)" for role, count in sorted(foreign.items()))


def list_warnings(
    config: MergeConfig,
    architecture: ResolvedArchitecture,
    layout: Sequence[OutputLayer],
    layers: Sequence[LayerPlan],
    method: MergeMethod,
) -> tuple[str, ...]:
    """Every warning, in a fixed order."""
    found = [
        *_warn_of_dropped_layers(config, architecture, layout),
        *_warn_of_nothing_merged(layers),
        *_warn_of_meaning(architecture, layers),
        *_warn_of_idle_parameters(layout, method),
        *_warn_of_kept_misfits(layers),
        *_warn_of_hidden_entries(config, layout),
    ]
    return tuple(dict.fromkeys(found))


def _warn_of_dropped_layers(
    config: MergeConfig, architecture: ResolvedArchitecture, layout: Sequence[OutputLayer]
) -> Iterator[str]:
    target = architecture.target_index
    used = {each.layer for layer in layout for each in layer.inputs if each.model == target and each.layer is not None}
    gone = architecture.target.layers - len(used)
    uses_slices = config.slices or any(module.slices for module in config.modules.values())
    if uses_slices and used and gone and config.unlisted_layers == "drop":
        yield (
            f"{gone} of the {architecture.target.layers} layers of {architecture.target.label} are in no slice, and the output "
            "does not have them; 'unlisted_layers: base' keeps them in place."
        )


def _warn_of_nothing_merged(layers: Sequence[LayerPlan]) -> Iterator[str]:
    tensors = [tensor for layer in layers for tensor in layer.tensors]
    pins = {source.pin for tensor in tensors for source in tensor.sources}
    if len(pins) == 1 and all(tensor.decision == "keep" for tensor in tensors):
        yield "nothing is merged: no parameter has a value for any tensor, so the output is the base."


def _warn_of_meaning(architecture: ResolvedArchitecture, layers: Sequence[LayerPlan]) -> Iterator[str]:
    target = architecture.target
    for index, donor in enumerate(architecture.models):
        if donor is target:
            continue
        crossing = {
            role
            for layer in layers
            for tensor in layer.tensors
            if tensor.decision != "keep" and tensor.role and any(source.model == index for source in tensor.sources)
            for role in tensor.role.split("+")
        }
        if crossing & {"attn_q", "attn_k"}:
            yield from _warn_of_attention(target, donor)


def _warn_of_attention(target: ResolvedModel, donor: ResolvedModel) -> Iterator[str]:
    norms = [any(part.role == "attn_q_norm" for _, part in model.by_role.values()) for model in (target, donor)]
    if norms[1] and not norms[0]:
        yield (
            f"{donor.label} normalizes every query and key head and {target.label} does not: its q and k lose their scale. "
            "Measured, no formula makes up for that; filtering to v_proj and o_proj avoids it."
        )
    if norms[0] and not norms[1]:
        yield f"{target.label} normalizes every query and key head and {donor.label} does not: its q and k are rescaled."
    thetas = [_rope_theta(model.checkpoint.config) for model in (target, donor)]
    if None not in thetas and thetas[0] != thetas[1]:
        yield (
            f"q and k turn with position at other speeds (rope theta {thetas[0]:g} in {target.label}, {thetas[1]:g} in "
            f"{donor.label}): no change of weights makes up for that."
        )
    if target.family and donor.family and target.family.rope != donor.family.rope:
        yield f"q and k rotate other pairs of rows ({target.family.rope} in {target.label}, {donor.family.rope} in {donor.label})."


def _rope_theta(config: Any) -> float | None:
    rope = config.get("rope_parameters")
    theta = rope.get("rope_theta") if isinstance(rope, dict) else config.get("rope_theta")
    return float(theta) if isinstance(theta, int | float) else None


def _warn_of_idle_parameters(layout: Sequence[OutputLayer], method: MergeMethod) -> Iterator[str]:
    given = {name for _, parameters in walk_paths(layout) for name in parameters}
    for parameter in method.parameters:
        if parameter.name in given and "without effect" in parameter.range.text:
            yield f"'{parameter.name}' has no effect in {method.name}."


def _warn_of_kept_misfits(layers: Sequence[LayerPlan]) -> Iterator[str]:
    counted: dict[str, int] = {}
    for layer in layers:
        for tensor in layer.tensors:
            if tensor.decision == "keep" and tensor.reason.startswith("it does not fit"):
                counted[tensor.component] = counted.get(tensor.component, 0) + 1
    if counted:
        told = ", ".join(f"{component} ({count})" for component, count in sorted(counted.items()))
        yield f"asked for and kept from the base because the donor's does not fit: {told}."


def _warn_of_hidden_entries(config: MergeConfig, layout: Sequence[OutputLayer]) -> Iterator[str]:
    """A filter behind one that always matches first can never decide anything."""
    for path, parameters in walk_paths(layout):
        for name, setting in parameters.items():
            for index, entry in enumerate(setting.entries):
                before = [earlier.filter for earlier in setting.entries[:index]]
                hiding = next((f for f in before if f is None or (entry.filter is not None and f in entry.filter)), "")
                if hiding != "":
                    told = f"'{hiding}'" if hiding else "the entry without a filter"
                    yield f"{config.source.locate(*path, name, index)}: {told} above it always matches first."
