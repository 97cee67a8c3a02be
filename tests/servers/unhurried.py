"""The flow and the command line, with layers that take their time: `python -m tests.servers.unhurried merge ...`."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from tests.servers.holding import HOLD
from xmerge.interrupt import check_stop

SECONDS_A_LAYER = 0.3


def slow_down() -> None:
    """Make each layer of this process's merges take longer, and still stop when it is asked to."""
    from xmerge import engine
    from xmerge.store import Store

    real = engine.merge_layer

    def unhurried(plan: Any, index: int, folders: Any, store: Store, device: str = "auto") -> Any:
        end = time.monotonic() + SECONDS_A_LAYER
        while time.monotonic() < end or is_held(store.path):
            check_stop()
            time.sleep(0.03)
        return real(plan, index, folders, store, device)

    engine.merge_layer = unhurried


def is_held(store: Path) -> bool:
    """Whether a merge is to wait where it is, in the middle: some layers are finished and others are not."""
    try:
        most = int((store.parents[1] / HOLD).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return False
    return len(list(store.glob("*/*.safetensors"))) >= most


slow_down()

if __name__ == "__main__":
    from xmerge.cli import main

    main()
else:
    from flows.merge import merge_models

    __all__ = ["merge_models"]
