"""Writing small files so that they are whole or not there, and linking large ones."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path


def replace_text(path: Path, text: str) -> None:
    """Write a text file under another name, sync it, and give it its name."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    with temporary.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.rename(path)


def sync_folder(path: Path) -> None:
    """Make the names in a folder last."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def link_or_copy(source: Path, target: Path) -> str:
    """Give a file a second name, or copy it where the file system has no links; says which."""
    try:
        os.link(source, target)
    except OSError as error:
        if error.errno not in (errno.EXDEV, errno.EPERM, errno.EOPNOTSUPP, errno.EMLINK):
            raise
        copy_synced(source, target)
        return "copied"
    return "linked"


def copy_synced(source: Path, target: Path) -> None:
    """Copy a file's bytes and wait until they are on the disk."""
    shutil.copyfile(source, target)
    with target.open("rb") as file:
        os.fsync(file.fileno())
