"""Merges that are stopped in the middle for as long as a test needs it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

from tests.flows.tiny import Bench
from tests.servers.processes import wait_until

HOLD = "hold"
"""While a file of this name lies beside an output, nothing of it is merged beyond the first layers."""
HELD_AT = 2


@contextlib.contextmanager
def holding(bench: Bench) -> Iterator[Callable[..., None]]:
    """Let no unhurried merge of a bench get beyond its middle; what is given waits until these outputs are there."""
    mark = bench.place / HOLD
    mark.touch()

    def wait_for_middle(*names: str) -> None:
        wait_until(lambda: all(count_layers(bench, name) >= HELD_AT for name in names), f"half-way: {names}")

    try:
        yield wait_for_middle
    finally:
        mark.unlink()


def count_layers(bench: Bench, name: str) -> int:
    """How many layers of an output are finished while it is being made: the weights come first, then what they are."""
    return len(list(bench.place.glob(f".{name}.xmerge/store/*/*.json")))
