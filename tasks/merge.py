"""The step `merge_layer`: the only one that reads weights, and the only one whose result is kept."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from prefect import task
from prefect.cache_policies import CacheKeyFnPolicy
from prefect.logging import get_run_logger

from tasks.caching import key_of_call
from tasks.plans import read_plan
from tasks.retrying import is_worth_retrying
from xmerge.store import Store


@task(
    task_run_name="merge {label}",
    cache_policy=CacheKeyFnPolicy(cache_key_fn=key_of_call),
    persist_result=True,
    result_serializer="json",
    retries=1,
    retry_delay_seconds=1,
    retry_condition_fn=is_worth_retrying,
)
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
    # Here, because it imports torch, and everything that lists or deploys the flow imports this module.
    from xmerge import engine

    plan, places, made = read_plan(plan_file, fingerprint), [Path(folder) for folder in folders], []
    for index in layers:
        result = engine.merge_layer(plan, index, places, Store(Path(store)), device)
        what = "reused" if result.reused else "merged"
        get_run_logger().info("%s: %s, %d bytes, %.2f s", result.label, what, result.bytes, result.seconds)
        made.append(result.model_dump(mode="json"))
    return made
