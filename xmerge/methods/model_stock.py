"""The centre of fine-tuned models, from the angles between their task vectors."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from typing import Annotated

from xmerge.methods.contract import Coefficient, Gram, Range, merge_method

SMALLEST_NORMS = 1e-6
"""The least product of two norms that is divided by."""
SMALLEST_DIVISOR = 1e-6


@merge_method(base="required", inputs=(3, None))
def model_stock(
    gram: Gram,
    count: int,
    *,
    filter_wise: Annotated[bool, Range("an angle for each row of a matrix, not one for the whole tensor")] = False,
) -> Sequence[Coefficient]:
    """From the base towards the mean of its donors, the further the more their task vectors agree.

    y = t mean_i x_i + (1 - t) base, with t = N c / (1 + (N - 1) c), N the number of donors, and c the mean over all
    pairs of donors of the cosine between their task vectors. Jang et al. 2024, https://arxiv.org/abs/2403.19522. All
    donors count alike. Where 1 + (N - 1) c is 0, as for two opposite task vectors, the base stays.
    """
    slices = gram.deltas.slices(-1 if filter_wise else None)
    donors = count - 1
    cosines = [
        (slices.dot(i, j) / (slices.norm(i) * slices.norm(j)).clamp(min=SMALLEST_NORMS)).clamp(-1.0, 1.0)
        for i, j in combinations(range(1, count), 2)
    ]
    cosine = sum(cosines[1:], cosines[0]) / len(cosines)
    divisor = 1.0 + (donors - 1) * cosine
    t = (donors * cosine / divisor).where(divisor.abs() >= SMALLEST_DIVISOR, 0.0)
    return [1.0 - t, *[t / donors] * donors]
