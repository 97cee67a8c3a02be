"""The models that people compare: a folder, a repository, a config.json alone, or the name of a popular one."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any, Literal

import yaml

from xmerge.architecture import Family, ResolvedModel, describe_model, find_family, find_unfit, list_families
from xmerge.architecture.models import MOST_LAYERS, Place, describe_checkpoint, expect_tensors, label_apart
from xmerge.architecture.traits import Traits
from xmerge.checkpoints import Checkpoint, StoredTensor
from xmerge.checkpoints.checkpoint import PICKLE_SUFFIXES, read_config
from xmerge.checkpoints.headers import size_of
from xmerge.config import ModelReference, parse_reference
from xmerge.config.schema import ModelPath
from xmerge.errors import CheckpointError, nearest
from xmerge.planning.packed import suppose_packed
from xmerge.sources import Location, locate_model
from xmerge.values import Value

Origin = Literal["headers", "config.json", "pickle", "table"]
"""Where a model's shapes come from: its headers, its config.json alone (`pickle`: beside weights that are not opened),
or the table of popular models."""

MOST_SKETCHED = 200_000
"""More tensors than any model has: layers times experts, of what no header has confirmed."""
SKETCHED_DTYPE = "BF16"
SKETCH = "sketch"
"""The pin of a model that nothing can be read of."""
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class PopularModel(Value):
    """A line of the table of popular models."""

    repo: str
    config: dict[str, Any]


@dataclass(frozen=True)
class Named:
    """A model that was found, and not looked at."""

    location: Location
    config: Mapping[str, Any] | None = None
    """All that is known of it, where that is its config.json; None: its headers tell."""

    def describe(self, label: str) -> ResolvedModel:
        """What each of its tensors does.

        Args:
            label: What people call it here.

        Raises:
            CheckpointError: It is damaged, or only its config.json is here and says too little.
            HubError: The Hub refused or could not be reached.
        """
        location = self.location.model_copy(update={"label": label})
        return describe_model(location) if self.config is None else sketch_model(location, self.config)


def describe_models_named(texts: Sequence[str]) -> tuple[ResolvedModel, ...]:
    """The models that a person names, their labels told apart.

    Raises:
        CheckpointError: There is no such model, or it is damaged.
        HubError: The Hub refused or could not be reached.
    """
    found = [find_named(text) for text in texts]
    labels = [location.label for location in label_apart([each.location for each in found])]
    return tuple(each.describe(label) for each, label in zip(found, labels, strict=True))


def find_named(text: str) -> Named:
    """The model that a person names: a folder, a popular model, or a repository on the Hub.

    Raises:
        CheckpointError: There is no such model.
        HubError: The Hub refused or could not be reached.
    """
    _refuse_no_text(text)
    folder = Path(os.path.expanduser(text))
    if (folder / "config.json").is_file() and not any(folder.glob("*.safetensors")):
        config = read_config(folder / "config.json", f"{folder.name}/config.json")
        label = folder.name if folder.name not in ("", "..") else folder.resolve().name
        return Named(Location(reference=text, label=label, folder=folder.resolve()), config)
    if folder.is_dir():
        # Its name may hold the signs of a revision or an adapter.
        return Named(locate_model(ModelReference(model=ModelPath(path=text))))
    if "/" in text:
        return Named(locate_model(parse_reference(text)))
    model = list_popular_models().get(text.lower())
    if model is None:
        raise CheckpointError(
            f"there is no folder '{show_name(text)}', and no popular model of that name.",
            remedy=f"{nearest(text.lower(), list_popular_models())} A repository is named org/name.",
        )
    return Named(Location(reference=model.repo, label=text.lower()), model.config)


def list_model_folders(folder: Path) -> list[Path]:
    """The folders in a folder that hold a config.json, by name.

    Raises:
        CheckpointError: There is none.
    """
    remedy = "name a folder that holds the folders of models."
    if not folder.is_dir():
        raise CheckpointError(f"there is no folder '{show_name(str(folder))}'.", remedy=remedy)
    found = sorted(path.parent for path in folder.glob("*/config.json"))
    if not found:
        raise CheckpointError(f"no folder in {show_name(str(folder))} holds a config.json.", remedy=remedy)
    return found


def show_name(text: str) -> str:
    """A name for people, with the bytes that are no text written out."""
    return os.fsencode(text).decode("utf-8", "backslashreplace")


def tell_origin(model: ResolvedModel) -> Origin:
    """Where a model's shapes come from."""
    if model.checkpoint.pin != SKETCH:
        return "headers"
    if model.location.folder is None:
        return "table"
    pickled = any(path.suffix in PICKLE_SUFFIXES for path in model.location.folder.iterdir())
    return "pickle" if pickled else "config.json"


