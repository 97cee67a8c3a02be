"""Spherical interpolation of two models."""

import math
from collections.abc import Sequence
from typing import Annotated

from xmerge.methods.contract import Gram, Range, merge_method

NEARLY_PARALLEL = 0.9995
SMALLEST_NORM = 1e-8


@merge_method(base="required", inputs=(2, 2))
def slerp(
    gram: Gram, count: int, *, t: Annotated[float, Range("how far from the base (0) to the donor (1)", 0.0, 1.0)]
) -> Sequence[float]:
    """Spherical interpolation between the base and one donor.

    y = sin((1-t)a)/sin(a) base + sin(ta)/sin(a) donor, with a the angle between the two tensors, each taken as one
    long vector; linear interpolation where |cos a| > 0.9995. Shoemake 1985, https://doi.org/10.1145/325165.325242.
    Unrelated tensors stand at a right angle, so that t = 0.3 already gives 0.89 base + 0.45 donor.
    """
    if t in (0.0, 1.0):
        return [1.0 - t, t]
    cosine = gram.dot(0, 1) / _length(gram, 0) / _length(gram, 1)
    if abs(cosine) > NEARLY_PARALLEL:
        return [1.0 - t, t]
    angle = math.acos(cosine)
    return [math.sin((1.0 - t) * angle) / math.sin(angle), math.sin(t * angle) / math.sin(angle)]


def _length(gram: Gram, i: int) -> float:
    """The norm of input i; 1 for a tensor of zeros, which has no direction."""
    norm = gram.norm(i)
    return norm if norm > SMALLEST_NORM else 1.0
