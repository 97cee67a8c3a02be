"""Reading a shard from end to end: its SHA-256, and where numbers are NaN or infinite."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from typing import NamedTuple

import torch

from xmerge.checkpoints.headers import HeaderEntry
from xmerge.engine.reading import TORCH_DTYPES
from xmerge.errors import StorageError
from xmerge.files import read_into
from xmerge.interrupt import check_stop

SCAN_BYTES = 2**20
PLACES = 3
"""How many of the numbers that are none are told by their places."""
SCANNED_DTYPES = {**TORCH_DTYPES, "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2}


class Nonfinite(NamedTuple):
    """The numbers of a tensor that are NaN or infinite."""

    number: int
    places: tuple[int, ...]
    """Of the first ones, in elements."""


def scan_shard(descriptor: int, header_bytes: int, entries: Sequence[HeaderEntry]) -> tuple[str, dict[str, Nonfinite]]:
    """The SHA-256 of an open shard, and for each tensor with NaN or infinity how many and the first ones' places.

    Args:
        descriptor: The open file.
        header_bytes: Where its data starts.
        entries: Its tensors, in the order of their data.
    """
    buffer = torch.empty(SCAN_BYTES, dtype=torch.uint8)
    view = buffer.numpy().data
    digest = hashlib.sha256()
    for start in range(0, header_bytes, SCAN_BYTES):
        part = view[: min(SCAN_BYTES, header_bytes - start)]
        read_fully(descriptor, part, start)
        digest.update(part)
    found: dict[str, Nonfinite] = {}
    for entry in entries:
        for start in range(entry.begin, entry.end, SCAN_BYTES):
            check_stop()
            count = min(SCAN_BYTES, entry.end - start)
            read_fully(descriptor, view[:count], header_bytes + start)
            digest.update(view[:count])
            if entry.dtype in SCANNED_DTYPES:
                values = buffer[:count].view(SCANNED_DTYPES[entry.dtype])
                _note_nonfinite(found, entry.name, values, (start - entry.begin) // values.element_size())
    return digest.hexdigest(), found


def read_fully(descriptor: int, view: memoryview, place: int) -> None:
    """Fill `view` from a place in a file.

    Raises:
        StorageError: The file cannot be read, or ends too early.
    """
    try:
        count = read_into(descriptor, view, place)
    except OSError as error:
        raise StorageError(f"a shard cannot be read back: {error.strerror}.") from error
    if count < len(view):
        raise StorageError("a shard is shorter than its header says.")


def _note_nonfinite(found: dict[str, Nonfinite], name: str, values: torch.Tensor, offset: int) -> None:
    # Not every float of 8 bits can be asked whether it is finite.
    values = values.float() if values.element_size() == 1 else values
    # A sum tells cheaply that all are finite; only a sum that is not makes a closer look worth its price.
    wide = torch.float64 if values.dtype == torch.float64 else torch.float32
    if math.isfinite(values.sum(dtype=wide).item()):
        return
    bad = (~torch.isfinite(values)).nonzero()
    if bad.numel():
        before = found.get(name, Nonfinite(0, ()))
        places = (*before.places, *(offset + each for each in bad.flatten()[:PLACES].tolist()))[:PLACES]
        found[name] = Nonfinite(before.number + bad.numel(), places)
