"""One run at a time in a folder, and the name of the one that has it.

The kernel's lock on a file ends with its process, however that ends. Where a file system has no such locks, as some
network ones have not, each run signs a file of its own instead: whoever then sees another living signature steps back.
"""

from __future__ import annotations

import contextlib
import errno
import os
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from xmerge import disk
from xmerge.errors import InUseError, StorageError
from xmerge.files import make_folders, read_into, read_text, remove_file, replace_text, write_at
from xmerge.processes import Process, describe_self
from xmerge.values import Value

LOCK_NAME = "lock"
NO_LOCKS = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL)
ATTEMPTS = 100
SIGNATURE_BYTES = 4096
NO_PLACE = "make sure that this machine has the storage of that path mounted and may write to it, or name another."


class Signature(Value):
    """Who holds a lock."""

    holder: Process
    since: str

    def __str__(self) -> str:
        return f"{self.holder} since {self.since}"


@dataclass(frozen=True)
class FolderLock:
    """A lock that this run holds, or tries to."""

    file: Path
    descriptor: int

    def is_held(self) -> bool:
        """Whether its file still has its name: the last holder may have removed the folder."""
        try:
            return os.path.samestat(disk.fstat(self.descriptor), disk.stat(self.file))
        except OSError:
            return False

    def close(self) -> None:
        """Let go of it."""
        with contextlib.suppress(OSError):
            disk.close(self.descriptor)


@contextlib.contextmanager
def hold_folder(folder: Path, what: str) -> Iterator[FolderLock]:
    """Make a folder if it is not there, and hold it.

    Args:
        folder: What to hold.
        what: What is made there, for errors.

    Raises:
        InUseError: Another run has it, and is named.
        StorageError: It cannot be made or locked.
    """
    lock = _take(folder, what)
    try:
        yield lock
    finally:
        with contextlib.suppress(OSError):
            if lock.file.name == LOCK_NAME:
                disk.ftruncate(lock.descriptor, 0)
            else:
                remove_file(lock.file)
        lock.close()


def is_lock(name: str) -> bool:
    """Whether a file in a folder belongs to its lock."""
    return name.startswith(LOCK_NAME)


def _take(folder: Path, what: str) -> FolderLock:
    reason, remedy = "it is removed as often as it is made", "run again."
    for _ in range(ATTEMPTS):
        try:
            make_folders(folder)
            lock = _lock_in_kernel(folder, what) or _sign_beside(folder, what)
        except FileNotFoundError as error:
            # The holder may have removed the folder in this very moment.
            reason, remedy = error.strerror or reason, NO_PLACE
            continue
        except OSError as error:
            raise StorageError(
                f"the work folder {folder} cannot be made: {error.strerror}.", remedy=NO_PLACE
            ) from error
        if lock.is_held():
            return lock
        lock.close()
    raise StorageError(f"the work folder {folder} cannot be made: {reason}.", remedy=remedy)


def _lock_in_kernel(folder: Path, what: str) -> FolderLock | None:
    """The kernel's lock; None where it has none."""
    flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
    lock = FolderLock(folder / LOCK_NAME, disk.open(folder / LOCK_NAME, flags, 0o666))
    try:
        disk.flock(lock.descriptor, disk.LOCK_EX | disk.LOCK_NB)
    except BlockingIOError:
        holder = _wait_for_signature(lock.descriptor)
        lock.close()
        raise InUseError(
            f"{what} is being merged by {holder}.", remedy="wait for it to end, or name another output."
        ) from None
    except OSError as error:
        lock.close()
        if error.errno in NO_LOCKS:
            return None
        raise
    # A signature that cannot be written, on a full disk, is missed by nobody but a second run.
    with contextlib.suppress(OSError):
        disk.ftruncate(lock.descriptor, 0)
        write_at(lock.descriptor, memoryview(_write_signature().encode()), 0)
    return lock


def _sign_beside(folder: Path, what: str) -> FolderLock:
    """A signed file of this run's own, if no other run that may live has one; two that come at once both step back."""
    file = folder / f"{LOCK_NAME}.{uuid.uuid4().hex[:8]}"
    replace_text(file, _write_signature())
    lock = FolderLock(file, disk.open(file, os.O_RDONLY | os.O_CLOEXEC))
    try:
        for name in sorted(disk.listdir(folder)):
            if is_lock(name) and name not in (LOCK_NAME, file.name) and not name.endswith(".tmp"):
                _refuse_living(folder / name, what)
    except BaseException:
        with contextlib.suppress(OSError):
            remove_file(file)
        lock.close()
        raise
    return lock


def _refuse_living(other: Path, what: str) -> None:
    """Remove the file of a run that has died, and step back from any other."""
    signature = _read_signature(read_text(other))
    if signature is not None and signature.holder.is_dead():
        remove_file(other)
        return
    raise InUseError(
        f"{what} is being merged by {signature or 'another process'}.",
        why="this file system has no locks, so a process on another machine cannot be asked whether it lives.",
        remedy=f"wait for it to end, or name another output; if it has died, remove {other}.",
    )


def _write_signature() -> str:
    return Signature(holder=describe_self(), since=time.strftime("%Y-%m-%d %H:%M:%S")).model_dump_json()


def _read_signature(text: str) -> Signature | None:
    try:
        return Signature.model_validate_json(text)
    except ValueError:
        return None


def _wait_for_signature(descriptor: int) -> str:
    """Who holds the lock; it may have been taken in this very moment and not be signed yet."""
    buffer = bytearray(SIGNATURE_BYTES)
    for _ in range(20):
        try:
            text = buffer[: read_into(descriptor, memoryview(buffer), 0)].decode(errors="replace")
        except OSError:
            break
        if signature := _read_signature(text):
            return str(signature)
        time.sleep(0.01)
    return "another process"
