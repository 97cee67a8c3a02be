"""The system calls that touch a file: whatever xmerge reads, writes, names or syncs goes through here.

They are the system's own, under their own names, and are looked up here at each call (`disk.pwrite(...)`): that is what
lets a test count them, fail the n-th, or replay what a crash may leave behind.
"""

from __future__ import annotations

import ctypes
import functools
import os
from collections.abc import Callable
from fcntl import LOCK_EX, LOCK_NB, flock
from os import (
    close,
    copy_file_range,
    fstat,
    fsync,
    ftruncate,
    link,
    listdir,
    lstat,
    mkdir,
    open,  # noqa: A004 - the system's own name
    preadv,
    pwrite,
    rename,
    rmdir,
    stat,
    statvfs,
    symlink,
    unlink,
)

__all__ = (
    "LOCK_EX",
    "LOCK_NB",
    "allocate",
    "close",
    "copy_file_range",
    "flock",
    "fstat",
    "fsync",
    "ftruncate",
    "link",
    "listdir",
    "lstat",
    "mkdir",
    "open",
    "preadv",
    "pwrite",
    "rename",
    "rmdir",
    "stat",
    "statvfs",
    "symlink",
    "unlink",
)


def allocate(descriptor: int, size: int) -> None:
    """Take the space for the first `size` bytes of an open file, where the file system can.

    Not `os.posix_fallocate`: where there is no such call the C library writes into every block instead, for minutes.
    """
    if _fallocate()(descriptor, 0, 0, size):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


@functools.cache
def _fallocate() -> Callable[[int, int, int, int], int]:
    call = ctypes.CDLL(None, use_errno=True).fallocate
    call.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)
    return call
