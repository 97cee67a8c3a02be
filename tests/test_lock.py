"""One run at a time in a folder, with the kernel's locks and without them."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.faults import fail_with
from xmerge import disk, files, lock
from xmerge.errors import InUseError, StorageError
from xmerge.lock import hold_folder
from xmerge.processes import Process, describe_self

WITH, WITHOUT = "the kernel's locks", "no locks"


@pytest.fixture(params=[WITH, WITHOUT])
def locks(request, monkeypatch):
    """A file system with locks, and one without."""
    if request.param == WITHOUT:
        monkeypatch.setattr(disk, "flock", fail_with(errno.ENOLCK))
    return request.param


def sign(folder: Path, holder: Process) -> Path:
    """What a run without the kernel's locks leaves in a folder while it holds it."""
    folder.mkdir()
    file = folder / "lock.0123abcd"
    file.write_text(json.dumps({"holder": holder.model_dump(), "since": "2026-01-01 00:00:00"}))
    return file


def end_a_process() -> Process:
    """A process of this machine that has ended."""
    code = "from xmerge.processes import describe_self; print(describe_self().model_dump_json())"
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout
    return Process.model_validate_json(told)


def test_the_second_is_told_who_has_it_and_the_first_keeps_it(tmp_path, locks):
    """One run at a time; the one that is turned away leaves the other's lock as it was, and exits with 5."""
    with hold_folder(tmp_path / "work", "OUT") as held:
        for _ in range(2):
            with pytest.raises(InUseError) as caught, hold_folder(tmp_path / "work", "OUT"):
                pass
            assert caught.value.exit_code == 5
            assert caught.value.what.startswith(f"OUT is being merged by process {os.getpid()} on ")
        assert held.is_held()
    with hold_folder(tmp_path / "work", "OUT"):
        pass


def test_whoever_has_removed_the_folder_holds_it_no_more(tmp_path, locks):
    """A lock without its name keeps nobody out, and says so."""
    with hold_folder(tmp_path / "work", "OUT") as held:
        for file in (tmp_path / "work").iterdir():
            file.unlink()
        assert not held.is_held()


@pytest.mark.slow
def test_without_locks_a_dead_run_is_known_by_its_process(tmp_path, monkeypatch):
    """The signature of a process that has ended keeps nobody out, and is gone afterwards."""
    monkeypatch.setattr(disk, "flock", fail_with(errno.EOPNOTSUPP))
    file = sign(tmp_path / "work", end_a_process())
    with hold_folder(tmp_path / "work", "OUT") as held:
        assert not file.exists() and held.is_held()
    assert [path.name for path in (tmp_path / "work").iterdir()] == ["lock"]


@pytest.mark.parametrize("change", [{"machine": "another start of another machine"}, {}])
def test_without_locks_a_run_that_may_live_keeps_others_out(tmp_path, monkeypatch, change):
    """Of a process on another machine nothing is known, so the person is asked, and told which file it is about."""
    monkeypatch.setattr(disk, "flock", fail_with(errno.ENOLCK))
    holder = describe_self().model_copy(
        update={"pid": os.getppid() if change else os.getpid(), "host": "far", **change}
    )
    file = sign(tmp_path / "work", holder)
    with pytest.raises(InUseError) as caught, hold_folder(tmp_path / "work", "OUT"):
        pass
    assert str(caught.value) == (
        f"OUT is being merged by process {holder.pid} on far since 2026-01-01 00:00:00.\n"
        "  why: this file system has no locks, so a process on another machine cannot be asked whether it lives.\n"
        f"  do: wait for it to end, or name another output; if it has died, remove {file}."
    )
    assert sorted(path.name for path in (tmp_path / "work").iterdir()) == ["lock", file.name]


def test_a_process_that_got_a_dead_ones_number_is_not_taken_for_it():
    """Numbers of processes are given again: the time of the start tells them apart."""
    here = describe_self()
    assert not here.is_dead()
    assert here.model_copy(update={"started": "1"}).is_dead()
    assert not here.model_copy(update={"started": "1", "machine": None}).is_dead()


def test_two_runs_that_sign_at_once_do_not_both_go_on(tmp_path, monkeypatch):
    """Whoever signs last sees the other's signature, however the two are interleaved."""
    monkeypatch.setattr(disk, "flock", fail_with(errno.ENOLCK))
    real = files.replace_text
    theirs = []

    def sign_after_another(file, text):
        theirs.append(file.with_name("lock.theirs"))
        real(theirs[0], text)
        real(file, text)

    monkeypatch.setattr(lock, "replace_text", sign_after_another)
    with pytest.raises(InUseError), hold_folder(tmp_path / "work", "OUT"):
        pass
    assert [path.name for path in sorted((tmp_path / "work").iterdir())] == ["lock", "lock.theirs"]


@pytest.mark.parametrize("call", ["mkdir", "open", "flock"])
def test_a_disk_that_fails_is_told_as_one(tmp_path, monkeypatch, call):
    """Whatever goes wrong but a lock that another run has is exit 6."""
    monkeypatch.setattr(disk, call, fail_with(errno.EIO))
    with pytest.raises(StorageError, match=r"the work folder .* cannot be made: Input/output error"):
        lock._take(tmp_path / "work", "OUT")


def test_a_full_disk_keeps_nobody_from_locking(tmp_path, monkeypatch):
    """A signature that cannot be written is missed by nobody but a second run."""
    monkeypatch.setattr(disk, "pwrite", fail_with(errno.ENOSPC))
    monkeypatch.setattr("time.sleep", lambda _: None)
    with hold_folder(tmp_path / "work", "OUT") as held:
        assert held.is_held()
        with pytest.raises(InUseError, match="OUT is being merged by another process"):
            lock._take(tmp_path / "work", "OUT")
