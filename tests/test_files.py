"""Small files are whole or not there; large ones are linked, or copied where they cannot be."""

from __future__ import annotations

import errno
import hashlib
import os
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.faults import fail_with
from tests.small_merges import list_tree
from xmerge import disk, files
from xmerge.errors import Interrupted
from xmerge.files import (
    copy_file,
    free_bytes,
    hash_open,
    link_or_copy,
    make_folders,
    open_file,
    read_bytes,
    remove_tree,
    replace_text,
    storage_error,
    sync_folder,
    write_text,
)
from xmerge.interrupt import request_stop, stoppable


@given(content=st.binary(max_size=200))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_link_and_a_copy_hold_the_same_bytes(tmp_path, content):
    """Whichever way a file is given a second place, its bytes are the first one's."""
    folder = tmp_path / os.urandom(8).hex()
    folder.mkdir()
    (folder / "source").write_bytes(content)
    assert link_or_copy(folder / "source", folder / "linked") == "linked"
    copy_file(folder / "source", folder / "copied")
    assert (folder / "linked").read_bytes() == (folder / "copied").read_bytes() == content


@pytest.mark.parametrize("number", [errno.EXDEV, errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK])
def test_where_there_are_no_links_the_bytes_are_copied(tmp_path, monkeypatch, number):
    """A file system without links costs a copy, and is told apart."""
    monkeypatch.setattr(disk, "link", fail_with(number))
    (tmp_path / "source").write_bytes(b"weights" * 1000)
    assert link_or_copy(tmp_path / "source", tmp_path / "target") == "copied"
    assert (tmp_path / "target").read_bytes() == b"weights" * 1000


def test_other_failures_to_link_are_not_hidden_by_a_copy(tmp_path):
    """A source that is not there is an error, not an empty copy."""
    with pytest.raises(FileNotFoundError):
        link_or_copy(tmp_path / "nothing", tmp_path / "target")
    assert not (tmp_path / "target").exists()


def test_a_copy_answers_a_stop(tmp_path):
    """A long copy ends when a stop is requested."""
    (tmp_path / "source").write_bytes(b"x")
    with stoppable():
        request_stop()
        with pytest.raises(Interrupted):
            copy_file(tmp_path / "source", tmp_path / "target")


def test_a_text_that_cannot_be_replaced_stays_and_leaves_nothing_beside_it(tmp_path, monkeypatch):
    """When the disk fails, the old text is whole and no unfinished file remains."""
    path = tmp_path / "entry.json"
    replace_text(path, "old")
    monkeypatch.setattr(disk, "fsync", fail_with(errno.EIO))
    with pytest.raises(OSError, match="Input/output"):
        replace_text(path, "new")
    assert [each.name for each in tmp_path.iterdir()] == ["entry.json"]
    assert path.read_text() == "old"


def test_half_a_surrogate_pair_is_written_as_its_escape(tmp_path):
    """A text that no UTF-8 can hold is written in the form that JSON reads back."""
    write_text(tmp_path / "config.json", '"\ud800 é"')
    assert (tmp_path / "config.json").read_text(encoding="utf-8") == '"\\ud800 é"'


def test_a_full_disk_is_told_with_needed_and_free_bytes(tmp_path, monkeypatch):
    """The error says how much is needed, how much there is, and that finished layers are kept."""
    monkeypatch.setattr(disk, "statvfs", lambda _: SimpleNamespace(f_blocks=1, f_bavail=3, f_frsize=1000))
    told = str(storage_error(OSError(errno.ENOSPC, "No space left on device"), tmp_path, needed=12_345))
    assert told == (
        f"there is no space left in {tmp_path}.\n"
        "  why: 12,345 bytes are needed at once and 3,000 bytes are free (No space left on device).\n"
        "  do: free some space and run the same command again: finished layers are kept."
    )


def test_any_other_fault_of_the_disk_names_the_file(tmp_path):
    """The error says which folder, which file, and what the system said."""
    fault = OSError(errno.EROFS, "Read-only file system", str(tmp_path / "config.json"))
    assert str(storage_error(fault, tmp_path)) == (
        f"{tmp_path} cannot be written: Read-only file system.\n"
        f"  at: {tmp_path / 'config.json'}\n"
        "  do: check the folder, then run again."
    )


