"""Packed weights among the other tensors of a model: every part of one as the weight that it is a part of."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from xmerge.architecture import ResolvedModel, TensorSpec
from xmerge.architecture.models import expect_tensors
from xmerge.architecture.quantization import PackedWeight, Packing, tell_method


def list_as_weights(model: ResolvedModel) -> Iterator[TensorSpec]:
    """A model's tensors; a part of a packed weight has role, layer and name of what it would be unpacked."""
    known = expect_tensors(model.family, model.axes) if model.packed and model.family else {}
    for spec in model.tensors:
        place = known.get(spec.packed.name) if spec.packed and not spec.parts else None
        if place is None:
            yield spec
        else:
            line = place.line
            yield replace(
                spec,
                role=line.role,
                layer=place.layer,
                after_layers=place.after,
                parts=line.parts,
                template=line.name,
                line=line.template.name,
            )


def suppose_packed(model: ResolvedModel) -> ResolvedModel:
    """A model without headers, every matrix of its layers packed if config.json says that some are."""
    method = tell_method(model.checkpoint.config)
    if method is None:
        return model
    packing = Packing(name=method, reason="its config.json says that its weights are quantised")
    weights = {
        spec.name: PackedWeight(model.label, packing, spec.name, (spec.name,))
        for spec in model.tensors
        if spec.layer is not None and len(spec.shape) > 1
    }
    held = [spec for spec in model.tensors if spec.name in weights]
    places = {(spec.layer, part.role): weights[spec.name] for spec in held for part in spec.parts}
    tensors = tuple(replace(spec, packed=weights.get(spec.name)) for spec in model.tensors)
    return replace(model, tensors=tensors, packed=places)
