"""Many recipes into one folder: what goes where, what has come of each, and the disk that all of it takes."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from xmerge.errors import ConfigError, XmergeError
from xmerge.files import remove_tree, storage_error
from xmerge.finished import resolve_path
from xmerge.lock import hold_folder
from xmerge.planning.table import show_bytes
from xmerge.store import Store
from xmerge.values import Value

SUFFIXES = (".yml", ".yaml")
WORK_NAME = ".xmerge"
"""In the folder of the outputs, while a batch runs or can be resumed: its lock, and its store unless one is named."""


class PlacedRecipe(Value):
    """One recipe of a batch, and where its output goes."""

    recipe: Path
    out: Path


class RecipeOutcome(Value):
    """What has come of one recipe."""

    recipe: str
    outcome: Literal["merged", "was there", "failed"]
    layers: int = 0
    reused: int = 0
    """Layers that an earlier recipe, or an earlier run, had made."""
    bytes: int = 0
    """Of the output's files."""
    error: str | None = None
    """In full, with what to do."""
    exit_code: int = 0

    @property
    def made(self) -> int:
        """Layers that were merged for it."""
        return self.layers - self.reused


class BatchOutcome(Value):
    """What has come of a batch."""

    recipes: tuple[RecipeOutcome, ...]
    output_bytes_on_disk: int
    """What the outputs take, each file once, whatever number of outputs share it."""
    store_bytes_on_disk: int
    """What the store takes beside that."""

    @property
    def failed(self) -> tuple[RecipeOutcome, ...]:
        """The recipes that were not merged."""
        return tuple(each for each in self.recipes if each.outcome == "failed")

    @property
    def exit_code(self) -> int:
        """That of the first recipe that failed; 0 where none did."""
        return self.failed[0].exit_code if self.failed else 0


def place_recipes(given: Sequence[Path], out: Path) -> tuple[PlacedRecipe, ...]:
    """The recipes that are meant, in the order given and by name within a folder, each with the place of its output.

    Args:
        given: Recipes, and folders of recipes.
        out: The folder of the outputs; each has the name of its recipe's file.

    Raises:
        ConfigError: There are none, or two would have one place.
    """
    found = [recipe for path in given for recipe in _list_recipes(path.expanduser())]
    if not found:
        raise ConfigError("no recipe is named.", remedy="name files of YAML, or folders that hold some.")
    placed: dict[str, PlacedRecipe] = {}
    for recipe in found:
        # Not every file system tells A from a.
        twin = placed.setdefault(recipe.stem.lower(), PlacedRecipe(recipe=recipe, out=out / recipe.stem))
        if twin.recipe != recipe:
            raise ConfigError(
                f"two recipes would be merged to {twin.out}.",
                where=f"{twin.recipe} and {recipe}",
                remedy="rename one, or merge them to different folders.",
            )
    return tuple(placed.values())


def _list_recipes(path: Path) -> list[Path]:
    if not path.is_dir():
        return [path]
    try:
        found = sorted(path / name for name in os.listdir(path) if name.endswith(SUFFIXES))
    except OSError as error:
        raise ConfigError(f"the recipes in {path} cannot be listed: {error.strerror}.") from error
    if not found:
        raise ConfigError(
            f"the folder {path} holds no recipe.", remedy=f"name files, or a folder with {' or '.join(SUFFIXES)} in it."
        )
    return found


@dataclass
class Batch:
    """A folder of outputs that is held, and the store for all of them."""

    store: Path
    complete: bool = False
    """Whether every output is made; then a store that nobody named goes."""


@contextlib.contextmanager
def open_batch(out: Path, store: Path | None) -> Iterator[Batch]:
    """Hold a folder of outputs while they are made.

    Raises:
        InUseError: Another batch has the folder, and is named.
        StorageError: It cannot be made.
    """
    folder = resolve_path(out) / WORK_NAME
    own = folder / "store"
    with hold_folder(folder, str(out)):
        batch = Batch(resolve_path(store) if store else own)
        try:
            yield batch
        finally:
            if batch.complete or not Store(own).holds_anything():
                remove_tree(folder)


def describe_success(placed: PlacedRecipe, layers: int, reused: int, *, merged: bool) -> RecipeOutcome:
    """The outcome of a recipe whose output is in its place."""
    size = sum(status.st_size for status in _list_files(placed.out))
    outcome: Literal["merged", "was there"] = "merged" if merged else "was there"
    return RecipeOutcome(recipe=placed.recipe.name, outcome=outcome, layers=layers, reused=reused, bytes=size)


def describe_failure(placed: PlacedRecipe, error: Exception) -> RecipeOutcome:
    """The outcome of a recipe that was not merged."""
    told = f"{type(error).__name__}: {error}"
    code = error.exit_code if isinstance(error, XmergeError) else XmergeError.exit_code
    return RecipeOutcome(recipe=placed.recipe.name, outcome="failed", error=told, exit_code=code)


def sum_up(outcomes: Sequence[RecipeOutcome], recipes: Sequence[PlacedRecipe], store: Path) -> BatchOutcome:
    """A batch's outcome, with the disk that it takes now."""
    outputs = _measure([placed.out for placed in recipes])
    kept = _measure([store])
    return BatchOutcome(
        recipes=tuple(outcomes),
        output_bytes_on_disk=sum(outputs.values()),
        store_bytes_on_disk=sum(size for file, size in kept.items() if file not in outputs),
    )


def tell_disk(batch: BatchOutcome) -> list[tuple[str, str]]:
    """What a batch takes, as (name, value)."""
    return [
        ("outputs", show_bytes(sum(each.bytes for each in batch.recipes))),
        ("outputs on disk, shared shards once", show_bytes(batch.output_bytes_on_disk)),
        ("store beside them", show_bytes(batch.store_bytes_on_disk)),
    ]


def _measure(folders: Sequence[Path]) -> dict[tuple[int, int], int]:
    """(device, inode) -> bytes on disk of every file below some folders."""
    found = [status for folder in folders for status in _list_files(folder)]
    return {(status.st_dev, status.st_ino): status.st_blocks * 512 for status in found}


def _list_files(folder: Path) -> list[os.stat_result]:
    """What the system says of every file below a folder; nothing where there is none."""
    try:
        return [os.lstat(os.path.join(place, name)) for place, _, names in os.walk(folder) for name in sorted(names)]
    except OSError as error:
        raise storage_error(error, folder, doing="read") from error
