"""The work folder: one run at a time, nothing left behind that is not worth resuming, no output in a wrong place."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.faults import fail_with
from tests.small_merges import list_tree, make_plan, run, write_models
from xmerge import disk
from xmerge.engine import merge_layer
from xmerge.errors import InUseError, OutputExistsError, PlanError, StorageError
from xmerge.reservation import estimate_entry, estimate_texts
from xmerge.work import open_work_folder, remove_work_folder, write_plan


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """The two models of the recipe."""
    return write_models(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def plan(models):
    """The plan of the recipe."""
    return make_plan(models)[1]


def test_a_run_that_made_nothing_leaves_nothing(tmp_path, plan):
    """However a run ends, without a finished layer there is no trace of it, not even a parent folder it made."""
    with open_work_folder(tmp_path / "new" / "deep" / "out", plan) as folder:
        write_plan(folder, plan)
        folder.staged.mkdir()
    assert list_tree(tmp_path) == []


def test_a_finished_layer_stays_and_a_half_output_does_not(tmp_path, models, plan):
    """What can be resumed is kept; what is half made is not."""
    with open_work_folder(tmp_path / "out", plan) as folder:
        merge_layer(plan, 1, [models / "llama", models / "qwen3"], folder.store, "cpu")
        folder.staged.mkdir()
    kept = list_tree(tmp_path)
    assert ".out.xmerge/lock" in kept and ".out.xmerge/output" not in kept
    with open_work_folder(tmp_path / "out", plan) as folder:
        assert folder.store.find(plan, 1, [models / "llama", models / "qwen3"]) is not None


def test_a_shared_store_keeps_its_layers_and_the_work_folder_goes(tmp_path, models, plan):
    """With a store elsewhere nothing beside the output is worth keeping."""
    with open_work_folder(tmp_path / "out", plan, tmp_path / "store") as folder:
        merge_layer(plan, 1, [models / "llama", models / "qwen3"], folder.store, "cpu")
    assert [name for name in list_tree(tmp_path) if name.startswith(".")] == []
    assert list((tmp_path / "store").glob("*/*.safetensors"))


def test_a_second_run_on_one_output_is_told_who_has_it(tmp_path, plan):
    """The second run is refused with exit 5 and names the process and the machine, and the first is not disturbed."""
    out = tmp_path / "out"
    with open_work_folder(out, plan) as folder:
        (tmp_path / "link").symlink_to(out)
        for name in (out, tmp_path / "link"):
            with pytest.raises(InUseError) as caught, open_work_folder(name, plan):
                pass
            assert caught.value.exit_code == 5
            assert f"{out} is being merged by process {os.getpid()} on {socket.gethostname()} since " in str(
                caught.value
            )
        assert folder.store.path.is_dir()
    with open_work_folder(out, plan):
        pass


def test_a_holder_that_has_not_signed_yet_is_another_process(tmp_path, plan, monkeypatch):
    """In the moment before a lock is signed its holder has no name."""
    monkeypatch.setattr(time, "sleep", lambda _: None)
    with open_work_folder(tmp_path / "out", plan) as folder:
        (folder.path / "lock").write_text("")
        with pytest.raises(InUseError, match="is being merged by another process"), open_work_folder(folder.out, plan):
            pass


HOLD = """
import sys, time
from pathlib import Path
from xmerge.planning import MergePlan
from xmerge.reservation import estimate_entry, estimate_texts
from xmerge.work import open_work_folder
plan = MergePlan.model_validate_json(Path(sys.argv[2]).read_text())
with open_work_folder(Path(sys.argv[1]), plan) as folder:
    folder.staged.mkdir()
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.mark.slow
def test_a_killed_run_holds_nothing(tmp_path, plan):
    """While another process lives its output is its own; once it is killed the next run takes over."""
    (tmp_path / "plan.json").write_text(json.dumps(plan.model_dump(mode="json")))
    command = [sys.executable, "-c", HOLD, str(tmp_path / "out"), str(tmp_path / "plan.json")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parent.parent) as holder:
        assert holder.stdout is not None and holder.stdout.readline() == "held\n"
        with pytest.raises(InUseError, match=f"process {holder.pid} on "), open_work_folder(tmp_path / "out", plan):
            pass
        holder.send_signal(signal.SIGKILL)
        holder.wait()
    assert (tmp_path / ".out.xmerge" / "output").is_dir()
    with open_work_folder(tmp_path / "out", plan) as folder:
        assert not folder.staged.exists()
    assert list_tree(tmp_path) == ["plan.json"]


