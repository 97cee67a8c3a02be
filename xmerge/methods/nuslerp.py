"""Spherical interpolation of two models, or of their task vectors, whole or slice by slice."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from xmerge.methods.contract import Coefficient, Gram, PerModel, Range, merge_method

SMALLEST_SUM = 1e-6
SMALLEST_NORM = 1e-7
SMALLEST_SINE = 1e-6
"""Of an angle that inner products in float64 tell from 0 and from a straight angle."""


@merge_method(base="optional", inputs=(2, 2))
def nuslerp(
    gram: Gram,
    count: int,
    *,
    weight: Annotated[PerModel, Range("a model's share of the way between the two")],
    nuslerp_flatten: Annotated[bool, Range("take each tensor as one long vector")] = True,
    nuslerp_row_wise: Annotated[bool, Range("without nuslerp_flatten: columns are the vectors, not rows")] = False,
) -> Sequence[Coefficient]:
    """Spherical interpolation between two models; with a base, between their task vectors.

    y = sin((1-t)a)/sin(a) X_1 + sin(ta)/sin(a) X_2 (+ base), with X_i = x_i (- base), t = w_2 / (w_1 + w_2) or 0.5
    where that sum is 0, and a the angle between X_1 and X_2; linear interpolation where they are parallel or opposite.
    Shoemake 1985, https://doi.org/10.1145/325165.325242. The vectors are whole tensors; without `nuslerp_flatten` the
    slices along the last axis, which are the rows of a matrix, and with `nuslerp_row_wise` those along the first,
    which are its columns: that is what mergekit does, and the reverse of what its documentation says. Unlike slerp
    it turns nearly parallel vectors too. The base is not one of the two.
    """
    first, second = weight[-2:]
    t = 0.5 if abs(first + second) < SMALLEST_SUM else second / (first + second)
    shares = [1.0 - t, t] if t in (0.0, 1.0) else _turn(gram, t, nuslerp_flatten, nuslerp_row_wise)
    return [1.0 - shares[0] - shares[1], *shares] if gram.has_base else shares


def _turn(gram: Gram, t: float, flatten: bool, columns: bool) -> list[Coefficient]:
    """What the two vectors of each slice are multiplied by."""
    one, two = (1, 2) if gram.has_base else (0, 1)
    slices = (gram.deltas if gram.has_base else gram).slices(None if flatten else 0 if columns else -1)
    lengths = slices.norm(one).clamp(min=SMALLEST_NORM) * slices.norm(two).clamp(min=SMALLEST_NORM)
    angle = (slices.dot(one, two) / lengths).clamp(-1.0, 1.0).acos()
    sine = angle.sin()
    curved = sine > SMALLEST_SINE
    return [((share * angle).sin() / sine).where(curved, share) for share in (1.0 - t, t)]
