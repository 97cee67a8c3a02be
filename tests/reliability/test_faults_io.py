"""Rows 17 to 26, 31 and 32 of the table of faults in docs/reliability.md: what disks, people and other programs do."""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch

from tasks.retrying import may_pass
from tests.faults import fail_with
from tests.small_merges import RECIPE, digest_files, list_tree, make_plan, run, write_model, write_models
from xmerge import disk
from xmerge.engine import retreat
from xmerge.engine.retreat import Step
from xmerge.errors import (
    CheckpointError,
    InUseError,
    OutputExistsError,
    PlanError,
    SourceChangedError,
    StorageError,
)
from xmerge.reservation import estimate_entry, estimate_texts

ROOT = Path(__file__).resolve().parents[2]
MOUNT, UNMOUNT = shutil.which("mount") or "mount", shutil.which("umount") or "umount"
OTHER_RECIPE = RECIPE.replace("0.3", "0.6")
SECONDS_TO_STOP = 2.0 * (3 if "CI" in os.environ or "PYTEST_XDIST_WORKER" in os.environ else 1)

COMMAND = """
import errno, os, sys, time
from xmerge import disk
from xmerge.cli import main

pause, real = float(sys.argv.pop(1)), disk.preadv

def read_slowly(*args):
    time.sleep(pause)
    return real(*args)

def refuse_to_lock(*args):
    raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

disk.preadv = read_slowly
if "WITHOUT_LOCKS" in os.environ:
    disk.flock = refuse_to_lock
main()
"""


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """The two models of the recipe, and two recipes in files."""
    folder = write_models(tmp_path_factory.mktemp("models"))
    (folder / "recipe.yml").write_text(RECIPE)
    (folder / "other.yml").write_text(OTHER_RECIPE)
    return folder


@pytest.fixture(scope="module")
def whole(models, tmp_path_factory):
    """What an undisturbed merge makes."""
    out = tmp_path_factory.mktemp("whole") / "out"
    run(models, out)
    return digest_files(out)


def try_to_run(models: Path, out: Path, **options: Any) -> StorageError | None:
    """Merge; what the disk had against it."""
    try:
        run(models, out, **options)
    except StorageError as error:
        return error
    return None


def fill(path: Path) -> None:
    """Write into a file until its disk is full."""
    with contextlib.suppress(OSError), path.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))


def act_before_second_layer(monkeypatch: pytest.MonkeyPatch, act: Callable[[], object]) -> None:
    """Do something between two layers of a run with one worker."""
    module = import_module("xmerge.run")
    real, begun = module.merge_layer, itertools.count(1)

    def merge_layer(*args: Any) -> Any:
        if next(begun) == 2:
            act()
        return real(*args)

    monkeypatch.setattr(module, "merge_layer", merge_layer)


def start_command(
    models: Path,
    out: Path,
    *words: str,
    recipe: str = "recipe",
    pause: float = 0.0,
    variables: dict[str, str] | None = None,
) -> subprocess.Popen[str]:
    """`xmerge merge` in a process of its own, which waits for a while before each read."""
    merge = ["merge", str(models / f"{recipe}.yml"), str(out)]
    merge += ["--direct", "--skip-trial-load", "--workers", "1", *words]
    return subprocess.Popen(
        [sys.executable, "-c", COMMAND, str(pause), *merge],
        cwd=ROOT,
        env=os.environ | (variables or {}),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        encoding="utf-8",
        errors="surrogateescape",
    )


def finish(process: subprocess.Popen[str]) -> tuple[int, str]:
    """How a command ended, and what it said."""
    said = "".join(process.communicate(timeout=120))
    assert "Traceback" not in said
    return process.returncode, said


def wait_for_layer(out: Path) -> None:
    """Return when a run has finished a layer."""
    deadline = time.monotonic() + 60
    while not list(out.parent.glob(f".{out.name}.xmerge/store/*/*.json")):
        assert time.monotonic() < deadline
        time.sleep(0.01)


@contextlib.contextmanager
def mount(place: Path, *options: str) -> Iterator[Path]:
    """Mount a file system of its own at a new folder, where this user may."""
    place.mkdir()
    ran = subprocess.run([MOUNT, *options, str(place)], capture_output=True, text=True, check=False)
    if ran.returncode:
        pytest.skip(f"nothing can be mounted here: {ran.stderr.strip()}")
    try:
        yield place
    finally:
        subprocess.run([UNMOUNT, str(place)], check=True)