@pytest.mark.parametrize("number", range(4))
def test_folder_and_lock_are_never_removed_from_under_the_next_holder(tmp_path, plan, number):
    """When the last holder removes the folder while the next one takes it, the next one has a lock that is there."""
    opened: list[object] = []
    real = disk.open

    def open_after_removal(path, flags, mode=0o777):
        if str(path).endswith("/lock") and len(opened) < number:
            opened.append(path)
            os.rmdir(os.path.dirname(path))
        return real(path, flags, mode)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(disk, "open", open_after_removal)
        with open_work_folder(tmp_path / "out", plan) as folder:
            assert (folder.path / "lock").exists()
            assert len(opened) == number


def test_a_lock_that_was_removed_while_it_was_taken_is_taken_again(tmp_path, plan, monkeypatch):
    """A lock on a file that has lost its name keeps nobody out, so it is not a lock."""
    taken: list[int] = []
    real = disk.flock

    def lose_the_first(lock, how):
        if not taken:
            (tmp_path / ".out.xmerge" / "lock").unlink()
        taken.append(lock)
        real(lock, how)

    monkeypatch.setattr(disk, "flock", lose_the_first)
    with open_work_folder(tmp_path / "out", plan) as folder:
        assert len(taken) == 2
        with pytest.raises(InUseError), open_work_folder(folder.out, plan):
            pass


def test_a_run_that_ends_late_leaves_the_next_ones_folder_alone(tmp_path, plan):
    """Between the removal of the folder and the end of its run the next run may have taken the place."""
    with contextlib.ExitStack() as first, contextlib.ExitStack() as second:
        remove_work_folder(first.enter_context(open_work_folder(tmp_path / "out", plan)))
        folder = second.enter_context(open_work_folder(tmp_path / "out", plan))
        first.close()
        assert (folder.path / "lock").exists() and folder.store.path.is_dir()


def test_what_a_killed_run_left_half_made_goes_first(tmp_path, plan):
    """A half output and unfinished layers of a dead run are gone before the next one begins."""
    leftover = tmp_path / ".out.xmerge" / "store" / "ab" / "abcd.12345678.tmp"
    leftover.parent.mkdir(parents=True)
    leftover.write_bytes(b"half")
    (tmp_path / ".out.xmerge" / "output").mkdir()
    with open_work_folder(tmp_path / "out", plan) as folder:
        assert not leftover.exists() and not folder.staged.exists()


def test_an_output_that_appears_while_the_lock_is_taken_is_finished(tmp_path, models, plan, monkeypatch):
    """Whoever waited for the run that made the output has nothing to do."""
    run(models, tmp_path / "other")
    real = disk.flock

    def appear(lock, how):
        (tmp_path / "other").rename(tmp_path / "out")
        real(lock, how)

    monkeypatch.setattr(disk, "flock", appear)
    with open_work_folder(tmp_path / "out", plan) as folder:
        assert folder.finished
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]


@pytest.mark.parametrize("path", ["file/out", "out"])
def test_a_place_that_cannot_be_written_is_a_storage_error(tmp_path, plan, monkeypatch, path):
    """No folder, no permission, no such device: exit 6, with the place, the system's word and what to do."""
    (tmp_path / "file").write_text("")
    if path == "out":
        monkeypatch.setattr(disk, "mkdir", fail_with(30))
    with (
        pytest.raises(StorageError, match=r"the work folder .* cannot be made: ") as caught,
        open_work_folder(tmp_path / path, plan),
    ):
        pass
    assert caught.value.exit_code == 6
    assert str(caught.value.remedy).startswith("make sure that this machine has the storage of that path mounted")


