"""Make a donor's tensor fit a slot of the target: where its numbers lie, and how they are brought to its convention."""

from __future__ import annotations

import math
from dataclasses import dataclass

from xmerge.architecture import ResolvedModel, TensorSpec
from xmerge.architecture.models import RolePart
from xmerge.checkpoints import StoredTensor
from xmerge.checkpoints.headers import DTYPE_BITS
from xmerge.planning.plan import Segment, Source
from xmerge.planning.slices import Input

HEAD_KEYS = ("num_attention_heads", "num_key_value_heads", "head_dim")
ROTATED_ROLES = ("attn_q", "attn_k")


@dataclass(frozen=True)
class Absent:
    """The donor has no tensor that does this."""

    reason: str


@dataclass(frozen=True)
class Misfit:
    """The donor has such a tensor, and it does not fit."""

    reason: str


Fit = Source | Absent | Misfit


@dataclass(frozen=True, slots=True)
class Offer:
    """What one input has for a tensor of the output."""

    input: Input
    label: str
    fit: Fit


def align(spec: TensorSpec, target: ResolvedModel, donor: ResolvedModel, index: int, layer: int | None) -> Fit:
    """What a donor's layer gives to a tensor of the target.

    Args:
        spec: The target's tensor.
        target: The model it belongs to.
        donor: The model that is to give.
        index: The donor's index in the plan.
        layer: The donor's layer; None outside the layers.
    """
    if spec.parts and donor.family is not None:
        return _align_by_role(spec, target, donor, index, layer)
    if donor.model_type == target.model_type:
        return _align_by_name(spec, target, donor, index, layer)
    return Absent(f"{donor.label} ({donor.kind}) has no tensor known to do what {spec.template} does")


def _align_by_role(spec: TensorSpec, target: ResolvedModel, donor: ResolvedModel, index: int, layer: int | None) -> Fit:
    assert target.family is not None and donor.family is not None
    segments: list[Segment] = []
    steps: list[str] = []
    for part in spec.parts:
        found = _find_part(donor, layer, part.role)
        if found is None:
            return Absent(f"{donor.label} ({donor.kind}) has no {part.role}")
        theirs, their_part = found
        if their_part.axes != part.axes:
            return Misfit(_tell_axes(part, their_part, target, donor))
        if target.family.rope != donor.family.rope and part.role.startswith(ROTATED_ROLES):
            return Misfit(
                f"{part.role}: {target.label} rotates it by '{target.family.rope}' pairs of rows, {donor.label} by "
                f"'{donor.family.rope}'; its rows would have to be put in another order"
            )
        segments = _append(segments, _cut(theirs, their_part))
        if theirs.template != spec.template:
            steps.append(_tell_step(spec, theirs, their_part))
    shift = _norm_shift(spec, target, donor)
    if shift:
        steps.append(f"norm gain {donor.family.norm_gain} -> {target.family.norm_gain}")
    return Source(
        model=index, pin=donor.checkpoint.pin, segments=tuple(segments), shift=shift, steps=tuple(dict.fromkeys(steps))
    )


def _find_part(donor: ResolvedModel, layer: int | None, role: str) -> tuple[TensorSpec, RolePart] | None:
    """A donor that ties its output to its embedding gives the embedding for the output."""
    found = donor.by_role.get((layer, role))
    if role == "output" and donor.tied:
        return donor.by_role.get((None, "token_embd"))
    return found


def _align_by_name(spec: TensorSpec, target: ResolvedModel, donor: ResolvedModel, index: int, layer: int | None) -> Fit:
    theirs = donor.by_template.get((layer, spec.template))
    if theirs is None:
        return Absent(f"{donor.label} has no {spec.template}")
    if theirs.shape != spec.shape:
        return Misfit(f"{spec.template}: {target.label} has {list(spec.shape)}, {donor.label} has {list(theirs.shape)}")
    # Only a family file says which tensors hold heads; without one the name has to do.
    if target.family is None and "attn" in spec.template.replace("attention", "attn"):
        heads = [_tell_heads(model) for model in (target, donor)]
        if heads[0] != heads[1]:
            return Misfit(f"{spec.template}: {target.label} has {heads[0]}, {donor.label} has {heads[1]}")
    segment = _whole(theirs.stored)
    return Source(model=index, pin=donor.checkpoint.pin, segments=(segment,))


def _whole(stored: StoredTensor) -> Segment:
    return Segment(
        tensor=stored.name,
        file=stored.file,
        dtype=stored.dtype,
        offset=stored.offset,
        elements=math.prod(stored.shape),
    )


def _cut(spec: TensorSpec, part: RolePart) -> Segment:
    """The rows of one role, which lie together because rows are stored one after another."""
    row = math.prod(spec.shape[1:])
    start = spec.stored.offset + part.first_row * row * DTYPE_BITS[spec.dtype] // 8
    return Segment(tensor=spec.name, file=spec.stored.file, dtype=spec.dtype, offset=start, elements=part.rows * row)


def _append(segments: list[Segment], segment: Segment) -> list[Segment]:
    """Join a segment to the one before it where they touch."""
    if (
        segments
        and segments[-1].tensor == segment.tensor
        and segments[-1].offset + segments[-1].nbytes == segment.offset
    ):
        joined = segments[-1].model_copy(update={"elements": segments[-1].elements + segment.elements})
        return [*segments[:-1], joined]
    return [*segments, segment]


def _norm_shift(spec: TensorSpec, target: ResolvedModel, donor: ResolvedModel) -> float:
    """What to add to a donor's norm weight so that base and donor multiply by the same thing."""
    assert target.family is not None and donor.family is not None
    if spec.role is None or not spec.role.endswith("_norm") or target.family.norm_gain == donor.family.norm_gain:
        return 0.0
    return -1.0 if target.family.norm_gain == "1+w" else 1.0


def _tell_step(spec: TensorSpec, theirs: TensorSpec, part: RolePart) -> str:
    name = theirs.template
    if len(theirs.parts) > 1:
        return f"rows {part.first_row}:{part.first_row + part.rows} of {name}"
    return f"joined with {name}" if len(spec.parts) > 1 else f"named {name}"


def _tell_heads(model: ResolvedModel) -> str:
    return ", ".join(f"{key} {model.checkpoint.config.get(key)}" for key in HEAD_KEYS)


def _tell_axes(ours: RolePart, theirs: RolePart, target: ResolvedModel, donor: ResolvedModel) -> str:
    return f"{ours.role}: {target.label} has {_tell_part(ours)}, {donor.label} has {_tell_part(theirs)}"


def _tell_part(part: RolePart) -> str:
    sizes = [math.prod(size for _, size in dimension) for dimension in part.axes]
    axes = {axis: size for dimension in part.axes for axis, size in dimension}
    return f"{sizes} ({', '.join(f'{axis} {size}' for axis, size in axes.items())})"
