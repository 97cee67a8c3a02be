"""Loaded into the workers of a cluster: units that take their time, and some that kill whoever merges them."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xmerge import units
from xmerge.interrupt import check_stop
from xmerge.units import UnitOfWork

if TYPE_CHECKING:
    from xmerge.engine import LayerResult

SECONDS_A_UNIT = 0.3
ENDLESS = "endless"
"""A file of this name in the store makes units take longer than anybody waits."""
DEADLY = "deadly-"
"""A file of this name, with the number of a layer after it, makes that layer deadly."""


def slow_down() -> None:
    """Make each unit of this process take longer, and still stop when it is asked to."""
    real = units.merge_unit

    def merge_unit(unit: UnitOfWork) -> list[LayerResult]:
        store = Path(unit.store)
        for _ in range(10_000 if (store / ENDLESS).exists() else 10):
            check_stop()
            time.sleep(SECONDS_A_UNIT / 10)
        if any((store / f"{DEADLY}{index}").exists() for index in unit.layers):
            os.kill(os.getpid(), signal.SIGKILL)
        return real(unit)

    units.merge_unit = merge_unit


def dask_setup(_worker: Any) -> None:
    """What Dask calls in each worker that it starts."""
    slow_down()