def test_a_place_that_can_never_be_made_ends_in_an_error(plan):
    """Where making a folder fails as if its parent had just gone, the attempts end."""
    with (
        pytest.raises(StorageError, match=r"cannot be made: No such file or directory\.\n  do: make sure"),
        open_work_folder(Path("/proc/xmerge-out"), plan),
    ):
        pass


def test_a_name_longer_than_any_file_system_takes_is_a_storage_error(tmp_path, plan):
    """A path of thousands of characters is refused in words."""
    with pytest.raises(StorageError, match="File name too long"), open_work_folder(tmp_path / ("x" * 4000), plan):
        pass


def test_a_file_system_without_locks_keeps_the_second_run_out_all_the_same(tmp_path, plan, monkeypatch):
    """Where the kernel has no locks the runs' own signatures do: one run at a time, and no trace of it afterwards."""
    monkeypatch.setattr(disk, "flock", fail_with(37))
    with open_work_folder(tmp_path / "out", plan) as folder:
        with (
            pytest.raises(InUseError, match=f"is being merged by process {os.getpid()} on "),
            open_work_folder(folder.out, plan),
        ):
            pass
        assert folder.store.path.is_dir()
    assert list_tree(tmp_path) == []


def test_a_disk_with_too_little_space_is_known_before_the_first_layer(tmp_path, plan, monkeypatch):
    """The error says how many bytes are needed and how many are free, and nothing is left behind."""
    needed = sum(map(estimate_entry, plan.layers)) + estimate_texts(plan)
    monkeypatch.setattr(disk, "statvfs", lambda _: SimpleNamespace(f_blocks=1, f_bavail=needed - 1, f_frsize=1))
    with pytest.raises(StorageError) as caught, open_work_folder(tmp_path / "out", plan):
        pass
    assert f"{needed:,} bytes are needed and {needed - 1:,} are free" in str(caught.value)
    assert list_tree(tmp_path) == []


def test_layers_that_are_there_need_no_space(tmp_path, models, plan, monkeypatch):
    """A run that is resumed needs room for what is missing only."""
    needed = sum(map(estimate_entry, plan.layers[1:])) + estimate_texts(plan)
    monkeypatch.setattr(disk, "statvfs", lambda _: SimpleNamespace(f_blocks=1, f_bavail=needed, f_frsize=1))
    with pytest.raises(StorageError), open_work_folder(tmp_path / "out", plan):
        pass
    monkeypatch.undo()
    with open_work_folder(tmp_path / "out", plan, tmp_path / "store") as folder:
        merge_layer(plan, 0, [models / "llama", models / "qwen3"], folder.store, "cpu")
    monkeypatch.setattr(disk, "statvfs", lambda _: SimpleNamespace(f_blocks=1, f_bavail=needed, f_frsize=1))
    with open_work_folder(tmp_path / "out", plan, tmp_path / "store"):
        pass


def test_an_output_in_an_input_is_refused(models, plan):
    """No run writes into a model that it reads."""
    for out, lies in ((models / "llama", "is"), (models / "llama" / "out", "lies in")):
        with (
            pytest.raises(OutputExistsError, match=f"the output .* {lies} the input llama"),
            open_work_folder(out, plan),
        ):
            pass


def test_a_store_in_the_output_or_an_input_is_refused(tmp_path, models, plan):
    """A store that would keep the output from appearing, or write into a model, is no store."""
    for store, told in ((tmp_path / "out" / "store", "the output"), (models / "qwen3" / "s", "the input qwen3")):
        with (
            pytest.raises(PlanError, match=f"the store .* lies in {told}"),
            open_work_folder(tmp_path / "out", plan, store),
        ):
            pass
    assert list_tree(tmp_path) == []


def test_a_store_that_is_a_file_is_a_storage_error(tmp_path, plan):
    """A store is a folder."""
    (tmp_path / "store").write_text("")
    with (
        pytest.raises(StorageError, match=r"the store .* cannot be made: File exists"),
        open_work_folder(tmp_path / "out", plan, tmp_path / "store"),
    ):
        pass
    assert list_tree(tmp_path) == ["store"]
