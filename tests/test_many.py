"""Which recipes a batch has, where their outputs go, and what all of it takes on the disk."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from xmerge.errors import CheckpointError, ConfigError
from xmerge.many import (
    BatchOutcome,
    RecipeOutcome,
    describe_failure,
    describe_success,
    open_batch,
    place_recipes,
    sum_up,
)


def write(folder: Path, *names: str) -> Path:
    """A folder of files of these names."""
    folder.mkdir()
    for name in names:
        (folder / name).write_text("x", encoding="utf-8")
    return folder


def test_a_folder_stands_for_its_recipes_by_name(tmp_path: Path):
    """Files are taken in the order given, those of a folder by name, and each output has its recipe's name."""
    folder = write(tmp_path / "some", "b.yml", "a.yaml", "notes.txt")
    placed = place_recipes([tmp_path / "z.yml", folder], tmp_path / "out")
    assert [each.recipe.name for each in placed] == ["z.yml", "a.yaml", "b.yml"]
    assert [each.out for each in placed] == [tmp_path / "out" / name for name in ("z", "a", "b")]


def test_one_recipe_named_twice_is_one(tmp_path: Path):
    """Naming a file, and the folder that holds it, merges it once."""
    folder = write(tmp_path / "some", "a.yml")
    assert len(place_recipes([folder / "a.yml", folder], tmp_path)) == 1


def test_what_has_no_place_of_its_own_is_refused(tmp_path: Path):
    """Two recipes for one output, a folder without recipes, and no recipe at all are errors with a remedy."""
    folder = write(tmp_path / "some", "a.yml", "A.yaml")
    empty = write(tmp_path / "empty", "notes.txt")
    for given, told in (
        ([folder], "two recipes would be merged to "),
        ([empty], f"the folder {empty} holds no recipe."),
        ([], "no recipe is named."),
    ):
        with pytest.raises(ConfigError) as caught:
            place_recipes(given, tmp_path / "out")
        assert caught.value.what.startswith(told)
        assert caught.value.remedy


def test_shared_files_take_their_place_once(tmp_path: Path):
    """A file that outputs and store share counts with the outputs, once; what only the store has, with the store."""
    store, out = write(tmp_path / "store", "shard", "record"), tmp_path / "out"
    placed = place_recipes([tmp_path / "a.yml", tmp_path / "b.yml"], out)
    for each in placed:
        each.out.mkdir(parents=True)
        os.link(store / "shard", each.out / "shard")
    outcomes = [describe_success(each, layers=3, reused=1, merged=True) for each in placed]
    summed = sum_up(outcomes, placed, store)
    assert [each.bytes for each in outcomes] == [1, 1]
    assert summed.output_bytes_on_disk == (store / "shard").stat().st_blocks * 512
    assert summed.store_bytes_on_disk == (store / "record").stat().st_blocks * 512


def test_a_failure_keeps_its_remedy_and_its_exit_code(tmp_path: Path):
    """The exit code of a batch is that of its first failure, 1 for a bug, 0 where there is none."""
    (placed,) = place_recipes([tmp_path / "a.yml"], tmp_path / "out")
    known = describe_failure(placed, CheckpointError("a model is gone.", remedy="fetch it."))
    bug = describe_failure(placed, ValueError("what"))
    good = RecipeOutcome(recipe="b.yml", outcome="merged")
    assert known.error == "CheckpointError: a model is gone.\n  do: fetch it."
    for outcomes, code in (((good, known, bug), 3), ((bug, known), 1), ((good,), 0)):
        assert BatchOutcome(recipes=outcomes, output_bytes_on_disk=0, store_bytes_on_disk=0).exit_code == code


def test_a_store_that_nobody_named_goes_when_all_is_done(tmp_path: Path):
    """Finished layers stay while something is to be made, and a store that was named always."""
    for complete in (False, True):
        with open_batch(tmp_path / "out", None) as batch:
            (batch.store / "ab").mkdir(parents=True, exist_ok=True)
            (batch.store / "ab" / "entry.json").touch()
            batch.complete = complete
        assert (tmp_path / "out" / ".xmerge").exists() is not complete
    with open_batch(tmp_path / "out", tmp_path / "kept") as batch:
        batch.store.mkdir()
        batch.complete = True
    assert (tmp_path / "kept").is_dir()
    assert not (tmp_path / "out" / ".xmerge").exists()