# --- 17: only pickle files ----------------------------------------------------------------------------


def test_fault_17_a_model_of_pickle_files_is_refused_and_none_is_opened(tmp_path, monkeypatch):
    """A file that could run code when it is read is named, not read; the error says how to convert it."""
    write_models(tmp_path)
    (tmp_path / "qwen3" / "model.safetensors").rename(tmp_path / "qwen3" / "pytorch_model.bin")
    opened: list[str] = []
    real = disk.open

    def watch(path: Path, *how: int) -> int:
        opened.append(str(path))
        return real(path, *how)

    monkeypatch.setattr(disk, "open", watch)
    with pytest.raises(CheckpointError, match="pickle") as caught:
        run(tmp_path)
    assert caught.value.exit_code == 3
    assert "save_pretrained" in str(caught.value)
    assert opened and not [path for path in opened if path.endswith(".bin")]


# --- 18: a full disk ----------------------------------------------------------------------------------


def test_fault_18_a_disk_that_is_too_small_is_known_before_the_first_layer(tmp_path, models):
    """At second 0, with the bytes that are needed and the bytes that there are, and nothing is left on it."""
    plan = make_plan(models)[1]
    needed = sum(map(estimate_entry, plan.layers)) + estimate_texts(plan)
    with mount(tmp_path / "disk", "-t", "tmpfs", "-o", "size=8k", "xmerge") as place:
        with pytest.raises(StorageError, match=f"{needed:,} bytes are needed and [\\d,]+ are free") as caught:
            run(models, place / "out")
        assert caught.value.exit_code == 6
        assert list_tree(place) == []


@pytest.mark.parametrize("size", [16, 24, 32, 48, 64, 96])
def test_fault_18_a_disk_that_is_full_at_any_write_is_told_and_resumed_with_more_space(
    tmp_path, models, whole, monkeypatch, size
):
    """Wherever the space ends: exit 6 and no half output; with more of it the same command goes on where it stopped."""
    monkeypatch.setattr(disk, "statvfs", fail_with(errno.ENOSYS))
    monkeypatch.setattr(disk, "allocate", fail_with(errno.EOPNOTSUPP))
    with mount(tmp_path / "disk", "-t", "tmpfs", "-o", f"size={size}k", "xmerge") as place:
        told = try_to_run(models, place / "out", workers=1)
        assert told is None or "No space left" in str(told)
        assert (told is None) == (place / "out").exists()
        kept = len(list(place.glob(".out.xmerge/store/*/*.json")))
        subprocess.run([MOUNT, "-o", "remount,size=4m", str(place)], check=True)
        assert run(models, place / "out").reused >= kept
        assert digest_files(place / "out") == whole
        assert [path.name for path in place.iterdir()] == ["out"]


def test_fault_18_space_that_is_held_cannot_be_taken_meanwhile(tmp_path, models, whole, monkeypatch):
    """Whoever fills the disk while the layers are made does not keep them, nor the output, from being finished."""
    with mount(tmp_path / "disk", "-t", "tmpfs", "-o", "size=4m", "xmerge") as place:
        act_before_second_layer(monkeypatch, lambda: fill(place / "theirs"))
        run(models, place / "out", workers=1)
        assert digest_files(place / "out") == whole


# --- 19: a disk that refuses --------------------------------------------------------------------------


@pytest.mark.parametrize("number", [errno.EIO, errno.EROFS, errno.EACCES, errno.EDQUOT])
@pytest.mark.parametrize("call", ["pwrite", "fsync", "rename"])
def test_fault_19_a_disk_that_refuses_is_told_once_with_its_place_and_its_word(
    tmp_path, models, monkeypatch, call, number
):
    """Exit 6 with the folder and the system's word; what lasts is tried once, and only what may pass is worth more."""
    tried: list[None] = []

    def refuse(*_: object) -> None:
        tried.append(None)
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(disk, call, refuse)
    with pytest.raises(StorageError) as caught:
        run(models, tmp_path / "out", workers=1)
    assert caught.value.exit_code == 6
    assert str(tmp_path) in str(caught.value)
    assert os.strerror(number) in str(caught.value)
    assert may_pass(caught.value) == (number == errno.EIO)
    assert len(tried) <= 3
    assert not (tmp_path / "out").exists()


