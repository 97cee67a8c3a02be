"""Weighted sums of models."""

from collections.abc import Sequence
from typing import Annotated

from xmerge.methods.contract import Gram, PerModel, Range, merge_method


@merge_method(base="as_input", inputs=(1, None))
def linear(
    gram: Gram,
    count: int,
    *,
    weight: Annotated[PerModel, Range("how much of a model goes in")],
    normalize: Annotated[bool, Range("divide by the sum of the weights")] = True,
) -> Sequence[float]:
    """Weighted average of models.

    y = sum_i w_i x_i, divided by sum_i w_i when `normalize` is true. Model soups: Wortsman et al. 2022,
    https://arxiv.org/abs/2203.05482. Weights that sum to 0 cannot be normalized.
    """
    if not normalize:
        return weight
    total = sum(weight)
    if abs(total) < 1e-8:
        raise ValueError(f"the weights {list(weight)} sum to {total:g}, and 'normalize' divides by their sum")
    return [w / total for w in weight]
