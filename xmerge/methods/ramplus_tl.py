"""Task vectors where one donor moved, raised for what is lost where several did."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from xmerge.methods.arithmetic import add_up
from xmerge.methods.contract import Block, PerModel, Range, Rule, Streamed, merge_rule
from xmerge.methods.ram import find_active, find_moved

if TYPE_CHECKING:
    from torch import Tensor


@merge_rule(base="required", inputs=(2, None), readings=1)
def ramplus_tl(
    tensor: Streamed,
    *,
    weight: Annotated[PerModel, Range("without effect here, as in mergekit")] = (1.0,),
    r: Annotated[float, Range("how much a donor's own numbers are raised for each that it shares")] = 0.1,
    alpha: Annotated[float, Range("the most that shared numbers count for each of its own", 0)] = 0.2,
    epsilon: Annotated[float, Range("a number of a task vector that is not larger counts as 0", 0)] = 1e-5,
) -> Rule:
    """Task vectors: the only one that moved an element, raised, or the mean of those that did.

    d_i and c as for `ram`; y = base + sum_i l_i d_i where c is 1, base + sum_i d_i / max(c, 1) elsewhere;
    l_i = 1 + r min(a_i / u_i, alpha), with u_i the elements of the tensor that donor i alone moved and a_i those that
    others moved too. RAM+ in its tensor-local form, https://arxiv.org/abs/2601.13572.
    """
    gains = [1.0 + r * min(shared / max(alone, 1.0), alpha) for alone, shared in _count_moved(tensor, epsilon)]

    def merge(block: Block) -> Tensor:
        active, count = find_active(block, epsilon)
        alone = add_up([each * gain for each, gain in zip(active, gains, strict=True)])
        return block.base + alone.where(count == 1, add_up(active) / count.clamp(min=1))

    return merge


def _count_moved(tensor: Streamed, epsilon: float) -> list[tuple[float, float]]:
    """For each donor the elements that it alone moved, and those that others moved too."""

    def measure(block: Block) -> list[Tensor]:
        active, count = find_active(block, epsilon)
        moved, once = [find_moved(each) for each in active], count.eq_(1.0)
        return [each for donor in moved for each in (donor, donor * once)]

    counts = tensor.total(measure)
    return [(alone, moved - alone) for moved, alone in zip(counts[::2], counts[1::2], strict=True)]
