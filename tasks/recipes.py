"""A recipe on its way through the flow: the text of a configuration, and what goes with it."""

from __future__ import annotations

from pathlib import Path
from typing import TypedDict

from xmerge.config import MergeConfig, load_config, parse_config


class Recipe(TypedDict):
    """Plain text, so that it can go to any worker; parsed wherever it is used."""

    text: str
    name: str
    """What errors call it."""
    folder: str | None
    """Where it came from: models are looked for there too."""
    seed: int | None
    """Takes the place of `random_seed`, if given."""


def read_recipe(given: str, seed: int | None) -> Recipe:
    """The recipe in a file, or the recipe itself where it is given as text. The file is read once.

    Raises:
        ConfigError: It cannot be read, or has no meaning.
    """
    is_text = "\n" in given.strip() or given.lstrip().startswith("{")
    source = (parse_config(given, "the recipe") if is_text else load_config(Path(given.strip()).expanduser())).source
    folder = str(source.folder) if source.folder else None
    return Recipe(text=source.text, name=source.name, folder=folder, seed=seed)


def parse_recipe(recipe: Recipe) -> MergeConfig:
    """The configuration that a recipe says, with the seed that goes with it."""
    config = parse_config(recipe["text"], recipe["name"], Path(recipe["folder"]) if recipe["folder"] else None)
    return config if recipe["seed"] is None else config.model_copy(update={"random_seed": recipe["seed"]})