def test_fault_19_a_disk_that_cannot_be_written_at_all_is_told(tmp_path, models):
    """On a read-only file system nothing is read of the weights before that is known."""
    with (
        mount(tmp_path / "disk", "-t", "tmpfs", "-o", "ro", "xmerge") as place,
        pytest.raises(StorageError, match=r"the work folder .* cannot be made: Read-only file system"),
    ):
        run(models, place / "out")


# --- 20: see test_every_call.py and test_every_crash.py ------------------------------------------------


@pytest.mark.slow
def test_fault_20_a_killed_command_is_resumed_by_the_same_command(tmp_path, models, whole):
    """SIGKILL in the middle of a layer: no output; the same command makes the others, and the same bytes."""
    killed = start_command(models, tmp_path / "out", pause=0.02)
    wait_for_layer(tmp_path / "out")
    killed.kill()
    killed.communicate()
    assert not (tmp_path / "out").exists()
    kept = len(list(tmp_path.glob(".out.xmerge/store/*/*.json")))
    ended, said = finish(start_command(models, tmp_path / "out"))
    assert ended == 0
    assert f"shards: 6, {kept} of them from an earlier run" in said
    assert digest_files(tmp_path / "out") == whole


# --- 21: a flipped bit --------------------------------------------------------------------------------


@pytest.mark.parametrize("place", [0, 200, -1])
def test_fault_21_a_flipped_bit_in_a_finished_layer_is_found_and_that_layer_made_again(tmp_path, models, whole, place):
    """Whatever bit of whatever finished shard changes, it is not in the output, and no other layer is made again."""
    run(models, tmp_path / "first", store=tmp_path / "store")
    shard = sorted((tmp_path / "store").glob("*/*.safetensors"))[3]
    damaged = bytearray(shard.read_bytes())
    damaged[place] ^= 0x10
    shard.unlink()
    shard.write_bytes(damaged)
    assert run(models, tmp_path / "out", store=tmp_path / "store").reused == 5
    assert digest_files(tmp_path / "out") == digest_files(tmp_path / "first") == whole


def test_fault_21_a_flipped_bit_in_a_finished_output_is_told(tmp_path, models):
    """The same command does not call a damaged output done."""
    run(models, tmp_path / "out")
    with (tmp_path / "out" / "model-00004-of-00006.safetensors").open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        last = file.read(1)
        file.seek(-1, os.SEEK_END)
        file.write(bytes([last[0] ^ 1]))
    with pytest.raises(OutputExistsError, match=r"has lost or changed model-00004-of-00006\.safetensors"):
        run(models, tmp_path / "out")


# --- 22: a source that changes ------------------------------------------------------------------------


def touch(path: Path) -> None:
    """Another time of change."""
    os.utime(path, ns=(1, 1))


def lengthen(path: Path) -> None:
    """Another size, the time put back."""
    stat = path.stat()
    with path.open("ab") as file:
        file.write(b"\0" * 8)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


def rewrite_header(path: Path) -> None:
    """Another header of the same length, in place, the time put back."""
    stat = path.stat()
    data = path.read_bytes()
    path.write_bytes(data.replace(b"layers.0.", b"layers.9."))
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


