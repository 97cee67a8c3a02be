"""A recipe on its way through the flow: the text of a configuration, and what goes with it."""

from __future__ import annotations

from pathlib import Path
from typing import TypedDict

from xmerge.config import MergeConfig, load_stages, parse_stages


class Recipe(TypedDict):
    """One stage of it, mostly the only one: plain text, so that it can go to any worker; parsed wherever it is used."""

    text: str
    """Of all stages."""
    stage: int
    """Which of them, in the order in which they are carried out."""
    name: str
    """What errors call it."""
    folder: str | None
    """Where it came from: models are looked for there too."""
    seed: int | None
    """Takes the place of `random_seed`, if given."""


def read_recipe(given: str, seed: int | None) -> list[Recipe]:
    """The stages of the recipe in a file, or of the recipe itself where it is given as text. The file is read once.

    Raises:
        ConfigError: It cannot be read, or has no meaning.
    """
    stages = (
        parse_stages(given, "the recipe") if is_recipe_text(given) else load_stages(Path(given.strip()).expanduser())
    )
    source = stages[-1].source
    folder = str(source.folder) if source.folder else None
    return [
        Recipe(text=source.text, stage=stage, name=source.name, folder=folder, seed=seed)
        for stage in range(len(stages))
    ]


def is_recipe_text(given: str) -> bool:
    """Whether it is a recipe itself, and not the path of one."""
    return "\n" in given.strip() or given.lstrip().startswith("{")


def parse_recipe(recipe: Recipe) -> MergeConfig:
    """The configuration that a recipe says, with the seed that goes with it."""
    folder = Path(recipe["folder"]) if recipe["folder"] else None
    config = parse_stages(recipe["text"], recipe["name"], folder)[recipe["stage"]]
    return config if recipe["seed"] is None else config.model_copy(update={"random_seed": recipe["seed"]})
