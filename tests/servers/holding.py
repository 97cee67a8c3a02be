"""Merges that are stopped in the middle for as long as a test needs it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

from tests.flows.tiny import Bench
from tests.servers.processes import wait_until

HOLD = "hold"
"""While a file of this name lies beside an output, no more layers of it are merged than the number in the file."""
HELD_AT = 2


@contextlib.contextmanager
def held(place: Path, layers: int = HELD_AT) -> Iterator[None]:
    """Let no unhurried merge into a folder get beyond so many layers, but for those that are under way then."""
    mark = place / HOLD
    mark.write_text(str(layers), encoding="utf-8")
    try:
        yield
    finally:
        mark.unlink()


@contextlib.contextmanager
def holding(bench: Bench) -> Iterator[Callable[..., None]]:
    """Let no unhurried merge of a bench get beyond its middle; what is given waits until these outputs are there."""

    def wait_for_middle(*names: str) -> None:
        wait_until(lambda: all(count_layers(bench, name) >= HELD_AT for name in names), f"half-way: {names}")

    with held(bench.place):
        yield wait_for_middle


def count_layers(bench: Bench, name: str) -> int:
    """How many layers of an output are finished while it is being made: the weights come first, then what they are."""
    return len(list(bench.place.glob(f".{name}.xmerge/store/*/*.json")))
