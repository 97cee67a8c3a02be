"""Damaged and hostile files by the million: headers, indexes, config.json and recipes, each mutated a few times.

    python -m tests.reliability.fuzz --cases 1000000

Each case must end in a value or in an `XmergeError` of exit code 2 or 3, in less than `MOST_SECONDS`, without opening a
file outside its folder, a connection or a process, and the whole run in less than `MOST_BYTES` of memory. A case is
drawn from its kind, its seed and its number alone, so that one can be run again by itself: `--again KIND NUMBER`.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from tests.fake_checkpoints import everywhere, write_fake
from xmerge.architecture import describe_model, list_families, resolve
from xmerge.architecture.models import list_references
from xmerge.checkpoints import read_checkpoint
from xmerge.checkpoints.checkpoint import INDEX_NAME, read_local_shard
from xmerge.checkpoints.headers import build_header, size_of
from xmerge.config import parse_config
from xmerge.errors import XmergeError
from xmerge.planning import map_slices
from xmerge.sources import Location

MOST_SECONDS = 10.0
MOST_BYTES = 200 * 2**20
WARMING = 100
"""The first cases of a kind import what is needed, and write the files that the others mutate."""
PLANNED = 20
"""One config.json of so many is planned with; of the others it is read what each tensor does."""

SHARES = {"header": 40, "index": 25, "config": 20, "recipe": 15}
"""Of a hundred cases."""

NUMBERS = (0, 1, -1, 2, 7, 255, 2**31 - 1, 2**31, 2**32, 2**53 + 1, 2**63 - 1, 2**63, 2**64, 10**30, -(2**63))
ODDITIES: tuple[Any, ...] = (
    None, True, False, 0.5, -0.0, 1e308, float("nan"), float("inf"), "", " ", "0", "true", "../../etc/passwd",
    "/dev/zero", "\0", "\ud800", "é", "a" * 600, "F32", "BF16", "I64", "F4", "model.safetensors", "C:x.safetensors",
    "https://x/y.safetensors", [], {}, [[]], [{}], [-1], {"": 0}, [1] * 40, [2**62] * 5,
)  # fmt: skip
KEYS = (
    "dtype",
    "shape",
    "data_offsets",
    "__metadata__",
    "weight_map",
    "metadata",
    "model_type",
    "layers",
    "",
    "a",
    "../a",
)
SCRAPS = (
    b'"', b"{", b"}", b"[", b"]", b":", b",", b"\0", b"\xff", b"\xf0\x9f", b"\\u", b"\\ud800", b"-", b"1e999", b"NaN",
    b"9" * 400, b"[" * 300, b'{"a":' * 300, b"\xef\xbb\xbf", b"\n", b"&a [*a]", b"*a",
    b"!!python/object/apply:os.system", b"<<: ", b"- ", b": ", b"'", b"|", b">",
)  # fmt: skip
RECIPES = (
    b"merge_method: slerp\nbase_model: A\nmodels: [{model: A}, {model: B}]\nparameters: {t: 0.5}\non_mismatch: base\n",
    (b"merge_method: ties\nbase_model: A\nmodels:\n- model: B\n  parameters: {weight: 0.5, density: [0.1, 0.9]}\n"
    b"parameters:\n  normalize: true\n  lambda: 1\ndtype: bfloat16\nout_dtype: float32\nrandom_seed: 3\n"),
    (b"merge_method: passthrough\nbase_model: A\nslices:\n- sources: [{model: A, layer_range: [0, 2]}]\n"
    b"- sources: [{model: B, layer_range: [1, 4]}]\n"),
    (b"merge_method: linear\nmodels:\n- model: {model: {path: A, revision: main}}\n  parameters:\n    weight:\n"
    b"    - {filter: mlp, value: [0, 0.5, 1]}\n    - value: 0.2\n- model: B\n  parameters: {weight: 1}\n"
    b"layer_map: [[0, 1], [1, 0]]\nglobals: {weight: 0.5}\ntokenizer_source: base\nchat_template: auto\n"),
)  # fmt: skip


class Escape(AssertionError):
    """A case has opened what is none of its business."""


@dataclass
class Outcome:
    """What has become of the cases of one kind."""

    ended: Counter[str] = field(default_factory=Counter)
    """How often each: `read`, or the class of the refusal."""
    slowest: float = 0.0
    """Seconds."""


Case = Callable[[Path, random.Random], None]


def mutate_bytes(raw: bytes, chance: random.Random) -> bytes:
    """The bytes with a few of them changed, removed, repeated or added."""
    text = bytearray(raw)
    for _ in range(chance.choice((1, 1, 1, 2, 3, 8))):
        at, length = chance.randrange(len(text) + 1), chance.choice((1, 1, 2, 8, 50))
        match chance.randrange(6):
            case 0 if text:
                text[min(at, len(text) - 1)] ^= 1 << chance.randrange(8)
            case 1:
                del text[at : at + length]
            case 2:
                text[at:at] = text[at : at + length]
            case 3:
                text[at:at] = chance.choice(SCRAPS)
            case 4:
                text[at : at + length] = chance.randbytes(length)
            case _:
                del text[at:]
                text += chance.choice((b"", b" ", bytes(9), text[: chance.randrange(30)]))
    return bytes(text)


def mutate_value(data: Any, chance: random.Random) -> Any:
    """JSON data with something in it replaced, removed, renamed or repeated; changed in place where it can be."""
    places = list(list_places(data))
    for _ in range(chance.choice((1, 1, 2, 4))):
        if not places:
            return draw_value(chance)
        inside, key = chance.choice(places)
        if key not in (range(len(inside)) if isinstance(inside, list) else inside):
            continue
        match chance.randrange(5):
            case 0 | 1:
                inside[key] = draw_value(chance)
            case 2:
                other, place = chance.choice(places)
                if place in (range(len(other)) if isinstance(other, list) else other):
                    inside[key] = json.loads(json.dumps(other[place]))
            case 3:
                del inside[key]
            case _ if isinstance(inside, dict):
                inside[chance.choice(KEYS)] = inside.pop(key)
            case _:
                inside.insert(key, inside[key])
    return data


def list_places(data: Any) -> Iterator[tuple[Any, Any]]:
    """Every (dict or list, key or number) in JSON data."""
    if isinstance(data, dict | list):
        for key in list(data) if isinstance(data, dict) else range(len(data)):
            yield data, key
            yield from list_places(data[key])


def draw_value(chance: random.Random) -> Any:
    """A value that nobody expects."""
    return chance.choice(NUMBERS) + chance.choice((0, 0, 1, -1)) if chance.random() < 0.5 else chance.choice(ODDITIES)


def write_mutated(path: Path, data: Any, chance: random.Random) -> None:
    """Write JSON that was mutated as data, as text, or both."""
    path.write_bytes(mutate_text(data, chance))


def mutate_text(data: Any, chance: random.Random) -> bytes:
    """JSON that was mutated as data, as text, or both; mostly as data, because what is no JSON is soon refused."""
    how = chance.random()
    data = mutate_value(data, chance) if how < 0.8 else data
    raw = json.dumps(data).encode("utf-8", "surrogatepass")
    return mutate_bytes(raw, chance) if how > 0.7 else raw


def try_header(folder: Path, chance: random.Random) -> None:
    """A shard whose header or length was mutated: its tensors lie end to end over its data, or it is refused."""
    dtypes = [chance.choice(("BF16", "F32", "I64", "BOOL", "F8_E4M3", "C64")) for _ in range(chance.randrange(6))]
    shapes = [tuple(chance.randrange(4) for _ in range(chance.randrange(4))) for _ in dtypes]
    names = [chance.choice((f"model.layers.{number}.x", f"a{number}")) for number in range(len(dtypes))]
    header, entries = build_header(zip(names, dtypes, shapes, strict=True))
    data = bytes(sum(entry.end - entry.begin for entry in entries))
    if chance.random() < 0.5:
        text = json.dumps(mutate_value(json.loads(header[8:]), chance)).encode("utf-8", "surrogatepass")
        header = len(text).to_bytes(8, "little") + text
    if chance.random() < 0.3:
        length = chance.choice(NUMBERS) % 2**64 if chance.random() < 0.5 else len(header) - 8 + chance.randrange(-3, 4)
        header = max(length, 0).to_bytes(8, "little") + header[8:]
    raw = header + data
    path = folder / "a.safetensors"
    path.write_bytes(mutate_bytes(raw, chance) if chance.random() < 0.6 else raw)
    shard, read, start = read_local_shard(path, path.name)
    place = 0
    for entry in read:
        assert entry.begin == place and entry.end - entry.begin == size_of(entry.dtype, entry.shape)
        place = entry.end
    assert start + place == shard.size == path.stat().st_size


def try_index(folder: Path, chance: random.Random) -> None:
    """A checkpoint whose index was mutated: every tensor lies inside its shard, or the checkpoint is refused."""
    shards = [f"model-0000{number}-of-00003.safetensors" for number in (1, 2, 3)]
    placed = {f"model.layers.{number}.w": shards[number % 3] for number in range(7)}
    if not (folder / "config.json").exists():
        (folder / "config.json").write_text('{"model_type": "x"}')
        for shard in shards:
            header, entries = build_header((name, "F32", (2,)) for name, file in placed.items() if file == shard)
            (folder / shard).write_bytes(header + bytes(entries[-1].end))
    write_mutated(folder / INDEX_NAME, {"metadata": {"total_size": 56}, "weight_map": dict(placed)}, chance)
    checkpoint = read_checkpoint(folder, "model")
    assert set(checkpoint.tensors) <= set(placed)
    for tensor in checkpoint.tensors.values():
        size = (folder / tensor.file).stat().st_size
        assert 8 < tensor.offset <= tensor.offset + tensor.nbytes <= size


def try_config(folder: Path, chance: random.Random) -> None:
    """A checkpoint whose config.json was mutated: each tensor has a place, or the checkpoint is refused."""
    family = chance.choice(list_families()).family
    model = folder / family
    kept = folder / f"{family}.json"
    if not model.exists():
        write_fake(model, family, maybe=everywhere)
        shutil.copy(model / "config.json", kept)
    write_mutated(model / "config.json", json.loads(kept.read_bytes()), chance)
    if chance.randrange(PLANNED):
        described = describe_model(Location(reference="model", label="model", folder=model))
        assert len(described.tensors) == len(described.checkpoint.tensors)
        return
    if not (folder / "A" / family).exists():
        write_fake(folder / "A" / family, family, maybe=everywhere)
    recipe = chance.choice(RECIPES).decode().replace("A", f"A/{family}").replace("model: B", f"model: {family}")
    plan_recipe(recipe, folder)


def try_recipe(folder: Path, chance: random.Random) -> None:
    """A recipe that was mutated: a plan, or a refusal."""
    if not (folder / "A").exists():
        write_fake(folder / "A", "llama")
        write_fake(folder / "B", "qwen3")
    recipe = chance.choice(RECIPES)
    # JSON is YAML.
    raw = mutate_text(yaml.safe_load(recipe), chance) if chance.random() < 0.6 else mutate_bytes(recipe, chance)
    plan_recipe(raw.decode(errors="surrogateescape"), folder, only_read=chance.random() < 0.8)


def plan_recipe(text: str, folder: Path, *, only_read: bool = False) -> None:
    """Read a recipe, and plan it if its models are here: any other may be a repository's name."""
    recipe = parse_config(text, "recipe.yml", folder)
    if not only_read and all(os.path.isdir(folder / each.model.path) for each in list_references(recipe)):
        plan = map_slices(recipe, resolve(recipe))
        assert plan.fingerprint and all(each.nbytes == size_of(each.dtype, each.shape) for each in plan.tensors)


