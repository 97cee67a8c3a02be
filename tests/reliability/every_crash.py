"""A power loss before every call that changes something on the disk: `make faults`; `--every N` takes a sample.

For each, states that the syncs until then do not rule out are put on a disk. In each the output must be whole or not
there, and a run that finds it must give the bytes of an undisturbed one without making a finished layer again.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from tests.reliability.every_call import Bench, open_bench, say
from tests.reliability.power_loss import Journal, State, journal
from tests.small_merges import digest_files, list_tree
from xmerge.errors import XmergeError
from xmerge.progress import Silence

SEED = 0


class NoteLayers(Silence):
    """Notes how long the journal was when a layer was told to be finished."""

    def __init__(self, kept: Journal) -> None:
        self._journal = kept
        self.done_at: list[int] = []

    def layer_done(self, result, done, total):
        """One more."""
        self.done_at.append(len(self._journal.entries))


class Losses:
    """A recorded merge, and what power losses may leave of it."""

    def __init__(self, bench: Bench) -> None:
        self.bench = bench
        place = bench.make_place()
        with journal(place) as self.journal:
            layers = NoteLayers(self.journal)
            bench.merge(place / "out", reporter=layers)
        self.done_at = layers.done_at
        self.crashes = [*self.journal.calls, len(self.journal.entries)]

    def find_faults(self, crash: int, count: int) -> Iterator[str]:
        """What goes wrong in states after a power loss before an entry of the journal; nothing, if all is well."""
        choose = random.Random(f"{SEED} {crash}")  # noqa: S311 - states, not secrets
        done = sum(at <= crash for at in self.done_at)
        for number, state in enumerate(self.journal.list_states(crash, choose, count)):
            yield from (f"state {number}: {found}" for found in self._find_faults_of(state, done))

    def _find_faults_of(self, state: State, done: int) -> Iterator[str]:
        place = self.bench.make_place()
        state.write_to(place)
        out = place / "out"
        if out.exists() and digest_files(out) != self.bench.whole:
            yield f"half an output: {list_tree(place)}"
        try:
            reused = self.bench.merge(out)
        except XmergeError as error:
            yield f"the run failed: {error}"
            return
        if digest_files(out) != self.bench.whole:
            yield "the run gave other bytes"
        if reused < done:
            yield f"{done} layers were finished and {reused} of them reused"
        if os.listdir(place) != ["out"]:
            yield f"the run left {os.listdir(place)}"
        shutil.rmtree(place)


def main() -> int:
    """Lose power before every such call, or every N-th; the exit code is 1 if anything broke."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--every", type=int, default=1, help="lose power only before every N-th call")
    parser.add_argument("--states", type=int, default=6, help="random states for each, beside all kept and all lost")
    parser.add_argument("--folder", type=Path, help="where to work")
    options = parser.parse_args()
    started, broken = time.monotonic(), 0
    with open_bench(options.folder) as bench:
        losses = Losses(bench)
        crashes = losses.crashes[:: options.every]
        for crash in crashes:
            for found in losses.find_faults(crash, options.states):
                broken += 1
                say(f"power lost before entry {crash}: {found}")
    states = len(crashes) * (options.states + 2)
    say(f"{len(crashes)} power losses, {states} states, {broken} broken, in {time.monotonic() - started:.0f} s")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
