"""Files and folders on top of the system's calls: whole or not there, linked or copied, and what a fault is called."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import stat
import uuid
from collections.abc import Iterable, Iterator
from pathlib import Path

from xmerge import disk
from xmerge.errors import StorageError
from xmerge.interrupt import check_stop

COPY_BYTES = 4 * 2**20
DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_NO_ALLOCATION = (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS)
_NO_FOLDER_SYNC = (errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS)
_NO_LINKS = (errno.EXDEV, errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK)


@contextlib.contextmanager
def open_file(path: Path, flags: int = os.O_RDONLY) -> Iterator[int]:
    """The descriptor of a file, closed at the end."""
    descriptor = disk.open(path, flags | os.O_CLOEXEC, 0o666)
    try:
        yield descriptor
    finally:
        disk.close(descriptor)


def read_into(descriptor: int, view: memoryview, place: int) -> int:
    """Fill `view` from a place in a file; how many bytes there were, fewer only at the file's end."""
    done = 0
    while done < len(view):
        count = disk.preadv(descriptor, [view[done:]], place + done)
        if count == 0:
            break
        done += count
    return done


def write_at(descriptor: int, data: memoryview, place: int) -> None:
    """Write all of `data` to a place in a file."""
    done = 0
    while done < len(data):
        count = disk.pwrite(descriptor, data[done:], place + done)
        if count == 0:
            raise OSError(errno.EIO, "nothing was written")
        done += count


def allocate(descriptor: int, size: int) -> None:
    """Take a file's space now, so that a full disk is known now; where that cannot be, only the size is set."""
    try:
        disk.allocate(descriptor, size)
    except OSError as error:
        if error.errno not in _NO_ALLOCATION:
            raise
        disk.ftruncate(descriptor, size)


def read_bytes(path: Path, most: int | None = None) -> bytes:
    """What a file holds, or its first bytes."""
    with open_file(path) as descriptor:
        size = disk.fstat(descriptor).st_size
        buffer = bytearray(size if most is None else min(size, most))
        return bytes(buffer[: read_into(descriptor, memoryview(buffer), 0)])


def read_text(path: Path) -> str:
    """A text in UTF-8."""
    return read_bytes(path).decode()


def encode(text: str) -> bytes:
    """A text in UTF-8, as it is; half a surrogate pair becomes its escape, which JSON reads back."""
    return text.encode("utf-8", "backslashreplace")


def write_text(path: Path, text: str) -> None:
    """Write a text, encoded."""
    write_bytes(path, encode(text))


def write_bytes(path: Path, data: bytes) -> None:
    """Write a small file, over what is there."""
    with open_file(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC) as descriptor:
        write_at(descriptor, memoryview(data), 0)


def replace_text(path: Path, text: str) -> None:
    """Write a text file under another name, sync it, and give it its name."""
    temporary = path.with_name(f"{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        write_text(temporary, text)
        sync_file(temporary)
        disk.rename(temporary, path)
    except OSError:
        with contextlib.suppress(OSError):
            remove_file(temporary)
        raise


def sync_file(path: Path) -> None:
    """Wait until a file's bytes are on the disk."""
    with open_file(path) as descriptor:
        disk.fsync(descriptor)


def sync_folder(path: Path) -> None:
    """Make the names in a folder last, where the file system knows how to."""
    with open_file(path, os.O_RDONLY | os.O_DIRECTORY) as descriptor:
        try:
            disk.fsync(descriptor)
        except OSError as error:
            if error.errno not in _NO_FOLDER_SYNC:
                raise


def make_folders(path: Path) -> None:
    """Make a folder, and those above it, where they are not there yet; what was made lasts."""
    try:
        _make_folder(path)
    except FileNotFoundError:
        if path.parent == path:
            raise
        make_folders(path.parent)
        _make_folder(path)


def _make_folder(path: Path) -> None:
    try:
        disk.mkdir(path)
    except OSError:
        # The system has many words for a folder that is there: that it exists, or that its disk is read-only.
        if not path.is_dir():
            raise
    else:
        sync_folder(path.parent)


def remove_file(path: Path) -> None:
    """Remove a file, if it is there."""
    with contextlib.suppress(FileNotFoundError):
        disk.unlink(path)


def remove_tree(path: Path) -> None:
    """Remove a file, or a folder and all in it, as far as that can be; of a link only the link goes."""
    with contextlib.suppress(OSError):
        if not stat.S_ISDIR(disk.lstat(path).st_mode):
            disk.unlink(path)
            return
        for name in sorted(disk.listdir(path)):
            remove_tree(path / name)
        disk.rmdir(path)


def link_or_copy(source: Path, target: Path) -> str:
    """Give a file a second name, or copy it where the file system has no links; says which."""
    try:
        disk.link(source, target)
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        copy_file(source, target)
        return "copied"
    return "linked"


def copy_file(source: Path, target: Path) -> None:
    """Copy a file's bytes, not its mode, in parts, so that a stop is answered; its space is taken first."""
    buffer = memoryview(bytearray(COPY_BYTES))
    with open_file(source) as reader, open_file(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL) as writer:
        size = disk.fstat(reader).st_size
        if size > COPY_BYTES:
            allocate(writer, size)
        done = 0
        while count := read_into(reader, buffer, done):
            check_stop()
            write_at(writer, buffer[:count], done)
            done += count


def hash_file(path: Path) -> tuple[int, str]:
    """(bytes, SHA-256) of a file."""
    with open_file(path) as descriptor:
        return hash_open(descriptor)


def digest_files(folder: Path, names: Iterable[str]) -> str:
    """One SHA-256 for what several files of a folder hold."""
    digest = hashlib.sha256()
    for name in names:
        digest.update(bytes.fromhex(hash_file(folder / name)[1]))
    return digest.hexdigest()


def hash_open(descriptor: int, most: int | None = None) -> tuple[int, str]:
    """(bytes, SHA-256) of an open file, or of its first bytes; answers a stop."""
    digest, done = hashlib.sha256(), 0
    buffer = memoryview(bytearray(COPY_BYTES if most is None else min(most, COPY_BYTES)))
    while count := read_into(descriptor, buffer if most is None else buffer[: most - done], done):
        check_stop()
        digest.update(buffer[:count])
        done += count
    return done, digest.hexdigest()


def storage_error(error: OSError, folder: Path, *, needed: int | None = None, doing: str = "written") -> StorageError:
    """The error for a failed write, or what else was being done: for a full disk, what is needed and what there is."""
    if error.errno not in DISK_FULL:
        where = None if error.filename in (None, folder, str(folder)) else str(error.filename)
        return StorageError(
            f"{folder} cannot be {doing}: {error.strerror}.", where=where, remedy="check the folder, then run again."
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
        told = disk.statvfs(folder)
    except OSError:
        return None
    return told.f_bavail * told.f_frsize if told.f_blocks else None
