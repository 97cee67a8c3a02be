"""The page `progress`: how far the merging of layers is."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING
from uuid import UUID

from prefect.artifacts import create_progress_artifact, update_progress_artifact

from tasks.markdown import escape
from tasks.pages.showing import name_key, try_to_show
from xmerge.planning import MergePlan
from xmerge.planning.table import show_bytes

if TYPE_CHECKING:
    from xmerge.engine import LayerResult

MOST_UPDATES = 100
"""In one merge, of however many layers."""
SECONDS_BETWEEN_UPDATES = 0.5


class ProgressPage:
    """How far a merge is, drawn on its page each time that another hundredth of the output is there."""

    def __init__(self, plan: MergePlan, series: str, pause: float = SECONDS_BETWEEN_UPDATES) -> None:
        self._plan, self._key, self._pause = plan, name_key("progress", series), pause
        self._id: UUID | None = None
        self._began = time.monotonic()
        self._shown_at, self._shown_bytes = -math.inf, -math.inf

    def show(self, results: Mapping[int, LayerResult]) -> None:
        """Show what there is of the layers, by their places in the plan."""
        done = sum(self._plan.layers[index].bytes_written for index in results)
        total, now = self._plan.bytes_written, time.monotonic()
        is_due = now >= self._shown_at + self._pause and done >= self._shown_bytes + total / MOST_UPDATES
        if len(results) < len(self._plan.layers) and not is_due:
            return
        text = escape(tell_progress(self._plan, results, now - self._began))
        percent = 100.0 * done / total if total else 100.0
        self._id = try_to_show("progress", lambda: self._put(percent, text)) or self._id
        self._shown_at, self._shown_bytes = time.monotonic(), done

    def _put(self, percent: float, text: str) -> UUID:
        if self._id is None:
            made = create_progress_artifact(percent, key=self._key, description=text)
        else:
            made = update_progress_artifact(self._id, percent, description=text)
        # Awaitable only where an event loop runs, and a task's thread has none.
        assert isinstance(made, UUID)
        return made


def tell_progress(plan: MergePlan, results: Mapping[int, LayerResult], seconds: float) -> str:
    """`12 of 34 layers, 3 of them reused; 1.5 of 3 GB, 200 MB/s, 8 s left`, after so many seconds of merging."""
    reused = sum(result.reused for result in results.values())
    layers = f"{len(results)} of {len(plan.layers)} layers, {reused} of them reused"
    done = sum(plan.layers[index].bytes_written for index in results)
    merged = sum(plan.layers[index].bytes_written for index, result in results.items() if not result.reused)
    told = [f"{layers}; {show_bytes(done)} of {show_bytes(plan.bytes_written)}"]
    if merged and seconds > 0:
        speed = merged / seconds
        told += [f"{show_bytes(speed)}/s", f"{show_seconds((plan.bytes_written - done) / speed)} left"]
    return ", ".join(told)


def show_seconds(seconds: float) -> str:
    """`8 s`, `3 min 20 s`, `2 h 5 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"
