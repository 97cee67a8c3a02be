"""Slots: the tensors that the output must have, before it is decided what fills them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from xmerge.architecture import ResolvedModel, TensorSpec
from xmerge.checkpoints import MERGEABLE_DTYPES, dtype_of
from xmerge.planning.slices import OutputLayer

_NUMBER_IN_NAME = re.compile(r"(?<=\.)\d+(?=\.)")


@dataclass(frozen=True, slots=True)
class Slot:
    """One tensor of the output, to be filled."""

    name: str
    spec: TensorSpec
    """The target's tensor whose role, shape and name it has."""
    layer: OutputLayer
    dtype: str

    @property
    def component(self) -> str:
        """What people know it by: its role, or its name without the numbers of layer and expert."""
        return name_component(self.spec)


def list_slots(target: ResolvedModel, layer: OutputLayer, written_dtype: str | None) -> Iterator[Slot]:
    """The tensors of one layer of the output, by name.

    Args:
        target: The model whose architecture the output has.
        layer: The output's layer, or what stands before or after the layers.
        written_dtype: What weights are written in, as torch calls it; None: as the target has them.
    """
    found = []
    for spec in target.by_layer.get(layer.template_layer, ()):
        if (layer.index is None and spec.after_layers != layer.after_layers) or is_stray_head(spec, target):
            continue
        name = spec.name if layer.index is None else spec.name_in(layer.index)
        # The scales of packed weights are as exact as the program that packed them made them.
        plain = spec.dtype in MERGEABLE_DTYPES and spec.packed is None
        dtype = dtype_of(written_dtype) if written_dtype and plain else spec.dtype
        found.append(Slot(name, spec, layer, dtype))
    yield from sorted(found, key=lambda slot: slot.name)


def name_component(spec: TensorSpec) -> str:
    """What people know a tensor by: its role, or its name without the numbers of layer and expert."""
    return spec.role or _NUMBER_IN_NAME.sub("*", spec.template)


def is_stray_head(spec: TensorSpec, model: ResolvedModel) -> bool:
    """Whether it is an output matrix of its own where config.json makes the embedding the output.

    Transformers 4 ignores it, transformers 5 uses it where it differs from the embedding.
    """
    return spec.role == "output" and model.tied
