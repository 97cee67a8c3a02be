"""Space taken before the first layer is made: a full disk is known at once, and nobody else fills it meanwhile."""

from __future__ import annotations

import contextlib
import errno
import os
import threading
from collections.abc import Iterator
from pathlib import Path

from xmerge import disk

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

    def shrink(self, count: int) -> None:
        """Give some of it back."""
        self._left = max(0, self._left - count)
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


def release_space(folder: Path, size: int) -> None:
    """Give back held space to what is about to be written; nothing where none is held."""
    with _lock:
        if _held.get(folder):
            _held[folder][0].shrink(size)