def replace(path: Path) -> None:
    """Other weights under the same header, size and time, in another file."""
    stat = path.stat()
    other = write_model(path.parent.with_name("other"), seed=99) / path.name
    os.utime(other, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    other.rename(path)


@pytest.mark.parametrize("change", [touch, lengthen, rewrite_header, replace])
def test_fault_22_a_source_that_changes_between_two_layers_stops_the_run(tmp_path, monkeypatch, change):
    """By its time, its size, its header or its place on the disk: exit 3, and no output of both of them."""
    write_models(tmp_path)
    path = tmp_path / "llama" / "model.safetensors"
    act_before_second_layer(monkeypatch, lambda: change(path))
    with pytest.raises(SourceChangedError, match=r"llama/model\.safetensors changed") as caught:
        run(tmp_path, workers=1)
    assert caught.value.exit_code == 3
    assert not (tmp_path / "out").exists()


def test_fault_22_after_the_change_nothing_of_the_old_source_is_used(tmp_path, monkeypatch):
    """The next run merges what is there now, as if there had never been anything else."""
    write_models(tmp_path)
    path = tmp_path / "llama" / "model.safetensors"
    act_before_second_layer(monkeypatch, lambda: replace(path))
    with pytest.raises(SourceChangedError):
        run(tmp_path, workers=1)
    assert run(tmp_path).reused == 5
    run(tmp_path, tmp_path / "fresh")
    assert digest_files(tmp_path / "out") == digest_files(tmp_path / "fresh")


# --- 23: two runs on one output, two recipes on one store ----------------------------------------------


@pytest.fixture(params=["locks", "no locks"])
def locks(request) -> dict[str, str]:
    """The environment of commands on a file system with the kernel's locks, and on one without."""
    return {} if request.param == "locks" else {"WITHOUT_LOCKS": "1"}


@pytest.mark.slow
def test_fault_23_two_commands_on_one_output_and_a_dead_one(tmp_path, models, whole, locks):
    """The second is exit 5 and names the first; when the first is killed its place is taken, its layers are used."""
    first = start_command(models, tmp_path / "out", pause=0.1, variables=locks)
    wait_for_layer(tmp_path / "out")
    ended, said = finish(start_command(models, tmp_path / "out", variables=locks))
    assert ended == InUseError.exit_code == 5
    assert f"is being merged by process {first.pid} on " in said
    first.kill()
    first.communicate()
    ended, said = finish(start_command(models, tmp_path / "out", variables=locks))
    assert ended == 0
    assert digest_files(tmp_path / "out") == whole
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.slow
def test_fault_23_commands_that_start_at_once_do_not_meet(tmp_path, models, whole, locks):
    """However they are interleaved each has made the output, found it made, or been turned away; it is whole."""
    started = [start_command(models, tmp_path / "out", pause=0.003, variables=locks) for _ in range(4)]
    assert {finish(each)[0] for each in started} <= {0, InUseError.exit_code}
    assert finish(start_command(models, tmp_path / "out", variables=locks))[0] == 0
    assert digest_files(tmp_path / "out") == whole
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.slow
def test_fault_23_two_recipes_share_a_store_at_the_same_time(tmp_path, models, whole):
    """Processes that merge different recipes into one store at once make what each makes alone."""
    store = ("--store", str(tmp_path / "store"))
    merges = [start_command(models, tmp_path / name, *store, recipe=name, pause=0.005) for name in ("recipe", "other")]
    assert [finish(merge)[0] for merge in merges] == [0, 0]
    run(models, tmp_path / "alone", OTHER_RECIPE)
    assert digest_files(tmp_path / "recipe") == whole
    assert digest_files(tmp_path / "other") == digest_files(tmp_path / "alone")
    assert not list((tmp_path / "store").rglob("*.tmp"))


# --- 24: a stop ---------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_fault_24_a_signal_ends_the_command_within_two_seconds_and_resumably(tmp_path, models, whole, number):
    """Exit 130, no output, no unfinished file, and what was finished is used by the next run."""
    stopped = start_command(models, tmp_path / "out", pause=0.05)
    wait_for_layer(tmp_path / "out")
    stopped.send_signal(number)
    since = time.monotonic()
    ended, said = finish(stopped)
    assert time.monotonic() - since < SECONDS_TO_STOP
    assert ended == 130
    assert "run the same command again" in said
    assert not (tmp_path / "out").exists() and not list(tmp_path.rglob("*.tmp"))
    kept = len(list(tmp_path.glob(".out.xmerge/store/*/*.json")))
    assert 1 <= kept < 6
    assert run(models, tmp_path / "out").reused == kept
    assert digest_files(tmp_path / "out") == whole


# --- 25: a place that is somebody else's --------------------------------------------------------------


@pytest.mark.parametrize(
    ("place", "told"),
    [
        ("theirs", "exists and was not made by xmerge (it holds notes.txt)"),
        ("llama", "is the input llama"),
        ("llama/deep/out", "lies in the input llama"),
        ("link/out", "lies in the input qwen3"),
        (".", "holds the input llama"),
    ],
)
def test_fault_25_a_place_that_is_not_ours_is_refused_and_left_as_it_was(tmp_path, place, told):
    """Somebody's folder, an input, a folder in one or around one: exit 2 before anything is read, nothing touched."""
    write_models(tmp_path)
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "notes.txt").write_text("mine")
    (tmp_path / "link").symlink_to(tmp_path / "qwen3")
    before = list_tree(tmp_path), digest_files(tmp_path / "llama"), digest_files(tmp_path / "qwen3")
    with pytest.raises(OutputExistsError) as caught:
        run(tmp_path, tmp_path / place)
    assert caught.value.exit_code == 2
    assert told in str(caught.value)
    assert before == (list_tree(tmp_path), digest_files(tmp_path / "llama"), digest_files(tmp_path / "qwen3"))