KINDS: Mapping[str, Case] = {"header": try_header, "index": try_index, "config": try_config, "recipe": try_recipe}


class Guard:
    """Watches what the interpreter opens while cases run."""

    def __init__(self, folder: Path) -> None:
        self.inside = str(folder)
        self.watching = False
        sys.addaudithook(self.look)

    def look(self, event: str, arguments: tuple[Any, ...]) -> None:
        """Refuse what no reading of a checkpoint needs."""
        if not self.watching:
            return
        if event == "open" and isinstance(arguments[0], str | bytes | os.PathLike):
            if not os.fsdecode(arguments[0]).startswith(self.inside):
                raise Escape(f"{arguments[0]!r} was opened")
        elif event.startswith(("socket.", "subprocess.", "os.system", "os.exec", "pickle.", "marshal.loads")):
            raise Escape(f"{event} {arguments!r}")


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raise TimeoutError in this thread when the time is over."""

    def stop(*_: object) -> None:
        raise TimeoutError(f"not done after {seconds} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def run_case(kind: str, number: int, seed: int, folder: Path) -> str:
    """Run one case: `read`, or the class of its refusal.

    Raises:
        Exception: Anything but a refusal: what is looked for.
    """
    place = folder / kind
    place.mkdir(exist_ok=True)
    try:
        with time_limit(MOST_SECONDS):
            KINDS[kind](place, random.Random(f"{seed} {kind} {number}"))  # noqa: S311 - cases, not secrets
    except XmergeError as refusal:
        if refusal.exit_code not in (2, 3):
            raise
        str(refusal).encode("utf-8", "backslashreplace")
        return type(refusal).__name__
    return "read"


def run_cases(total: int, seed: int, folder: Path) -> dict[str, Outcome]:
    """Run so many cases of all kinds.

    Raises:
        AssertionError: A case crashed, hung, escaped, or took too much memory; says which.
    """
    found = {kind: Outcome() for kind in KINDS}
    guard = Guard(folder)
    for kind, share in SHARES.items():
        for number in range(total * share // 100):
            guard.watching = number >= WARMING
            started = time.perf_counter()
            try:
                ended = run_case(kind, number, seed, folder)
            except Exception as error:
                raise AssertionError(f"{kind} {number} of seed {seed}: {type(error).__name__}: {error}") from error
            finally:
                guard.watching = False
            found[kind].ended[ended] += 1
            found[kind].slowest = max(found[kind].slowest, time.perf_counter() - started)
            assert peak_bytes() < MOST_BYTES, f"{kind} {number} of seed {seed}: {peak_bytes():,} bytes of memory"
    return found


def peak_bytes() -> int:
    """The most memory that this process has had; what getrusage says includes that of the process that started it."""
    match = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text(encoding="utf-8"))
    assert match
    return int(match[1]) * 1024


def main() -> None:
    """Run cases and say what became of them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--again", nargs=2, metavar=("KIND", "NUMBER"))
    asked = parser.parse_args()
    # In memory where the system has such a folder: a million small files are written.
    memory = Path("/dev/shm")  # noqa: S108 - a folder of our own is made in it
    with tempfile.TemporaryDirectory(dir=memory if os.access(memory, os.W_OK) else None) as folder:
        if asked.again:
            sys.stdout.write(f"{run_case(asked.again[0], int(asked.again[1]), asked.seed, Path(folder))}\n")
            return
        started = time.perf_counter()
        found = run_cases(asked.cases, asked.seed, Path(folder))
        for kind, outcome in found.items():
            told = ", ".join(f"{ended} {count:,}" for ended, count in sorted(outcome.ended.items()))
            sys.stdout.write(f"{kind}: {outcome.ended.total():,} cases, slowest {outcome.slowest:.2f} s: {told}\n")
        took = time.perf_counter() - started
        sys.stdout.write(f"{took:.0f} s, at most {peak_bytes() / 2**20:.0f} MiB of memory\n")


if __name__ == "__main__":
    main()
