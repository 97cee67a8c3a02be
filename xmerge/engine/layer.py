"""Merging one layer: into the store, or out of it if an earlier run has made it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

import torch

from xmerge.engine.devices import choose_device
from xmerge.engine.reading import OpenSources
from xmerge.engine.results import LayerResult, TensorResult
from xmerge.engine.rules import RuleMerger
from xmerge.engine.shard import ShardWriter
from xmerge.planning.plan import MergePlan
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
        CheckpointError: A source cannot be read, changed, or holds NaN or infinity where it is merged.
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
        combiner = RuleMerger(plan, sources, chosen)
        results: list[TensorResult] = []
        for tensor in layer.tensors:
            if tensor.is_copied:
                shard.copy(tensor.name, tensor.sources[0], sources)
                results.append(TensorResult(name=tensor.name))
            else:
                results.append(combiner.combine(tensor, shard))
        sha256, nonfinite = shard.seal()
        sources.check_unchanged()
        shard.sync()
        result = LayerResult(
            label=layer.label,
            fingerprint=layer.fingerprint,
            bytes=shard.size,
            sha256=sha256,
            tensors=tuple(
                each.model_copy(update={"nonfinite": nonfinite[each.name]}) if each.name in nonfinite else each
                for each in results
            ),
            stamps=sources.stamps,
            device=str(chosen),
            seconds=round(time.perf_counter() - started, 3),
        )
        store.commit(shard.path, result)
    return result
