"""The step `merge_layer`: the only one that reads weights, and the only one whose result is kept."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from prefect import task
from prefect.cache_policies import CacheKeyFnPolicy
from prefect.logging import get_run_logger

from tasks.caching import key_of_call
from tasks.retrying import is_worth_retrying
from tasks.stopping import cancelled_when_stopped
from tasks.workers import call_on, current_cluster
from xmerge.reservation import estimate_entry, release_space
from xmerge.store import Store
from xmerge.units import UnitOfWork, merge_unit, read_plan

if TYPE_CHECKING:
    from xmerge.engine import LayerResult


@task(
    task_run_name="merge {label}",
    cache_policy=CacheKeyFnPolicy(cache_key_fn=key_of_call),
    persist_result=True,
    result_serializer="json",
    retries=1,
    retry_delay_seconds=1,
    retry_condition_fn=is_worth_retrying,
)
@cancelled_when_stopped
def merge_layer(
    *,
    plan_file: str,
    fingerprint: str,
    layers: list[int],
    unit: str,
    label: str,
    folders: list[str],
    store: str,
    device: str,
) -> list[dict[str, Any]]:
    """Merge one layer, or a few small ones, into the store; what was made, in plain values."""
    work = UnitOfWork(
        plan_file=plan_file,
        fingerprint=fingerprint,
        layers=tuple(layers),
        folders=tuple(folders),
        store=store,
        device=device,
    )
    made, where = _merge(work, label)
    for result in made:
        what = "reused" if result.reused else "merged"
        get_run_logger().info("%s: %s, %d bytes, %.2f s%s", result.label, what, result.bytes, result.seconds, where)
    return [result.model_dump(mode="json") for result in made]


def _merge(work: UnitOfWork, label: str) -> tuple[list[LayerResult], str]:
    """Merge a unit here or on a worker; what was made, and where if not here."""
    cluster = current_cluster()
    if cluster is None:
        return merge_unit(work), ""
    _give_space(work)
    told = call_on(cluster, label, merge_unit, work, gpu=work.device.startswith("cuda"))
    return told.take(), f", on {told.worker}"


def _give_space(work: UnitOfWork) -> None:
    """Give back the space that this process holds for what another is about to write."""
    plan, store = read_plan(work.plan_file, work.fingerprint), Store(Path(work.store))
    missing = [plan.layers[index] for index in work.layers]
    missing = [layer for layer in missing if not store.shard_path(layer.fingerprint).exists()]
    release_space(store.path, sum(map(estimate_entry, missing)))
