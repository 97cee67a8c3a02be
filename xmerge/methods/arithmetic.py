"""What several methods compute with: sums over the donors, and the rounding of a number to float32."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def add_up(tensors: Sequence[Tensor]) -> Tensor:
    """The sum in the order of the donors, in a tensor of its own."""
    if len(tensors) == 1:
        return tensors[0].clone()
    total = tensors[0] + tensors[1]
    for each in tensors[2:]:
        total += each
    return total


def to_float32(value: float) -> float:
    """The float32 number that is nearest."""
    (rounded,) = struct.unpack("f", struct.pack("f", value))
    return float(rounded)
