"""Folded gains: a donor's norm over the base's, multiplied into the columns of a matrix that reads what they give."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from xmerge.checkpoints.headers import DTYPE_BYTES
from xmerge.engine.reading import TORCH_DTYPES, OpenSources
from xmerge.errors import CheckpointError
from xmerge.planning.memory import FOLDED_ELEMENTS
from xmerge.planning.plan import Gain, MergePlan, Segment

SMALLEST_GAIN = 1e-4
"""Of a norm's largest gain; a column read through a smaller one is not divided by it."""


class FoldedGain:
    """What each column of a matrix is multiplied by, block by block."""

    def __init__(self, gain: Gain, model: int, files: OpenSources, device: torch.device) -> None:
        """Read both norms.

        Args:
            gain: What to fold, and where the columns are.
            model: Whose matrix it is.
            files: Where the norms are.
            device: Where the matrix is multiplied.

        Raises:
            CheckpointError: A gain is no number, or one of the base's is too small to divide by.
        """
        self._stride, self._length, self._most = gain.stride, gain.length, FOLDED_ELEMENTS
        # Over and over, so that the factors of the columns of any elements in a row are one piece of it.
        self._factors = read_factors(gain, model, files).repeat(self._most // gain.length + 2).to(device)

    def apply(self, start: int, out: torch.Tensor) -> None:
        """Multiply a block of the matrix, whose first element is the one at `start`."""
        for done in range(0, out.numel(), self._most):
            self._multiply(start + done, out[done : done + self._most])

    def _multiply(self, start: int, out: torch.Tensor) -> None:
        first, last = start // self._stride, (start + out.numel() - 1) // self._stride
        factors = self._factors.narrow(0, first % self._length, last - first + 1)
        if self._stride > 1:
            factors = factors.repeat_interleave(self._stride).narrow(0, start - first * self._stride, out.numel())
        out.mul_(factors)


def check_gains(plan: MergePlan, folders: Sequence[Path]) -> None:
    """Read every norm that is going to be folded, so that one which cannot be is known before any layer is made.

    Args:
        plan: The plan.
        folders: For each of its models, where the shards lie.

    Raises:
        CheckpointError: A gain is no number, or one of the base's is too small to divide by.
    """
    for layer in plan.layers:
        folded = [(source.gain, source.model) for tensor in layer.tensors for source in tensor.sources if source.gain]
        if folded:
            with OpenSources(plan, layer, folders) as files:
                for gain, model in dict.fromkeys(folded):
                    read_factors(gain, model, files)


def read_factors(gain: Gain, model: int, files: OpenSources) -> torch.Tensor:
    """The donor's gain over the base's, in float64: one for each column.

    Raises:
        CheckpointError: A gain is no number, or one of the base's is too small to divide by.
    """
    donor = _read_norm(gain.donor, gain.donor_shift, gain.length, model, files)
    base = _read_norm(gain.base, gain.base_shift, gain.length, gain.base_model, files)
    _check_divisor(base, gain.base, files.label(gain.base_model))
    return donor.div_(base)


def _read_norm(segment: Segment, shift: float, length: int, model: int, files: OpenSources) -> torch.Tensor:
    """A norm's gains in float64."""
    raw = torch.empty(length * DTYPE_BYTES[segment.dtype], dtype=torch.uint8)
    files.read(model, segment, 0, raw.numpy().data)
    gains = raw.view(TORCH_DTYPES[segment.dtype]).double().add_(shift)
    if not torch.isfinite(gains).all():
        raise CheckpointError(
            f"{files.label(model)} holds NaN or infinity in {segment.tensor}, and 'input_norm' would fold it in.",
            remedy="repair the model, or take input_norm out of 'folds'.",
        )
    return gains


def _check_divisor(base: torch.Tensor, segment: Segment, label: str) -> None:
    small = (base.abs() <= SMALLEST_GAIN * base.abs().max()).nonzero()
    if small.numel():
        at = int(small[0])
        raise CheckpointError(
            f"{label} has a gain of {base[at].item():.3g} in {segment.tensor}, at element {at}, and 'input_norm' would "
            "divide by it.",
            why=f"that is less than {SMALLEST_GAIN:g} of its largest gain; the column would be blown up.",
            remedy="take input_norm out of 'folds'.",
        )
