"""What memory a merge takes: buffers of a block for each worker, whatever the size of the model."""

from __future__ import annotations

from xmerge.checkpoints.headers import DTYPE_BYTES
from xmerge.errors import PlanError
from xmerge.memory import LIMIT, allowed_bytes, available_bytes
from xmerge.methods import find_method
from xmerge.planning.plan import MergePlan, Source, TensorPlan

BLOCK_ELEMENTS = {"cpu": 2**17, "cuda": 2**24}
"""How many numbers are combined at a time; a result does not depend on it by more than the order of float64 sums."""

WINDOW_BYTES = 64 * 2**20
"""How much of a source is read ahead where the neighbours in a block lie far apart in the file."""

FOLDED_ELEMENTS = 2**17
"""How many numbers are multiplied by the gains of their columns at a time."""

FAR_BYTES = 64
WIDEST = 8
"""Bytes of the widest number that is read: a float64."""

RULE_BYTES = 24
"""What a rule computes with, for each source and each number of a block, beside what was read."""
RULE_COUNTS = 2**21
"""Bytes of the histograms from which the largest numbers are selected, for each source."""
MASK_BYTES = 32 * 2**20
"""How many bytes of masks are kept, a bit for each element and donor, so that they need not be drawn again."""


def estimate_buffers(plan: MergePlan, device: str = "cpu") -> int:
    """Bytes of the buffers that one worker holds at most."""
    block = BLOCK_ELEMENTS[device]
    computed = [tensor for tensor in plan.tensors if not tensor.is_copied]
    ahead = max((sum(_estimate_source(source, block) for source in tensor.sources) for tensor in computed), default=0)
    return max((_estimate_tensor(tensor, block) for tensor in computed), default=0) + ahead


def fit_workers(plan: MergePlan, device: str, workers: int) -> int:
    """How many layers may be under way at once, at most `workers`, so that their buffers fit into memory together.

    Raises:
        PlanError: Not even one worker's do.
        ConfigError: The environment allows something that is no size.
    """
    needed = _estimate_host(plan, device)
    allowed, available = allowed_bytes(), available_bytes()
    room = min((each for each in (allowed, available) if each is not None), default=None)
    if room is None or needed == 0:
        return workers
    if needed > room:
        raise PlanError(
            "there is too little memory for this merge.",
            why=f"one layer under way takes {needed:,} bytes of buffers, and {room:,} are "
            f"{f'allowed by {LIMIT}' if room == allowed else 'available'}.",
            remedy=f"raise {LIMIT}." if room == allowed else "end other programs, or use a machine with more memory.",
        )
    return min(workers, room // needed)


def _estimate_host(plan: MergePlan, device: str) -> int:
    """Bytes of one worker's buffers in main memory: on a GPU only what files are read into."""
    return estimate_buffers(plan) if device == "cpu" else WIDEST * BLOCK_ELEMENTS[device]


def reads_ahead(source: Source, block: int) -> bool:
    """Whether the neighbours in a block of the output lie far apart in the file, as in a transposed tensor.

    Block by block such a source would be read in pieces of a few numbers, a call for each.
    """
    return block * WIDEST <= WINDOW_BYTES and any(
        segment.order and segment.elements > block and segment.order[-1][1] * DTYPE_BYTES[segment.dtype] > FAR_BYTES
        for segment in source.segments
    )


def _estimate_source(source: Source, block: int) -> int:
    """A window; the gains of the columns over and over, and those of the elements, in float64."""
    folded = 2 * 8 * (FOLDED_ELEMENTS + 2 * source.gain.length) if source.gain else 0
    return folded + (WINDOW_BYTES if reads_ahead(source, block) else 0)


def _estimate_tensor(tensor: TensorPlan, block: int) -> int:
    """As read; each source in float32, and in float64 for inner products; sum, difference and rounded result."""
    method = find_method(tensor.method)
    if method.is_rule:
        row = tensor.shape[-1] if method.by_rows and tensor.shape else 1
        return _estimate_rule(tensor, block, max(block, row))
    each_source = 4 + (8 if tensor.coefficients is None else 0)
    return (WIDEST + each_source * len(tensor.sources) + 4 + 4 + 4) * block


def _estimate_rule(tensor: TensorPlan, block: int, longest: int) -> int:
    """As read and as written, a block of each; what is computed with, for the longest row; histograms and masks."""
    sources = len(tensor.sources)
    computed = (4 + RULE_BYTES) * longest + RULE_COUNTS
    masks = min(MASK_BYTES, sources * (tensor.elements // 8 + 1)) if tensor.draws else 0
    return (WIDEST + DTYPE_BYTES[tensor.dtype]) * block + computed * sources + masks
