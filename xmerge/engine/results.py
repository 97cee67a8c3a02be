"""What merging a layer has given: values only."""

from __future__ import annotations

from xmerge.values import Value


class SourceStamp(Value):
    """A file as it was when it was read: what a digest of its header cannot see."""

    pin: str
    file: str
    size: int
    modified_ns: int
    inode: int


class TensorResult(Value):
    """What a tensor of the output has become."""

    name: str
    nonfinite: int = 0
    """How many of its numbers are NaN or infinite."""
    replaced: str | None = None
    """Why the base's tensor stands in its place: which source holds NaN or infinity, and where."""
    coefficients: tuple[float, ...] = ()
    """What each source was multiplied by; none for copied bytes."""
    cosine: float | None = None
    """Cosine to the base's tensor, None where the base was not read."""
    norm_ratio: float | None = None
    """Norm over the base's norm."""
    donor_cosines: tuple[float, ...] = ()
    """Cosine of each other source to the first, where the method looked at them."""
    changed: float | None = None
    """The share of its numbers that a rule has made other than the base's; None for a combination."""
    bias_ratios: tuple[float | None, ...] = ()
    """Norm of the biases over that of their weight as it was merged, for each of the plan's `lost_biases`; None where
    the biases hold NaN or infinity, or the weight is all zeros."""


class LayerResult(Value):
    """A layer in the store."""

    label: str
    fingerprint: str
    bytes: int
    sha256: str
    tensors: tuple[TensorResult, ...]
    stamps: tuple[SourceStamp, ...]
    """The files it was made from."""
    device: str
    """Where it was merged, in the end."""
    seconds: float
    notes: tuple[str, ...] = ()
    """What went otherwise than it was asked for: where a device ran out of memory."""
    reused: bool = False
    """Whether an earlier run had made it."""