def test_fault_25_an_input_under_another_name_is_an_input(tmp_path):
    """A folder that is mounted in a second place is known by what it is, not by what it is called."""
    write_models(tmp_path)
    with (
        mount(tmp_path / "again", "--bind", str(tmp_path / "llama")) as place,
        pytest.raises(OutputExistsError, match="lies in the input llama"),
    ):
        run(tmp_path, place / "out")


# --- 26: no memory ------------------------------------------------------------------------------------


def test_fault_26_a_merge_that_has_no_room_in_memory_is_refused_before_anything_is_written(
    tmp_path, models, monkeypatch
):
    """Exit 2 with the bytes that a layer needs and those that it may take."""
    monkeypatch.setenv("XMERGE_MEMORY", "1000")
    with pytest.raises(PlanError, match=r"takes [\d,]+ bytes of buffers, and 1,000 are allowed") as caught:
        run(models, tmp_path / "out")
    assert caught.value.exit_code == 2
    assert list_tree(tmp_path) == []


def test_fault_26_a_device_that_runs_out_of_memory_gives_way_to_smaller_blocks(tmp_path, models, whole, monkeypatch):
    """The merge goes on with less memory and the same weights, and its report says where it gave way."""
    cpu, real = torch.device("cpu"), torch.empty

    def allocate(*size: Any, **options: Any) -> torch.Tensor:
        if size and isinstance(size[0], int) and size[0] > 2**20:
            raise torch.OutOfMemoryError(f"tried to allocate {size}")
        return real(*size, **options)

    monkeypatch.setattr(retreat, "list_steps", lambda _: [Step(cpu, 2**20), Step(cpu, 2**10)])
    monkeypatch.setattr(torch, "empty", allocate)
    report = run(models, tmp_path / "out").report
    assert report is not None and {each.code for each in report.findings} == {"out_of_memory"}
    made = digest_files(tmp_path / "out")
    assert all(made[name] == whole[name] for name in whole if name.endswith(".safetensors"))


# --- 31: odd machines ---------------------------------------------------------------------------------


@pytest.mark.parametrize("skew", [-(10**9) * 3600 * 24 * 365 * 40, 10**9 * 3600 * 24 * 365 * 40])
def test_fault_31_a_clock_that_is_wrong_decides_nothing(tmp_path, whole, skew):
    """Sources from the past and the future give the same weights, and finished layers of another time are used."""
    write_models(tmp_path)
    for name in ("llama", "qwen3"):
        path = tmp_path / name / "model.safetensors"
        os.utime(path, ns=(path.stat().st_mtime_ns + skew,) * 2)
    assert run(tmp_path, tmp_path / "one", store=tmp_path / "store").reused == 0
    for path in (tmp_path / "store").rglob("*"):
        os.utime(path, ns=(path.stat().st_mtime_ns + skew,) * 2)
    assert run(tmp_path, tmp_path / "two", store=tmp_path / "store").reused == 6
    for out in ("one", "two"):
        made = digest_files(tmp_path / out)
        assert all(made[name] == whole[name] for name in whole if name.endswith((".safetensors", "index.json")))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["Küche 模型", b"not \xff UTF-8"])
