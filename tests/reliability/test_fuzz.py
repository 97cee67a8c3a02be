"""A sample of the mutated files, and what the search for faults in them would notice."""

from __future__ import annotations

import math
import os
import random
import socket
import subprocess
import sys
import time
from copy import deepcopy
from pathlib import Path

import pytest

from tests.reliability import fuzz
from tests.reliability.fuzz import KINDS, mutate_value, run_cases
from xmerge.checkpoints.checkpoint import read_local_shard
from xmerge.checkpoints.untrusted import SMALL
from xmerge.errors import CheckpointError, InvalidMergeError

ROOT = Path(__file__).parents[2]


def test_no_mutated_file_is_more_than_refused():
    """A sample of mutated headers, indexes, config.json and recipes ends in values and refusals, within its memory."""
    command = [sys.executable, "-m", "tests.reliability.fuzz", "--cases", "500", "--seed", "1"]
    told = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert told.returncode == 0, told.stderr
    assert [line.split(":")[0] for line in told.stdout.splitlines()[:4]] == list(KINDS)
    assert all("read" in line and "Error" in line for line in told.stdout.splitlines()[:4])


def crash(folder: Path, chance: random.Random) -> None:
    """A parser that does not expect what it got."""
    raise KeyError("dtype")


def hang(folder: Path, chance: random.Random) -> None:
    """A parser that does not end."""
    time.sleep(5)


def refuse_late(folder: Path, chance: random.Random) -> None:
    """A fault of an input that is told as one of the output."""
    raise InvalidMergeError("too late.")


def escape(folder: Path, chance: random.Random) -> None:
    """A parser that follows a path out of its folder."""
    Path("/etc/hostname").open("rb").close()


def call_out(folder: Path, chance: random.Random) -> None:
    """A parser that asks somebody."""
    with socket.socket() as asking:
        asking.connect_ex(("127.0.0.1", 9))


@pytest.mark.parametrize("parse", [crash, hang, refuse_late, escape, call_out], ids=lambda parse: parse.__name__)
def test_whatever_a_parser_must_not_do_ends_the_search(tmp_path, monkeypatch, parse):
    """A crash, a hang, a wrong exit code, a file of others and a connection are each found, and the case is named."""
    monkeypatch.setattr(fuzz, "KINDS", {"header": parse})
    monkeypatch.setattr(fuzz, "SHARES", {"header": 100})
    monkeypatch.setattr(fuzz, "MOST_SECONDS", 0.05)
    monkeypatch.setattr(fuzz, "MOST_BYTES", math.inf)
    monkeypatch.setattr(fuzz, "WARMING", 0)
    with pytest.raises(AssertionError, match="header 0 of seed 7"):
        run_cases(3, 7, tmp_path)


def test_a_case_can_be_drawn_again():
    """The same seed mutates the same data in the same way, and another seed in another."""
    data = {"a": [1, 2, {"b": "c"}], "d": {"e": None}}

    def draw(seed: int) -> list[str]:
        chance = random.Random(seed)  # noqa: S311 - cases, not secrets
        return [repr(mutate_value(deepcopy(data), chance)) for _ in range(20)]

    assert draw(3) == draw(3) != draw(4)


BOMBS = {
    "lists": b'{"a":[' + b"[]," * (SMALL.values // 2 - 3) + b"0]}",
    "objects": b'{"a":[' + b'{"b":0},' * (SMALL.values // 2 - 3) + b"0]}",
    "empty objects": b'{"a":[' + b"{}," * (SMALL.values // 2 - 3) + b"0]}",
    "keys": b"{" + b",".join(b'"%d":%d' % (2**40 + each, 2**60 + each) for each in range(SMALL.keys)) + b"}",
    "a wide text": b'{"a":"' + "\U0001f600".encode() + b"x" * (SMALL.nbytes // 4 - 30) + b'"}',
    "a long text": b'{"a":"' + b"x" * (SMALL.nbytes - 30) + b'"}',
    "too many bytes": b'{"a":"' + b"x" * SMALL.nbytes + b'"}',
    "too many values": b'{"a":[' + b"[]," * 2_000_000 + b"0]}",
}
MEASURE = """
import sys
from pathlib import Path
from xmerge.checkpoints.checkpoint import read_local_shard
from xmerge.errors import CheckpointError
from tests.reliability.fuzz import peak_bytes
try:
    read_local_shard(Path(sys.argv[1]), "it")
except CheckpointError:
    print(peak_bytes())
"""


@pytest.mark.slow
@pytest.mark.parametrize("bomb", BOMBS)
def test_no_header_takes_the_memory(tmp_path, bomb):
    """The largest headers that are parsed at all, whatever they are made of, take less than 200 MB."""
    path = tmp_path / "a.safetensors"
    path.write_bytes(len(BOMBS[bomb]).to_bytes(8, "little") + BOMBS[bomb])
    with pytest.raises(CheckpointError):
        read_local_shard(path, "it")
    told = subprocess.run([sys.executable, "-c", MEASURE, path], cwd=ROOT, capture_output=True, text=True, check=True)
    assert 0 < int(told.stdout) < 200 * 2**20, f"{int(told.stdout):,}"


def test_a_header_of_a_huge_file_is_read_alone(tmp_path):
    """A file of a terabyte, which is a hole, is refused by its header without reading the hole."""
    path = tmp_path / "a.safetensors"
    path.write_bytes((2).to_bytes(8, "little") + b"{}")
    os.truncate(path, 2**40)
    with pytest.raises(CheckpointError, match="its tensors take 0 bytes"):
        read_local_shard(path, "it")
