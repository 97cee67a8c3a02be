"""Writing small files so that they are whole or not there, and linking large ones."""

from __future__ import annotations

import contextlib
import errno
import os
import uuid
from pathlib import Path

from xmerge.errors import StorageError
from xmerge.interrupt import check_stop

COPY_BYTES = 4 * 2**20
DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_NO_LINKS = (errno.EXDEV, errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK)


def write_text(path: Path, text: str) -> None:
    """Write a text as UTF-8, as it is; half a surrogate pair becomes its escape, which JSON reads back."""
    path.write_bytes(text.encode("utf-8", "backslashreplace"))


def replace_text(path: Path, text: str) -> None:
    """Write a text file under another name, sync it, and give it its name."""
    temporary = path.with_name(f"{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        write_text(temporary, text)
        sync_file(temporary)
        temporary.rename(path)
    except OSError:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise


def sync_file(path: Path) -> None:
    """Wait until a file's bytes are on the disk."""
    _sync(path, os.O_RDONLY)


def sync_folder(path: Path) -> None:
    """Make the names in a folder last."""
    _sync(path, os.O_RDONLY | os.O_DIRECTORY)


def link_or_copy(source: Path, target: Path) -> str:
    """Give a file a second name, or copy it where the file system has no links; says which."""
    try:
        os.link(source, target)
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        copy_file(source, target)
        return "copied"
    return "linked"


def copy_file(source: Path, target: Path) -> None:
    """Copy a file's bytes, not its mode, in parts, so that a stop is answered."""
    buffer = memoryview(bytearray(COPY_BYTES))
    with source.open("rb", buffering=0) as reader, target.open("xb") as writer:
        while count := reader.readinto(buffer):
            check_stop()
            writer.write(buffer[:count])


def storage_error(error: OSError, folder: Path, *, needed: int | None = None) -> StorageError:
    """The error for a failed write: what is needed and what there is, for a full disk."""
    if error.errno not in DISK_FULL:
        where = None if error.filename in (None, folder, str(folder)) else str(error.filename)
        return StorageError(
            f"{folder} cannot be written: {error.strerror}.", where=where, remedy="check the folder, then run again."
        )
    told = [f"{needed:,} bytes are needed at once"] if needed else []
    free = free_bytes(folder)
    if error.errno == errno.EFBIG:
        told.append("a file may not grow that large here: see `ulimit -f`, and the file system's own limit")
    elif free is not None:
        told.append(f"{free:,} bytes are free")
    return StorageError(
        f"there is no space left in {folder}.",
        why=f"{' and '.join(told)} ({error.strerror}).",
        remedy="free some space and run the same command again: finished layers are kept.",
    )


def free_bytes(folder: Path) -> int | None:
    """Bytes that a file system still takes; None where it does not say."""
    try:
        told = os.statvfs(folder)
    except OSError:
        return None
    return told.f_bavail * told.f_frsize if told.f_blocks else None


def _sync(path: Path, flags: int) -> None:
    descriptor = os.open(path, flags | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