def test_a_file_system_that_does_not_say_is_not_taken_for_full(tmp_path, monkeypatch):
    """No answer, or an answer of no blocks at all, is no answer."""
    assert free_bytes(tmp_path / "nothing") is None
    monkeypatch.setattr(disk, "statvfs", lambda _: SimpleNamespace(f_blocks=0, f_bavail=0, f_frsize=1))
    assert free_bytes(tmp_path) is None


@given(content=st.binary(max_size=300), most=st.none() | st.integers(0, 400))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_the_digest_of_a_file_is_that_of_its_bytes(tmp_path, content, most):
    """Whole or in its first bytes, however few are read at a time."""
    path = tmp_path / "file"
    path.write_bytes(content)
    with pytest.MonkeyPatch.context() as patch, open_file(path) as descriptor:
        patch.setattr(files, "COPY_BYTES", 7)
        first = content[:most]
        assert hash_open(descriptor, most) == (len(first), hashlib.sha256(first).hexdigest())
        assert read_bytes(path, most) == first


@pytest.mark.parametrize("number", [errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS])
def test_a_file_system_that_cannot_sync_a_folder_is_no_fault(tmp_path, monkeypatch, number):
    """Some network file systems have no such call; a disk that fails at it is told all the same."""
    monkeypatch.setattr(disk, "fsync", fail_with(number))
    sync_folder(tmp_path)
    monkeypatch.setattr(disk, "fsync", fail_with(errno.EIO))
    with pytest.raises(OSError, match="Input/output"):
        sync_folder(tmp_path)


def test_folders_are_made_with_those_above_them_and_no_others(tmp_path):
    """What is there stays; what is in the way, or cannot be made, is an error and not a loop."""
    make_folders(tmp_path / "a" / "b" / "c")
    make_folders(tmp_path / "a" / "b" / "c")
    assert (tmp_path / "a" / "b" / "c").is_dir()
    (tmp_path / "file").write_text("")
    (tmp_path / "dangling").symlink_to(tmp_path / "nothing")
    for name in ("file", "file/below", "dangling"):
        with pytest.raises(OSError, match=r"File exists|Not a directory"):
            make_folders(tmp_path / name)
    with pytest.raises(FileNotFoundError):
        make_folders(Path("/proc/nothing/here"))


def test_of_a_link_in_a_removed_folder_only_the_link_goes(tmp_path):
    """A folder goes with all in it, and nothing goes that is elsewhere."""
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "file").write_text("")
    (tmp_path / "gone" / "deep").mkdir(parents=True)
    (tmp_path / "gone" / "deep" / "file").write_text("")
    (tmp_path / "gone" / "link").symlink_to(tmp_path / "kept")
    remove_tree(tmp_path / "gone")
    remove_tree(tmp_path / "nothing")
    assert list_tree(tmp_path) == ["kept", "kept/file"]


def test_what_cannot_be_removed_does_not_keep_the_rest(tmp_path, monkeypatch):
    """One file that stays is no reason for the others to stay."""
    for name in "abc":
        (tmp_path / "gone" / name).mkdir(parents=True)
        (tmp_path / "gone" / name / "file").write_text("")
    real = disk.unlink
    monkeypatch.setattr(disk, "unlink", lambda path: (fail_with(13) if path.parent.name == "b" else real)(path))
    remove_tree(tmp_path / "gone")
    assert list_tree(tmp_path) == ["gone", "gone/b", "gone/b/file"]


@pytest.mark.parametrize("number", [errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS])
def test_a_large_copy_takes_its_space_first_where_that_can_be(tmp_path, monkeypatch, number):
    """A full disk is known before a byte is copied; a file system that reserves nothing gets the copy all the same."""
    (tmp_path / "source").write_bytes(b"weights" * 10)
    monkeypatch.setattr(files, "COPY_BYTES", 16)
    monkeypatch.setattr(disk, "allocate", fail_with(number))
    copy_file(tmp_path / "source", tmp_path / "copied")
    assert (tmp_path / "copied").read_bytes() == b"weights" * 10
    monkeypatch.setattr(disk, "allocate", fail_with(errno.ENOSPC))
    with pytest.raises(OSError, match="No space left"):
        copy_file(tmp_path / "source", tmp_path / "full")
    assert (tmp_path / "full").read_bytes() == b""
