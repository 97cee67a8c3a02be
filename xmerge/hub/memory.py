"""What the Hub said of a commit, kept in its local cache: a commit never changes, so nothing is asked twice.

The client keeps listings of commits that it fetched whole. Here are those of commits of which only parts are read, and
the headers of shards that are not there themselves: so a plan can be made again offline.
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from xmerge.files import make_folders, read_text, replace_text
from xmerge.hub.client import cache_folder


def remember(repo: str, commit: str, name: str, said: str) -> None:
    """Keep a text that belongs to a commit."""
    path = _path_of(repo, commit, name)
    # A cache that cannot be written may still hold every file; fetching says so if it does not.
    with suppress(OSError):
        make_folders(path.parent)
        replace_text(path, said)


def recall(repo: str, commit: str, name: str) -> str | None:
    """A text that was kept; None: it was not, or it can no longer be read."""
    try:
        return read_text(_path_of(repo, commit, name))
    except (OSError, UnicodeDecodeError):
        return None


def _path_of(repo: str, commit: str, name: str) -> Path:
    return cache_folder(repo) / "xmerge" / commit / f"{name}.json"
