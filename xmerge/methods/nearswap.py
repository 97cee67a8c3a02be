"""The donor's numbers where they are near the base's."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from xmerge.methods.contract import Block, Range, Rule, Streamed, merge_rule

if TYPE_CHECKING:
    from torch import Tensor

SMALLEST_DISTANCE = 1e-6
"""Numbers that are nearer to each other are taken to be this far apart, as in mergekit."""


@merge_rule(base="required", inputs=(2, 2))
def nearswap(
    tensor: Streamed,
    *,
    t: Annotated[float, Range("how far from the base's a number may be to be taken whole", 0)],
) -> Rule:
    """The donor's numbers where they are near the base's, and a step of t towards them elsewhere.

    y = base + w (x - base) with w = min(t / max(|x - base|, 1e-6), 1). From the model QuartetAnemoi-70B,
    https://huggingface.co/alchemonaut/QuartetAnemoi-70B-t0.0001. It looks at one number at a time: t is a distance
    between weights, and means little across models that were not trained from the same one.
    """

    def swap(block: Block) -> Tensor:
        donor = block.inputs[1]
        delta = donor - block.base
        share = (t / delta.abs().clamp_(min=SMALLEST_DISTANCE)).clamp_(max=1.0)
        # Base and difference can be a rounding away from the donor.
        return donor.where(share == 1.0, delta.mul_(share).add_(block.base))

    return swap
