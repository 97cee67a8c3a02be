"""Workers of a Ray cluster: one on this machine for a single run, or one that runs already."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from typing import Any, TypeVar

# Read when Ray is imported: it is not to tell anybody that it is used, unless the user says so.
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

import grpc
import ray
from prefect_ray import RayTaskRunner
from ray.exceptions import GetTimeoutError, NodeDiedError, OutOfMemoryError, RayError, WorkerCrashedError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from xmerge.errors import PlanError, WorkerLostError
from xmerge.runners import RunnerName
from xmerge.workers import Told, carry_out, carry_out_until_interrupted

LOCAL: dict[str, Any] = {
    # A new one, whatever else runs on this machine; for this machine alone.
    "address": "local",
    "_node_ip_address": "127.0.0.1",
    "include_dashboard": False,
    # The smallest that Ray takes: nothing but a few plain values goes through it.
    "object_store_memory": 80 * 2**20,
}
QUIET: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
DEATHS_ALLOWED = 3
SECONDS_TO_CONNECT = 5.0
SECONDS_TO_ANSWER = 60.0

Value = TypeVar("Value")


class RayWorkers:
    """A connection to a Ray cluster, for one run."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._under_way = dict[Future[Any], Any]()

    def submit(self, work: Callable[..., Value], *arguments: Any, gpu: bool = False) -> Future[Told[Value]]:
        """Have a worker call a function; another one does, if that worker dies.

        Raises:
            PlanError: It needs a GPU, and the cluster has none.
        """
        if gpu and not self.count_slots("cuda"):
            raise PlanError(f"{self.name} has no GPU.", remedy="use --device cpu.")
        call = ray.remote(num_cpus=1, num_gpus=int(gpu), max_retries=DEATHS_ALLOWED)(carry_out_until_interrupted)
        reference = call.options(name=work.__name__).remote("", work, *arguments)
        future: Future[Told[Value]] = reference.future()
        self._under_way[future] = reference
        future.add_done_callback(lambda ended: self._under_way.pop(ended, None))
        return future

    def ask_all(self, work: Callable[..., Value], *arguments: Any) -> dict[str, Told[Value]]:
        """Call a function on every machine; what each has told, by its address.

        Raises:
            PlanError: One does not answer.
        """
        asked = {
            node["NodeID"]: ray.remote(num_cpus=0)(carry_out)
            .options(scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False))
            .remote("", work, *arguments)
            for node in ray.nodes()
            if node["Alive"]
        }
        try:
            return dict(zip(asked, ray.get(list(asked.values()), timeout=SECONDS_TO_ANSWER), strict=True))
        except (GetTimeoutError, WorkerCrashedError, NodeDiedError) as error:
            raise PlanError(f"a machine of {self.name} does not answer.", why=type(error).__name__) from error

    def count_slots(self, device: str) -> int:
        """How many calls can be under way at once; 0 if no worker is there."""
        return int(ray.cluster_resources().get("GPU" if device.startswith("cuda") else "CPU", 0))

    def count_calls(self) -> dict[str, int]:
        """How many calls that need no GPU can be under way at once at each address of `ask_all`."""
        return {node["NodeID"]: int(node["Resources"].get("CPU", 0)) for node in ray.nodes() if node["Alive"]}

    def explain(self, error: BaseException, what: str) -> WorkerLostError | None:
        """What an error of the cluster's own means; None: it is not the cluster's."""
        if not isinstance(error, (WorkerCrashedError, NodeDiedError, OutOfMemoryError)):
            return None
        return WorkerLostError(
            f"workers die of {what}, again and again.",
            why=f"{DEATHS_ALLOWED + 1} workers have died while they had it ({type(error).__name__}).",
            remedy="look at their logs; mostly it is memory: give them more, or start fewer of them on a machine.",
        )

    def stop(self) -> None:
        """End what this run has under way on the workers, as Ctrl-C would."""
        for reference in list(self._under_way.values()):
            with suppress(RayError):
                ray.cancel(reference)


@contextmanager
def open_ray(name: RunnerName, count: int) -> Iterator[RayWorkers]:
    """Connect to a cluster, which goes on afterwards, or start one of `count` workers for as long as it is used.

    Raises:
        PlanError: Nobody answers, or not as Ray does; or this process is in a cluster already.
    """
    if name.address and ray.is_initialized():
        # Prefect's task runner would take the one that is there, whatever the address says.
        raise PlanError(
            f"this process is in a Ray cluster already, so it cannot go to the one at {name.address}.",
            remedy="say 'ray' for the one that it is in, or call ray.shutdown() before.",
        )
    told = f"the Ray cluster at {name.address}" if name.address else "the Ray cluster on this machine"
    settings = QUIET | ({"address": name.address} if name.address else LOCAL | {"num_cpus": count})
    try:
        if name.endpoint and "RAY_USE_TLS" not in os.environ:
            _greet(*name.endpoint)
        runner = RayTaskRunner(init_kwargs=settings).__enter__()
    except (grpc.FutureTimeoutError, ConnectionError, RuntimeError, ValueError) as error:
        why = str(error).splitlines()
        raise PlanError(
            f"{told} does not answer as Ray does.", why=why[0] if why else None, remedy="look at its log."
        ) from error
    try:
        yield RayWorkers(told)
    finally:
        runner.__exit__(None, None, None)


def _greet(host: str, port: int) -> None:
    """Open a channel; Ray asks for minutes where somebody takes the call and says nothing."""
    with grpc.insecure_channel(f"{host}:{port}", options=[("grpc.enable_http_proxy", 0)]) as channel:
        grpc.channel_ready_future(channel).result(SECONDS_TO_CONNECT)
