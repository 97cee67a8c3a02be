"""Workers of a Dask cluster: one on this machine for a single run, or one that runs already."""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Any, TypeVar

from distributed import Client, Security
from distributed.comm import connect
from distributed.scheduler import KilledWorker
from prefect_dask import DaskTaskRunner

from tasks.workers import RESUME
from xmerge.errors import PlanError, WorkerLostError
from xmerge.interrupt import stop_run
from xmerge.runners import RunnerName
from xmerge.workers import Told, carry_out, carry_out_aside, leave_interrupts

LOCAL: dict[str, Any] = {
    "threads_per_worker": 1,
    # Others on this machine may reach the port, but not without the certificate that is made for this run.
    "host": "127.0.0.1",
    "security": True,
    # Any port: without an address it would be 8787, with a warning for the second cluster of a machine.
    "dashboard_address": "127.0.0.1:0",
    "scheduler_kwargs": {"dashboard": False},
    # Nothing is kept in a worker but a few plain values: there is nothing to watch and to spill.
    "memory_limit": 0,
    "silence_logs": logging.CRITICAL,
}
SECONDS_TO_CONNECT = 5
SECONDS_FOR_WORKERS = 30
GPU = "GPU"
"""The resource that workers with a GPU are started with: `dask worker --resources "GPU=1"`."""

Value = TypeVar("Value")
logger = logging.getLogger(__name__)


class DaskWorkers:
    """A connection to a Dask cluster, for one run."""

    def __init__(self, client: Client, name: str) -> None:
        self.name = name
        self._client, self._run = client, _new_run()

    def submit(self, work: Callable[..., Value], *arguments: Any, gpu: bool = False) -> Future[Told[Value]]:
        """Have a worker call a function; another one does, if that worker dies.

        Raises:
            WorkerLostError: The scheduler is gone.
        """
        with self._tell_loss():
            resources = {"resources": {GPU: 1}} if gpu and self._count_gpus() else {}
            executor = self._client.get_executor(pure=False, **resources)
            future: Future[Told[Value]] = executor.submit(carry_out, self._run, work, *arguments)
        return future

    def ask_all(self, work: Callable[..., Value], *arguments: Any) -> dict[str, Told[Value]]:
        """Call a function on every worker; what each has told, by its address.

        Raises:
            PlanError: There is none.
            WorkerLostError: The scheduler is gone.
        """
        try:
            self._client.wait_for_workers(1, timeout=SECONDS_FOR_WORKERS)
        except TimeoutError as error:
            raise PlanError(f"{self.name} has no workers.", remedy="start some with 'dask worker ADDRESS'.") from error
        with self._tell_loss():
            return dict(self._client.run(carry_out_aside, self._run, work, *arguments))

    def count_slots(self, device: str) -> int:
        """How many calls can be under way at once; 0 if no worker is there, or nobody who knows of any."""
        try:
            with self._tell_loss():
                gpus = self._count_gpus() if device.startswith("cuda") else 0
                return gpus or sum(self.count_calls().values())
        except WorkerLostError:
            return 0

    def count_calls(self) -> dict[str, int]:
        """How many calls that need no GPU can be under way at once at each address of `ask_all`."""
        return dict(self._client.nthreads())

    def explain(self, error: BaseException, what: str) -> WorkerLostError | None:
        """What an error of the cluster's own means; None: it is not the cluster's."""
        if not isinstance(error, KilledWorker):
            return None
        return WorkerLostError(
            f"workers die of {what}, again and again.",
            where=f"{error.last_worker.address}, the last one",
            why=f"{error.allowed_failures + 1} workers have died while they had it.",
            remedy="look at their logs; mostly it is memory: give them more, or start fewer of them on a machine.",
        )

    def stop(self) -> None:
        """End what this run has under way on the workers, at their next blocks."""
        # Another name at once: whoever shares this cluster goes on with the next recipe.
        stopped, self._run = self._run, _new_run()
        try:
            with self._tell_loss():
                self._client.run(stop_run, stopped, on_error="ignore")
        except WorkerLostError as error:
            logger.warning("%s cannot be told to stop: %s", self.name, error.why)

    @contextmanager
    def _tell_loss(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            # A client that has lost its scheduler says so by no class of its own, even by an AttributeError.
            if not isinstance(error, OSError) and self._client.status == "running":
                raise
            raise WorkerLostError(f"{self.name} does not answer any more.", why=str(error), remedy=RESUME) from error

    def _count_gpus(self) -> int:
        workers = self._client.scheduler_info(n_workers=-1)["workers"].values()
        return int(sum(worker["resources"].get(GPU, 0) for worker in workers))


@contextmanager
def open_dask(name: RunnerName, count: int) -> Iterator[DaskWorkers]:
    """Connect to a cluster, which goes on afterwards, or start one of `count` workers for as long as it is used.

    Raises:
        PlanError: Nobody answers, or not as Dask does.
    """
    if name.address:
        runner = DaskTaskRunner(address=name.address, client_kwargs={"timeout": SECONDS_TO_CONNECT})
    else:
        runner = DaskTaskRunner(cluster_kwargs=LOCAL | {"n_workers": count})
    told = f"the Dask cluster at {name.address}" if name.address else "the Dask cluster on this machine"
    with runner:
        try:
            if name.address:
                asyncio.run(asyncio.wait_for(_greet(name.address), SECONDS_TO_CONNECT))
            client = runner.client
            if not name.address:
                client.run(leave_interrupts)
        except (OSError, ValueError) as error:
            why = str(error).splitlines()
            raise PlanError(
                f"{told} does not answer as Dask does.", why=why[0] if why else None, remedy="look at its log."
            ) from error
        yield DaskWorkers(client, told)


def _new_run() -> str:
    """A name by which workers know what is to be stopped."""
    return uuid.uuid4().hex


async def _greet(address: str) -> None:
    """Shake hands with a scheduler; Dask's client waits without end for one that takes the call and says nothing."""
    comm = await connect(address, **Security().get_connection_args("client"))
    await comm.close()
