"""Small files are whole or not there; large ones are linked, or copied where they cannot be."""

from __future__ import annotations

import errno
import os
from types import SimpleNamespace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.faults import fail_with
from xmerge import disk
from xmerge.errors import Interrupted
from xmerge.files import copy_file, free_bytes, link_or_copy, replace_text, storage_error, write_text
from xmerge.interrupt import clear_stop, request_stop


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
    request_stop()
    try:
        with pytest.raises(Interrupted):
            copy_file(tmp_path / "source", tmp_path / "target")
    finally:
        clear_stop()


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
