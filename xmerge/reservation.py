"""Space taken before the first layer is made: a full disk is known at once, and nobody else fills it meanwhile.

Beside the shards it is for what lies beside them, and for the texts of an output: small, and estimated generously.
"""

from __future__ import annotations

import contextlib
import errno
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from xmerge import disk
from xmerge.source_cards import MOST_BYTES

if TYPE_CHECKING:
    from xmerge.planning.plan import LayerPlan, MergePlan

BLOCK = 4096
RECORD_BYTES, RECORD_BYTES_PER_TENSOR = 2 * BLOCK, 512
TEXT_BYTES, TEXT_BYTES_PER_TENSOR = 2**20, 1024
_NOT_HERE = (errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL, errno.ENOSYS, errno.EFBIG)
_lock = threading.Lock()
_held: dict[Path, list[Reservation]] = {}


class Reservation:
    """A file without a name, which goes with its process; it shrinks as what it was taken for is made."""

    def __init__(self, folder: Path, size: int) -> None:
        self._left = size
        self._descriptor = disk.open(folder, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600)
        try:
            disk.allocate(self._descriptor, size)
        except BaseException:
            self.close()
            raise

    def shrink(self, count: int | None) -> None:
        """Give some of it back, or all."""
        self._left = 0 if count is None else max(0, self._left - count)
        disk.ftruncate(self._descriptor, self._left)

    def close(self) -> None:
        """Give back what is left."""
        with contextlib.suppress(OSError):
            disk.close(self._descriptor)


@contextlib.contextmanager
def hold_space(folder: Path, size: int) -> Iterator[None]:
    """Hold space in a folder for what this process is going to write there; not where the file system has no way to.

    Raises:
        OSError: There is not so much.
    """
    try:
        reservation = Reservation(folder, size)
    except OSError as error:
        if error.errno not in _NOT_HERE:
            raise
        yield
        return
    with _lock:
        _held.setdefault(folder, []).append(reservation)
    try:
        yield
    finally:
        with _lock:
            _held[folder].remove(reservation)
            reservation.close()


def release_space(folder: Path, size: int | None = None) -> None:
    """Give back held space to what is about to be written, all of it by default; nothing where none is held.

    Raises:
        OSError: The disk fails.
    """
    with _lock:
        if _held.get(folder):
            # The latest: a stage's own, while that of the whole merge goes on.
            _held[folder][-1].shrink(size)


def estimate_entry(layer: LayerPlan) -> int:
    """Bytes that a layer takes in a store, with its record, in whole blocks."""
    blocks = -(-(len(layer.header) + layer.bytes_written) // BLOCK)
    return blocks * BLOCK + RECORD_BYTES + RECORD_BYTES_PER_TENSOR * len(layer.tensors)


def estimate_texts(plan: MergePlan) -> int:
    """Bytes that an output takes beside its shards."""
    notices = len(plan.notices) * MOST_BYTES
    return TEXT_BYTES + notices + TEXT_BYTES_PER_TENSOR * sum(len(layer.tensors) for layer in plan.layers)
