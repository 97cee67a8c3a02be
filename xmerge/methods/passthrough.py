"""One model's tensors, unchanged or scaled."""

from collections.abc import Sequence
from typing import Annotated

from xmerge.methods.contract import Gram, PerModel, Range, merge_method


@merge_method(base="as_input", inputs=(1, 1))
def passthrough(
    gram: Gram, count: int, *, scale: Annotated[PerModel, Range("what every number is multiplied by")] = (1.0,)
) -> Sequence[float]:
    """One model's tensor as it is, or times `scale`.

    y = scale x. With slices this stacks layers of several models, each slice with one source (a frankenmerge).
    """
    return scale
