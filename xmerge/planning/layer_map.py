"""Which donor layer meets which layer of the target, when whole models are merged."""

from __future__ import annotations

from xmerge.architecture import ResolvedArchitecture
from xmerge.config import MergeConfig
from xmerge.errors import PlanError


def map_layers(config: MergeConfig, architecture: ResolvedArchitecture, model: int) -> list[int | None]:
    """For each layer of the target, the layer of a model that meets it; None: the model takes no part there.

    Raises:
        PlanError: A pair names a layer that does not exist, or depths differ and nothing says how the layers meet.
    """
    depth, donor = architecture.target.layers, architecture.models[model]
    if model == architecture.target_index:
        return list(range(depth))
    if isinstance(config.layer_map, tuple):
        return _map_by_pairs(config, architecture, model)
    if config.layer_map == "proportional":
        return [spread(layer, depth, donor.layers) for layer in range(depth)]
    if depth == donor.layers:
        return list(range(depth))
    raise PlanError(
        f"{architecture.target.label} has {depth} layers and {donor.label} has {donor.layers}.",
        where=config.source.locate("layer_map"),
        why="'layer_map: exact' lets layers of the same number meet.",
        remedy="set 'layer_map: proportional', or list pairs [base layer, donor layer].",
    )


def spread(layer: int, depth: int, donor_depth: int) -> int:
    """The donor's layer at the same share of its depth, to the nearest, halves up: first on first, last on last."""
    last = max(depth - 1, 1)
    return (2 * layer * (donor_depth - 1) + last) // (2 * last)


def _map_by_pairs(config: MergeConfig, architecture: ResolvedArchitecture, model: int) -> list[int | None]:
    target, donor = architecture.target, architecture.models[model]
    column: list[int | None] = [None] * target.layers
    assert isinstance(config.layer_map, tuple)
    for index, (at, layer) in enumerate(config.layer_map):
        for owner, number in ((target, at), (donor, layer)):
            if number >= owner.layers:
                raise PlanError(
                    f"the pair [{at}, {layer}] names layer {number}, and {owner.label} has {owner.layers} layers.",
                    where=config.source.locate("layer_map", index),
                    remedy=f"layers of {owner.label} count from 0 to {owner.layers - 1}.",
                )
        column[at] = layer
    return column
