"""Biases of donors that the base has no place for: how large they are beside the weights they belong to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from xmerge.planning.plan import MergePlan
from xmerge.planning.table import show_ranges

if TYPE_CHECKING:
    from xmerge.engine.results import LayerResult


@dataclass(frozen=True)
class BiasLoss:
    """What one component loses of one donor, over all layers of the output."""

    component: str
    donor: str
    base: str
    layers: tuple[int, ...]
    """The output's; none for what stands outside the layers."""
    ratios: tuple[float, ...]
    """Norm of the biases over that of the weight as it was merged, of every tensor for which it is a number."""

    @property
    def matters(self) -> bool:
        """Whether some bias is not known to be all zeros."""
        return not self.ratios or max(self.ratios) > 0.0

    def __str__(self) -> str:
        where = f" (layers {show_ranges(self.layers)})" if self.layers else ""
        told = f"{self.component}{where}: the bias of {self.donor} is dropped, because {self.base} has no place for it"
        if not self.ratios:
            return f"{told}; how large it is beside the weight cannot be told."
        low, high = f"{min(self.ratios):.3g}", f"{max(self.ratios):.3g}"
        return f"{told}; its norm is {low if low == high else f'{low} to {high}'} times the weight's."


def list_bias_losses(plan: MergePlan, results: Sequence[LayerResult]) -> tuple[BiasLoss, ...]:
    """What was lost, component by component and donor by donor, in the order of the plan."""
    found: dict[tuple[str, int], list[tuple[int | None, float | None]]] = {}
    for layer, result in zip(plan.layers, results, strict=True):
        for tensor, outcome in zip(layer.tensors, result.tensors, strict=True):
            for lost, ratio in zip(tensor.lost_biases, outcome.bias_ratios, strict=True):
                found.setdefault((tensor.component, lost.model), []).append((layer.index, ratio))
    return tuple(
        BiasLoss(
            component=component,
            donor=plan.models[model].label,
            base=plan.models[plan.target].label,
            layers=tuple(layer for layer, _ in measured if layer is not None),
            ratios=tuple(ratio for _, ratio in measured if ratio is not None),
        )
        for (component, model), measured in found.items()
    )
