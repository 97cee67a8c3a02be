"""The flow and the command line, with layers that take their time: `python -m tests.servers.unhurried merge ...`."""

from __future__ import annotations

import time
from typing import Any

from xmerge.interrupt import check_stop

SECONDS_A_LAYER = 0.5


def slow_down() -> None:
    """Make each layer of this process's merges take longer, and still stop when it is asked to."""
    from xmerge import engine

    real = engine.merge_layer

    def unhurried(*args: Any) -> Any:
        for _ in range(10):
            check_stop()
            time.sleep(SECONDS_A_LAYER / 10)
        return real(*args)

    engine.merge_layer = unhurried  # type: ignore[assignment]


slow_down()

if __name__ == "__main__":
    from xmerge.cli import main

    main()
else:
    from flows.merge import merge_models

    __all__ = ["merge_models"]
