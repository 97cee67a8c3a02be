"""The point of a sphere that is nearest to the directions of all models."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated

from xmerge.methods.contract import Gram, PerModel, Range, merge_method

OPPOSITE = 1e-7
"""How near to a straight angle no direction leads from one point of the sphere to the other."""


@merge_method(base="as_input", inputs=(1, None))
def karcher(
    gram: Gram,
    count: int,
    *,
    max_iter: Annotated[float, Range("how many steps are taken at most", 0, whole=True)] = 10,
    tol: Annotated[float, Range("the shortest step, angle and norm that count", 0.0)] = 1e-5,
    weight: Annotated[PerModel, Range("without effect here, as in mergekit")] = (1.0,),
) -> Sequence[float]:
    """The Riemannian (Karcher) mean of the directions of models, at the mean of their lengths.

    y = u sum_i |x_i| / N, with u the unit vector whose squared angles to all x_i have the smallest sum: from the mean
    of the x_i / |x_i|, u = exp_u(mean_i log_u(x_i / |x_i|)) until a step is shorter than `tol`. Karcher 1977,
    https://doi.org/10.1002/cpa.3160300502. All models count alike, and a `base_model` is one of them. Tensors no
    longer than `tol` have no direction; where none has, y is their mean. Of two opposite directions the first is taken.
    """
    norms = [gram.norm(i) for i in range(count)] if count > 1 else []
    pointing = [i for i, norm in enumerate(norms) if norm > tol]
    if not pointing:
        return [1.0 / count] * count
    cosines = [[gram.dot(i, j) / norms[i] / norms[j] if i != j else 1.0 for j in pointing] for i in pointing]
    mean = _walk(cosines, int(max_iter), tol)
    length = math.fsum(norms) / count
    found = dict(zip(pointing, mean, strict=True))
    return [found[i] * length / norms[i] if i in found else 0.0 for i in range(count)]


def _walk(cosines: Sequence[Sequence[float]], steps: int, tol: float) -> list[float]:
    """The mean of unit vectors as a sum of them, from the cosines between them."""
    n = len(cosines)
    place = [1.0 / n] * n
    length = _measure(cosines, place)
    place = [1.0] + [0.0] * (n - 1) if length < tol else [each / length for each in place]
    for _ in range(steps):
        step = _find_step(cosines, place, tol)
        length = _measure(cosines, step)
        if length < tol:
            break
        place = [math.cos(length) * at + math.sin(length) / length * to for at, to in zip(place, step, strict=True)]
        length = _measure(cosines, place)
        place = [each / length for each in place]
    return place


def _find_step(cosines: Sequence[Sequence[float]], place: Sequence[float], tol: float) -> list[float]:
    """The mean of the ways from a place to each vector, in the tangent space, as a sum of the vectors."""
    n = len(cosines)
    step, back = [0.0] * n, 0.0
    for i, row in enumerate(cosines):
        cosine = max(-1.0, min(1.0, math.fsum(at * each for at, each in zip(place, row, strict=True))))
        angle = math.acos(cosine)
        if angle < tol or math.pi - angle < OPPOSITE:
            continue
        step[i] = angle / math.sin(angle) / n
        back += step[i] * cosine
    return [each - back * at for each, at in zip(step, place, strict=True)]


def _measure(cosines: Sequence[Sequence[float]], parts: Sequence[float]) -> float:
    """The length of a sum of unit vectors."""
    n = range(len(parts))
    square = math.fsum(parts[i] * parts[j] * cosines[i][j] for i in n for j in n)
    return math.sqrt(max(square, 0.0))
