"""Every call that a small merge makes to the disk, failed or killed in turn: `make faults`; `--every N` takes a sample.

Each case is a process of its own, which a fault strikes at one call. What it leaves must be the whole output or none,
its error one of ours, and a second run must give the bytes of an undisturbed one without making a finished layer again.
"""

from __future__ import annotations

import argparse
import mmap
import os
import shutil
import signal
import struct
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.reliability.failing_disk import Call, Fault, failing, list_faults, record_calls
from tests.small_merges import digest_files, list_tree, run, write_model
from xmerge.errors import XmergeError
from xmerge.progress import Silence

EXPECTED = {"short": (0,), "kill": (-signal.SIGKILL,), "EIO": (0, 3, 6), "ENOSPC": (0, 6)}
"""How a run may end: 0 where it can do without the call, as with a file to be tidied away."""


class CountLayers(Silence):
    """Counts finished layers where another process sees it, also after a kill."""

    def __init__(self) -> None:
        self._shared = mmap.mmap(-1, 8)

    @property
    def done(self) -> int:
        """Layers that were told to be finished."""
        (done,) = struct.unpack("q", self._shared[:])
        return int(done)

    def layer_done(self, result, done, total):
        """One more."""
        self._shared[:] = struct.pack("q", done)


class Bench:
    """Two models, the output that an undisturbed run makes of them, and the calls that it makes."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.models = folder, folder / "models"
        write_model(self.models / "llama", seed=1, num_hidden_layers=2)
        write_model(self.models / "qwen3", "qwen3", seed=2, num_hidden_layers=3, intermediate_size=16)
        (self.models / "llama" / "tokenizer.json").write_text('{"model": {"vocab": {"a": 0}}}')
        self.merge(self.make_place() / "out")
        out = self.make_place() / "out"
        self.calls = self.record(out)
        self.whole = digest_files(out)

    def make_place(self) -> Path:
        """A new folder for an output; all are as deep, because of every path each folder above is looked at."""
        return Path(tempfile.mkdtemp(dir=self.folder))

    def record(self, out: Path) -> list[Call]:
        """Merge undisturbed; every call that is made."""
        with record_calls() as calls:
            self.merge(out)
        return calls

    def merge(self, out: Path, **options: Any) -> int:
        """Merge with one worker, so that the calls come in one order; how many layers were reused."""
        return run(self.models, out, workers=1, **options).reused

    def find_faults(self, fault: Fault) -> list[str]:
        """What a fault breaks; nothing, if all is as it should be."""
        place = self.make_place()
        counter = CountLayers()
        ended, told = self._run_apart(fault, place / "out", counter)
        found = []
        if ended not in EXPECTED[fault.kind]:
            found.append(f"it ended with {ended}: {told}")
        if (place / "out").exists() and digest_files(place / "out") != self.whole:
            found.append(f"it left half an output: {list_tree(place / 'out')}")
        if ended == 0 and not (place / "out").exists():
            found.append("it ended well and there is no output")
        done = counter.done
        try:
            reused = self.merge(place / "out")
        except XmergeError as error:
            return [*found, f"the second run failed: {error}"]
        if digest_files(place / "out") != self.whole:
            found.append("the second run gave other bytes")
        if reused < done:
            found.append(f"{done} layers were finished and {reused} of them reused")
        if os.listdir(place) != ["out"]:
            found.append(f"the second run left {os.listdir(place)}")
        shutil.rmtree(place)
        return found

    def _run_apart(self, fault: Fault, out: Path, counter: CountLayers) -> tuple[int, str]:
        """Run in a process of its own; how it ended (a signal as a negative number), and what it said."""
        said = mmap.mmap(-1, 2**16)
        child = os.fork()
        if child == 0:
            ended = 1
            try:
                with failing(fault):
                    self.merge(out, reporter=counter)
                ended = 0
            except XmergeError as error:
                ended = error.exit_code
                said.write(str(error).encode()[: 2**16])
            except BaseException:  # noqa: BLE001 - it is told by the parent
                said.write(traceback.format_exc().encode()[-(2**16) :])
            finally:
                os._exit(ended)
        _, status = os.waitpid(child, 0)
        return os.waitstatus_to_exitcode(status), said[:].rstrip(b"\0").decode(errors="replace")


@contextmanager
def open_bench(folder: Path | None = None) -> Iterator[Bench]:
    """A bench in a folder that goes away."""
    with tempfile.TemporaryDirectory(dir=folder) as name:
        yield Bench(Path(name))


def main() -> int:
    """Strike every call, or every N-th; the exit code is 1 if anything broke."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--every", type=int, default=1, help="strike only every N-th of the faults")
    parser.add_argument("--folder", type=Path, help="where to work")
    options = parser.parse_args()
    started, broken, ran = time.monotonic(), 0, Counter[str]()
    with open_bench(options.folder) as bench:
        say(f"{len(bench.calls)} calls: {_count(Counter(call.name for call in bench.calls))}")
        for fault in list_faults(bench.calls)[:: options.every]:
            found = bench.find_faults(fault)
            ran[f"{fault.kind} {'from then on' if fault.lasting else 'once'}"] += 1
            if found:
                broken += 1
                say(f"{fault} ({bench.calls[fault.call - 1].name}): {'; '.join(found)}")
    say(f"{ran.total()} faults, {broken} broke something, in {time.monotonic() - started:.0f} s: {_count(ran)}")
    return 1 if broken else 0


def say(text: str) -> None:
    """Write a line at once."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def _count(counted: Counter[str]) -> str:
    return ", ".join(f"{name} {number}" for name, number in sorted(counted.items()))


if __name__ == "__main__":
    sys.exit(main())
