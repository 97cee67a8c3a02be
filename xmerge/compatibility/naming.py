"""The models that people compare: a folder, a repository, a config.json alone, or the name of a popular model."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from xmerge.architecture import ResolvedModel, describe_model, find_family
from xmerge.architecture.models import describe_checkpoint, expect_tensors
from xmerge.checkpoints import Checkpoint, StoredTensor
from xmerge.checkpoints.checkpoint import read_json_object
from xmerge.checkpoints.headers import size_of
from xmerge.config import parse_reference
from xmerge.errors import CheckpointError, nearest
from xmerge.sources import Location, locate_model

DENSE_ROLES = ("ffn_gate", "ffn_up", "ffn_down")
SKETCHED_DTYPE = "BF16"


def describe_model_named(text: str) -> ResolvedModel:
    """The model that a person names; the weights of one that is only known by its config.json are left to that.

    Raises:
        CheckpointError: There is no such model, or it is damaged.
        HubError: The Hub refused or could not be reached.
    """
    folder = Path(text).expanduser()
    if (folder / "config.json").is_file() and not any(folder.glob("*.safetensors")):
        config = read_json_object(folder / "config.json", f"{folder.name}/config.json")
        return sketch_model(Location(reference=text, label=folder.resolve().name, folder=folder.resolve()), config)
    if not folder.is_dir() and "/" not in text:
        popular = list_popular_models()
        if text.lower() in popular:
            model = popular[text.lower()]
            return sketch_model(Location(reference=str(model["repo"]), label=text.lower()), model["config"])
        raise CheckpointError(
            f"there is no folder '{text}', and no popular model of that name.",
            remedy=f"{nearest(text.lower(), popular)} A repository is named org/name.",
        )
    return describe_model(locate_model(parse_reference(text)))


def list_model_folders(folder: Path) -> list[Path]:
    """The folders in a folder that hold a model, by name.

    Raises:
        CheckpointError: There is none.
    """
    found = sorted(path.parent for path in folder.glob("*/config.json")) if folder.is_dir() else []
    if not found:
        raise CheckpointError(f"no folder in {folder} holds a config.json.", remedy="name the folder of the models.")
    return found


def sketch_model(location: Location, config: Mapping[str, Any]) -> ResolvedModel:
    """A model as its config.json implies it, without any header.

    Raises:
        CheckpointError: No family file describes it, or config.json lacks something.
    """
    family = find_family(config)
    if family is None:
        raise CheckpointError(
            f"{location.label} has no weights here, and no family file says what a {config.get('model_type')} has.",
            remedy="fetch its weights; headers are enough for a repository on the Hub.",
        )
    spelled = family.spelled_like(())
    language = family.language_config(config)
    axes, tied = spelled.read_axes(language, location.label), spelled.is_tied(language)
    tensors = {
        name: _sketch_tensor(name, place.template.shape(axes))
        for name, place in expect_tensors(spelled, axes).items()
        if place.template.exists(language, tied=tied)
        or (place.template.maybe and "experts" in axes and not set(DENSE_ROLES) & set(place.template.roles))
    }
    return describe_checkpoint(location, Checkpoint(location.label, config, (), tensors, "sketch"), family)


def _sketch_tensor(name: str, shape: tuple[int, ...]) -> StoredTensor:
    return StoredTensor(name, "", SKETCHED_DTYPE, shape, 0, size_of(SKETCHED_DTYPE, shape))


@cache
def list_popular_models() -> Mapping[str, Mapping[str, Any]]:
    """Popular models by name: their repository, and what of their config.json decides shapes and traits."""
    text = resources.files("xmerge.compatibility").joinpath("popular.yaml").read_text(encoding="utf-8")
    return dict(yaml.safe_load(text))
