"""The step `check_storage`: every worker of a cluster sees what the flow sees, before any weight is read."""

from __future__ import annotations

from pathlib import Path

from prefect import task
from prefect.cache_policies import NO_CACHE
from prefect.logging import get_run_logger

from tasks.workers import Cluster
from xmerge import shared_storage
from xmerge.planning import MergePlan
from xmerge.units import UnitOfWork


# No retry: what is not mounted will not be.
@task(cache_policy=NO_CACHE, persist_result=False)
def check_storage(plan: MergePlan, unit: UnitOfWork, folders: list[Path], cluster: Cluster) -> list[str]:
    """Ask every worker for what the flow has left in the folders of a merge; the workers that see it."""
    with shared_storage.ask(plan, unit, folders) as question:
        told = cluster.ask_all(shared_storage.answer, question)
        answers = {address: each.take() for address, each in told.items()}
        names = {each.worker: answers[address].name for address, each in told.items()}
        shared_storage.check_answers(question, names)
    shared_storage.check_memory(plan, answers, cluster.count_calls())
    for worker in sorted(names):
        get_run_logger().info("%s sees the storage", worker)
    return sorted(names)
