"""Stopping a run on a signal: work in progress looks here between two blocks."""

from __future__ import annotations

import threading

from xmerge.errors import Interrupted

_stop = threading.Event()


def request_stop() -> None:
    """Make every running layer stop at its next block."""
    _stop.set()


def clear_stop() -> None:
    """Forget an earlier request, before a new run."""
    _stop.clear()


def check_stop() -> None:
    """Raise `Interrupted` if a stop has been requested."""
    if _stop.is_set():
        raise Interrupted("the merge was interrupted.", remedy="run the same command again to resume.")
