"""Which random numbers each tensor of a plan draws, for methods that draw some."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

from xmerge.architecture import ResolvedArchitecture
from xmerge.checkpoints import dtype_of
from xmerge.config import MergeConfig
from xmerge.errors import PlanError
from xmerge.methods import find_method
from xmerge.planning.plan import Draws, LayerPlan, TensorPlan


def assign_draws(
    config: MergeConfig, architecture: ResolvedArchitecture, layers: Sequence[LayerPlan]
) -> tuple[LayerPlan, ...]:
    """The layers, with what decides the random numbers of each tensor that draws some.

    Raises:
        PlanError: They are asked for as mergekit draws them, and cannot be.
    """
    tensors = {tensor.name: tensor for layer in layers for tensor in layer.tensors if any(list_drawing(tensor))}
    if config.rng == "mergekit":
        found = dict(_follow_mergekit(config, list(tensors.values())))
    else:
        labels = [model.label for model in architecture.models]
        found = {name: _identify(config.random_seed, tensor, labels) for name, tensor in tensors.items()}
    return tuple(
        layer.model_copy(
            update={
                "tensors": tuple(
                    each.model_copy(update={"draws": found[each.name]}) if each.name in found else each
                    for each in layer.tensors
                )
            }
        )
        if any(each.name in found for each in layer.tensors)
        else layer
        for layer in layers
    )


def list_drawing(tensor: TensorPlan) -> list[bool]:
    """For each source whether numbers are drawn for it."""
    method = find_method(tensor.method)
    if method.draws is None:
        return []
    shares = dict(tensor.parameters)[method.draws]
    assert isinstance(shares, tuple)
    measured = method.base == "required"
    return [share < 1.0 and not (measured and number == 0) for number, share in enumerate(shares)]


def _identify(seed: int, tensor: TensorPlan, labels: Sequence[str]) -> Draws:
    """By the models' labels; of two layers of one model that meet, by their tensors too."""
    meeting = Counter(source.model for source in tensor.sources)
    donors = []
    for source, draws in zip(tensor.sources, list_drawing(tensor), strict=True):
        label = labels[source.model]
        named = label if meeting[source.model] == 1 else f"{label} {source.segments[0].tensor}"
        donors.append(named if draws else "")
    return Draws(seed=seed, donors=tuple(donors))


def _follow_mergekit(config: MergeConfig, tensors: Sequence[TensorPlan]) -> Iterator[tuple[str, Draws]]:
    """One stream for the whole merge: tensor after tensor in the order of their names, donor after donor."""
    drawn, before = 0, ""
    for tensor in sorted(tensors, key=_name_for_mergekit):
        name = _name_for_mergekit(tensor)
        if name == before:
            raise PlanError(
                f"mergekit's random numbers cannot be drawn for {tensor.name}.",
                where=config.source.locate("rng"),
                why=f"another tensor is made of the same {name}, and which of the two mergekit draws for first follows "
                "from the order of a set.",
                remedy="leave out 'rng'.",
            )
        before = name
        dtype = dtype_of(config.dtype) if config.dtype else tensor.sources[0].segments[0].dtype
        if find_method(tensor.method).by_rows and len(tensor.shape) > 2:
            raise PlanError(
                f"mergekit's random numbers cannot be drawn for {tensor.name}, which has shape {list(tensor.shape)}.",
                where=config.source.locate("rng"),
                why="mergekit ranks the numbers of such a tensor along its second axis, not in rows.",
                remedy="leave out 'rng', or filter the tensor to a 'density' of 1.",
            )
        starts: list[int | None] = []
        for draws in list_drawing(tensor):
            starts.append(drawn if draws else None)
            drawn += tensor.elements if draws else 0
        yield tensor.name, Draws(seed=config.random_seed, starts=tuple(starts), dtype=dtype)


def _name_for_mergekit(tensor: TensorPlan) -> str:
    """What mergekit sorts by: the last, in the alphabet, of the names that the inputs have for it."""
    return max(segment.tensor for source in tensor.sources for segment in source.segments)
