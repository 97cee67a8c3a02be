"""What the tasks say to Prefect: keys, retries, and text that is safe to show."""

from __future__ import annotations

import errno
import html
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prefect.client.schemas.objects import StateType

from tasks.download import download_model
from tasks.map import map_slices
from tasks.markdown import MAX_CELL, MAX_PROSE, draw_table, escape, show_plain
from tasks.merge import merge_layer
from tasks.publish import publish_merge
from tasks.recipes import parse_recipe, read_recipe
from tasks.resolve import resolve_architecture
from tasks.retrying import may_pass
from tasks.stopping import cancelled_when_stopped
from tasks.validate import validate_merge
from xmerge.errors import CheckpointError, ConfigError, HubError, HubUnavailableError, InvalidMergeError, StorageError
from xmerge.interrupt import request_stop, stoppable

ALL = (resolve_architecture, map_slices, download_model, merge_layer, validate_merge, publish_merge)


def test_only_layers_are_stored():
    """Of six tasks one has a stored result; the others ask again in every run."""
    assert [task.name for task in ALL if task.persist_result] == ["merge_layer"]


def test_validation_and_planning_are_never_repeated():
    """What gives the same answer a second time is asked once."""
    assert [task.name for task in ALL if not task.retries] == ["map_slices", "validate_merge"]


def test_a_stopped_run_begins_no_task():
    """A task that was waiting for its next try when its run was stopped is Cancelled, and does nothing."""
    done = list[str]()
    with stoppable():
        request_stop()
        state: Any = cancelled_when_stopped(done.append)("uploaded")
    assert (state.type, state.name, done) == (StateType.CANCELLED, "Interrupted", [])


@pytest.mark.parametrize("code", [errno.EIO, errno.ESTALE, errno.ETIMEDOUT])
def test_a_passing_fault_is_known_in_both_clothes(code):
    """An I/O error is worth a second try, as Python tells of it and as the library does."""
    bare = OSError(code, "it happens")
    wrapped = StorageError("the shard cannot be written.")
    wrapped.__cause__ = bare
    assert may_pass(bare)
    assert may_pass(wrapped)


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "no space left on device"),
        OSError(errno.EACCES, "permission denied"),
        CheckpointError("a shard is damaged."),
        ConfigError("no such key."),
        HubError("no such repository."),
        InvalidMergeError("one fault."),
        StorageError("no space."),
        ValueError("a bug"),
        None,
    ],
)
def test_what_a_person_must_mend_is_not_repeated(error):
    """No retry can help against a full disk, a wrong configuration, a damaged model, or a bug."""
    assert not may_pass(error)


def test_memory_of_a_gpu_and_the_hub_may_come_back():
    """Out of memory on a GPU, and a Hub that is away, are worth a second try."""
    assert may_pass(type("OutOfMemoryError", (RuntimeError,), {})("CUDA out of memory"))
    assert may_pass(HubUnavailableError("the Hub does not answer."))


@given(st.text())
def test_escaped_text_is_one_line_and_says_the_same(text):
    """Escaping takes away what acts and nothing that is read."""
    escaped = escape(text)
    assert len(escaped.splitlines()) <= 1
    assert "<" not in escaped
    assert not re.search(r"(?<!\\)[`|*_\[\]]", escaped)
    assert html.unescape(re.sub(r"\\(.)", r"\1", escaped)) == show_plain(text, MAX_PROSE)


@given(st.lists(st.lists(st.text(), min_size=2, max_size=2), max_size=4))
def test_a_table_has_the_rows_it_was_given(rows):
    """No text in a cell makes a row or a column of its own."""
    lines = draw_table(("one", "two"), rows).splitlines()
    assert len(lines) == 2 + len(rows)
    assert all(len(re.findall(r"(?<!\\)\|", line)) == 3 for line in lines)


def test_a_long_text_is_cut():
    """What nobody would read on does not fill a page."""
    assert len(show_plain("x" * 10_000)) == MAX_CELL


def test_a_recipe_is_a_path_or_text(tmp_path):
    """The form takes either; a file keeps its name and its folder, where models are looked for."""
    text = '{"merge_method": "linear", "models": [{"model": "a", "parameters": {"weight": 1}}]}'
    path = tmp_path / "recipe.yml"
    path.write_text(text, encoding="utf-8")
    (from_file,), (from_text,) = read_recipe(str(path), None), read_recipe(text, 7)
    assert (from_file["text"], from_file["name"], from_file["folder"]) == (text, "recipe.yml", str(tmp_path))
    assert (from_text["text"], from_text["folder"]) == (text, None)
    assert parse_recipe(from_file).source.folder == tmp_path
    assert parse_recipe(from_text).random_seed == 7
    assert parse_recipe(from_text).source.text == text


def test_a_recipe_that_is_not_there_is_named():
    """A path that leads nowhere is an error of the configuration, and names the path."""
    with pytest.raises(ConfigError, match=r"no\.yml"):
        read_recipe("no.yml", None)
