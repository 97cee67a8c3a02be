"""Packed weights among the other tensors of a model: every part of one as the weight that it is a part of."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from xmerge.architecture import ResolvedModel, TensorSpec
from xmerge.architecture.models import expect_tensors


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
