"""The mean direction of any number of models, as long as they are on average."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated

from xmerge.methods.contract import Gram, PerModel, Range, merge_method

SMALLEST_SUM = 1e-8
ROUNDING = 1e-7
"""Shorter than that, a mean of unit vectors is made of the rounding of their inner products."""


@merge_method(base="optional", inputs=(1, None))
def multislerp(
    gram: Gram,
    count: int,
    *,
    weight: Annotated[PerModel, Range("how much of a model goes in")],
    normalize_weights: Annotated[bool, Range("divide by the sum of the weights")] = True,
    eps: Annotated[float, Range("a mean of directions that is shorter has none", 0.0)] = 1e-8,
) -> Sequence[float]:
    """The weighted mean of the directions of models, or of their task vectors, at the weighted mean of their lengths.

    y = m/|m| sum_i w_i |X_i| (+ base), with X_i = x_i (- base) and m = sum_i w_i X_i / (|X_i| + eps), w_i divided by
    their sum when `normalize_weights` is true. Goddard 2025, https://goddard.blog/posts/multislerp-wow-what-a-cool-idea,
    where m/|m| is moved on by the mean of the directions in its tangent space, which is 0. One model alone is
    unchanged. Where m vanishes, y = sum_i w_i X_i (+ base) for two models and for tensors of zeros; other directions
    that cancel out have no mean, and weights that sum to 0 cannot be normalized.
    """
    weights = list(weight[1:] if gram.has_base else weight)
    base = [0.0] if gram.has_base else []
    if len(weights) == 1:
        return [*base, 1.0]
    shares = _share(weights) if normalize_weights else weights
    found = _lengthen(gram.deltas if gram.has_base else gram, len(base), shares, eps)
    return [1.0 - math.fsum(found), *found] if base else found


def _share(weights: Sequence[float]) -> list[float]:
    total = math.fsum(weights)
    if abs(total) < SMALLEST_SUM:
        raise ValueError(f"the weights {list(weights)} sum to {total:g}, and 'normalize_weights' divides by their sum")
    return [each / total for each in weights]


def _lengthen(gram: Gram, first: int, shares: Sequence[float], eps: float) -> list[float]:
    """What each vector is multiplied by, the first of them being that number among the inputs."""
    norms = [gram.norm(first + i) for i in range(len(shares))]
    parts = [share / (norm + eps) if norm else 0.0 for share, norm in zip(shares, norms, strict=True)]
    square = math.fsum(
        one * two * gram.dot(first + i, first + j) for i, one in enumerate(parts) for j, two in enumerate(parts)
    )
    mean = math.sqrt(max(square, 0.0))
    if mean < max(eps, ROUNDING * math.fsum(map(abs, shares))):
        if len(shares) == 2 or not any(norms):
            return list(shares)
        raise ValueError(
            f"with the weights {[round(each, 6) for each in shares]} the directions of its models cancel out: their "
            f"mean has the length {mean:.3g}"
        )
    length = math.fsum(share * norm for share, norm in zip(shares, norms, strict=True))
    return [part * length / mean for part in parts]