def test_fault_31_a_locale_without_utf8_takes_any_name(tmp_path, whole, name):
    """Names of folders are bytes: in the C locale any of them is read, merged and told."""
    folder = tmp_path / os.fsdecode(name)
    write_models(folder)
    (folder / "recipe.yml").write_text(RECIPE)
    plain = {"LC_ALL": "C", "LANG": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    ended, said = finish(start_command(folder, folder / "out", variables=plain))
    assert ended == 0, said
    made = digest_files(folder / "out")
    assert all(made[each] == whole[each] for each in whole if each.endswith(".safetensors"))


@pytest.mark.parametrize("length", [3800, 4040, 5000])
def test_fault_31_a_path_of_thousands_of_characters_is_merged_to_or_refused_in_words(tmp_path, models, whole, length):
    """Up to what the system takes the output is made; beyond it the error says so, and nothing is left."""
    folder = tmp_path
    while len(str(folder)) < length - 8:
        folder /= "x" * min(200, length - len(str(folder)) - 5)
    told = try_to_run(models, folder / "out")
    if length < 4000:
        assert digest_files(folder / "out") == whole
    else:
        assert "File name too long" in str(told)
        assert list_tree(tmp_path) == []


def test_fault_31_names_that_differ_in_case_alone_may_be_one_folder(tmp_path, monkeypatch):
    """On a file system that takes LLAMA for llama, an output LLAMA is the input llama."""
    write_models(tmp_path)
    real = disk.stat
    monkeypatch.setattr(disk, "stat", lambda path: real(str(path).replace("LLAMA", "llama")))
    with pytest.raises(OutputExistsError, match="is the input llama"):
        run(tmp_path, tmp_path / "LLAMA")
    with pytest.raises(OutputExistsError, match="lies in the input llama"):
        run(tmp_path, tmp_path / "LLAMA" / "out")


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS])
def test_fault_31_a_file_system_without_locks_is_merged_on_by_one_run_at_a_time(
    tmp_path, models, whole, monkeypatch, number
):
    """Without the kernel's locks the output is the same, and a second run is turned away by name."""
    monkeypatch.setattr(disk, "flock", fail_with(number))

    def run_again() -> None:
        with pytest.raises(InUseError, match=f"process {os.getpid()} on "):
            run(models, tmp_path / "out")

    act_before_second_layer(monkeypatch, run_again)
    run(models, tmp_path / "out", workers=1)
    assert digest_files(tmp_path / "out") == whole
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


# --- 32: no Prefect server any more -------------------------------------------------------------------

WITHOUT_SERVER = """
import os, signal, sys
from pathlib import Path
from flows.command import run_merge
from xmerge.errors import XmergeError
from xmerge.progress import Silence

class EndServer(Silence):
    def layer_done(self, result, done, total):
        if done == 2:
            os.kill(int(sys.argv[3]), signal.SIGKILL)

try:
    run_merge(Path(sys.argv[1]), Path(sys.argv[2]), workers=1, trial=False, reporter=EndServer())
except XmergeError as error:
    print(error, file=sys.stderr)
    sys.exit(error.exit_code)
"""


@pytest.mark.slow
def test_fault_32_a_server_that_dies_in_the_middle_costs_no_finished_layer(tmp_path, models, whole):
    """The merge goes on to its end or stops in words; what is finished is on the disk, not in the server."""
    from flows.server.settings import apply_settings

    apply_settings()
    from prefect.settings import PREFECT_HOME, temporary_settings

    from flows.server.shared import EmbeddedServer

    with temporary_settings(updates={PREFECT_HOME: tmp_path / "prefect"}):
        server = EmbeddedServer()
        try:
            server.wait()
            ran = subprocess.run(
                [
                    sys.executable,
                    "-c",
                    WITHOUT_SERVER,
                    models / "recipe.yml",
                    tmp_path / "out",
                    str(server.address.pid),
                ],
                cwd=ROOT,
                env=os.environ | {"PREFECT_API_URL": server.api_url, "PREFECT_HOME": str(tmp_path / "home")},
                capture_output=True,
                text=True,
                check=False,
            )
        finally:
            server.stop()
    assert "Traceback" not in ran.stderr, ran.stderr
    kept = len(list(tmp_path.glob(".out.xmerge/store/*/*.json")))
    outcome = run(models, tmp_path / "out")
    assert outcome.report is None if ran.returncode == 0 else outcome.reused == kept >= 2
    assert digest_files(tmp_path / "out") == whole
