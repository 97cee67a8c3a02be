"""What memory a merge takes: buffers of a block for each worker, whatever the size of the model."""

from __future__ import annotations

from xmerge.planning.plan import MergePlan, TensorPlan

BLOCK_ELEMENTS = {"cpu": 2**17, "cuda": 2**24}
"""How many numbers are combined at a time; a result does not depend on it by more than the order of float64 sums."""

WIDEST = 8
"""Bytes of the widest number that is read: a float64."""


def estimate_buffers(plan: MergePlan, device: str = "cpu") -> int:
    """Bytes of the buffers that one worker holds at most."""
    numbers = max((_bytes_for_each_number(tensor) for tensor in plan.tensors if not tensor.is_copied), default=0)
    return numbers * BLOCK_ELEMENTS[device]


def _bytes_for_each_number(tensor: TensorPlan) -> int:
    """As read; each source in float32, and in float64 for inner products; sum, difference and rounded result."""
    each_source = 4 + (8 if tensor.coefficients is None else 0)
    return WIDEST + each_source * len(tensor.sources) + 4 + 4 + 4