def sketch_model(location: Location, config: Mapping[str, Any]) -> ResolvedModel:
    """A model as its config.json implies it, without any header: in bfloat16, with experts where it says so.

    Raises:
        CheckpointError: No family file describes it, or config.json lacks something.
    """
    family = find_family(config)
    if family is None:
        kinds = dict.fromkeys(kind for each in list_families() for kind in each.model_types)
        told, unfit = str(config.get("model_type")), find_unfit(config)
        raise CheckpointError(
            f"{location.label} is here as a config.json alone, and no family file says what tensors a {told!r} has.",
            why=f"{unfit}." if unfit else f"families are found by 'model_type'; {nearest(told, kinds)}",
            remedy="fetch its weights too (of a repository, headers are enough), or add a file to xmerge/families.",
        )
    spelled = family.spelled_like(())
    language = family.language_config(config)
    axes = spelled.read_axes(language, location.label)
    _refuse_endless(axes, location.label)
    tensors = {
        stored.name: stored
        for stored in _sketch_tensors(spelled, axes, language, location.label, tied=spelled.is_tied(language))
    }
    checkpoint = Checkpoint(location.label, config, (), tensors, SKETCH)
    return suppose_packed(describe_checkpoint(location, checkpoint, family))


def _sketch_tensors(
    family: Family, axes: Mapping[str, int], config: Mapping[str, Any], label: str, *, tied: bool
) -> Iterator[StoredTensor]:
    traits = Traits(family, config, axes, label)
    for name, place in expect_tensors(family, axes).items():
        if place.template.exists(config, tied=tied) or _is_likely(place, traits):
            shape = place.template.shape(axes)
            yield StoredTensor(name, "", SKETCHED_DTYPE, shape, 0, size_of(SKETCHED_DTYPE, shape))


def _is_likely(place: Place, traits: Traits) -> bool:
    """Whether a layer has what only headers can prove: the kind of feed-forward config.json says, without biases."""
    line = place.template
    if not line.maybe or line.feed_forward is None or place.layer is None or line.role.endswith("_bias"):
        return False
    return line.feed_forward == ("sparse" if traits.has_experts(place.layer) else "dense")


def _refuse_no_text(name: str) -> None:
    if show_name(name) != name:
        raise CheckpointError(
            f"the name {show_name(name)} holds bytes that are no text.", remedy="rename the folder, in UTF-8."
        )


def _refuse_endless(axes: Mapping[str, int], label: str) -> None:
    """A name is made for every layer and expert, and here no header says how many there are."""
    if axes["layers"] > MOST_LAYERS or axes["layers"] * axes.get("experts", 1) > MOST_SKETCHED:
        told = ", ".join(f"{axes[axis]} {axis}" for axis in ("layers", "experts") if axis in axes)
        raise CheckpointError(
            f"{label}/config.json says {told}, which no model has.", remedy="fetch config.json from the model's page."
        )


@cache
def list_popular_models() -> Mapping[str, PopularModel]:
    """Popular models by name: their repository, and what of their config.json decides shapes and traits."""
    text = resources.files("xmerge.compatibility").joinpath("popular.yaml").read_text(encoding="utf-8")
    found: dict[str, PopularModel] = {}
    for name, entry in yaml.load(text, _LOADER).items():  # noqa: S506 - a safe one
        like = found[entry["as"]].config if "as" in entry else {}
        found[name] = PopularModel(repo=entry["repo"], config={**like, **entry.get("config", {})})
    return found
