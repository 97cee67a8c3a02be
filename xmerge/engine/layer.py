"""Merging one layer: into the store, or out of it if an earlier run has made it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

import torch

from xmerge.engine.devices import choose_device
from xmerge.engine.reading import OpenSources
from xmerge.engine.results import LayerResult, TensorResult
from xmerge.engine.retreat import PatientMerger
from xmerge.engine.shard import ShardWriter
from xmerge.errors import NonfiniteInputError
from xmerge.planning.plan import LayerPlan, MergePlan, TensorPlan
from xmerge.store import Store


def merge_layer(
    plan: MergePlan, index: int, folders: Sequence[Path], store: Store, device: str = "auto"
) -> LayerResult:
    """Make the shard of one layer, unless the store has it whole.

    Args:
        plan: The plan.
        index: The layer's place in `plan.layers`.
        folders: For each model of the plan, where its shards lie.
        store: Where the shard goes.
        device: `auto`, `cpu`, `cuda` or `cuda:N`.

    Raises:
        NonfiniteInputError: A source holds NaN or infinity where it is merged, and the base's is not to be kept.
        CheckpointError: A source cannot be read, or changed.
        InvalidMergeError: The arithmetic overflows the output's dtype.
        StorageError: The shard cannot be written.
        Interrupted: A stop was requested.
    """
    layer = plan.layers[index]
    found = store.find(plan, index, folders)
    if found is not None:
        return found
    # Two threads that spin for each other are slower than one; workers run layers side by side instead.
    torch.set_num_threads(1)
    started = time.perf_counter()
    chosen = choose_device(device)
    with OpenSources(plan, layer, folders) as sources, ShardWriter(store.reserve(layer), layer) as shard:
        merger = PatientMerger(plan, sources, chosen)
        results = [_fill(tensor, shard, sources, merger) for tensor in layer.tensors]
        sha256, results = _seal(plan, layer, results, shard, sources, merger)
        sources.check_unchanged()
        shard.sync()
        result = LayerResult(
            label=layer.label,
            fingerprint=layer.fingerprint,
            bytes=shard.size,
            sha256=sha256,
            tensors=tuple(results),
            stamps=sources.stamps,
            device=str(merger.device),
            notes=tuple(merger.notes),
            seconds=round(time.perf_counter() - started, 3),
        )
        store.commit(shard.path, result)
    return result


def _fill(tensor: TensorPlan, shard: ShardWriter, sources: OpenSources, merger: PatientMerger) -> TensorResult:
    """Write a tensor, or the base's where the plan says so of sources that hold NaN or infinity."""
    try:
        return _write(tensor, shard, sources, merger)
    except NonfiniteInputError as error:
        if tensor.fallback is None:
            raise
        return _keep_base(tensor, error.what.removesuffix("."), shard, sources, merger)


def _keep_base(
    tensor: TensorPlan, reason: str, shard: ShardWriter, sources: OpenSources, merger: PatientMerger
) -> TensorResult:
    """Write the base's tensor over whatever stands in a tensor's place."""
    assert tensor.fallback is not None
    shard.restart(tensor.name)
    return _write(tensor.fallback, shard, sources, merger).model_copy(update={"replaced": reason})


def _seal(
    plan: MergePlan,
    layer: LayerPlan,
    results: list[TensorResult],
    shard: ShardWriter,
    sources: OpenSources,
    merger: PatientMerger,
) -> tuple[str, list[TensorResult]]:
    """Read the shard back: its SHA-256, and the results with what is NaN or infinite in them.

    What was copied is first looked at here, and read back again if the base's tensor has to take its place.
    """
    sha256, nonfinite = shard.seal()
    while tainted := [place for place, each in enumerate(layer.tensors) if each.fallback and each.name in nonfinite]:
        for place in tainted:
            tensor = layer.tensors[place]
            reason = _blame(plan, tensor, results[place], nonfinite[tensor.name])
            results[place] = _keep_base(tensor, reason, shard, sources, merger)
        sha256, nonfinite = shard.seal()
    return sha256, [each.model_copy(update={"nonfinite": nonfinite.get(each.name, 0)}) for each in results]


def _blame(plan: MergePlan, tensor: TensorPlan, made: TensorResult, count: int) -> str:
    """Which source has brought NaN or infinity into a tensor.

    Raises:
        NonfiniteInputError: It is the base, whose tensor was to be the way out.
    """
    assert tensor.fallback is not None
    source = (tensor.fallback if made.replaced else tensor).sources[0]
    told = f"{plan.models[source.model].label} holds {count} NaN or infinity in {source.segments[0].tensor}"
    if made.replaced:
        raise NonfiniteInputError(
            f"{told}.", where=f"for {tensor.name} of the output", why=f"{made.replaced}.", remedy="repair the models."
        )
    return told


def _write(tensor: TensorPlan, shard: ShardWriter, sources: OpenSources, merger: PatientMerger) -> TensorResult:
    if not tensor.is_copied:
        return merger.combine(tensor, shard)
    shard.copy(tensor.name, tensor.sources[0], sources)
    return TensorResult(name=tensor.name)
