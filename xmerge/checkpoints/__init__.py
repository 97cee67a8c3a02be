"""Checkpoints: a model's files on disk, read by their headers."""

from xmerge.checkpoints.checkpoint import Checkpoint, Shard, StoredTensor, read_checkpoint
from xmerge.checkpoints.headers import DTYPE_BYTES, MERGEABLE_DTYPES, dtype_of, torch_name_of

__all__ = [
    "DTYPE_BYTES",
    "MERGEABLE_DTYPES",
    "Checkpoint",
    "Shard",
    "StoredTensor",
    "dtype_of",
    "read_checkpoint",
    "torch_name_of",
]
