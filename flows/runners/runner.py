"""Where the layers of a run are merged: in threads here, or by a cluster that starts when the first layer needs it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from contextvars import ContextVar
from importlib import import_module

from tasks.workers import Cluster
from xmerge.runners import RunnerName, check_runner, parse_runner

OPENERS = {"dask": ("flows.runners.dask", "open_dask"), "ray": ("flows.runners.ray", "open_ray")}


class Runner:
    """A task runner of a run, and of the runs that it calls."""

    def __init__(self, name: RunnerName) -> None:
        self.name = name
        self._cluster: Cluster | None = None
        self._opened = ExitStack()

    def start(self, count: int) -> Cluster | None:
        """The cluster, which is started with so many workers if it is not there yet; None: layers are merged here.

        Raises:
            PlanError: It cannot be started or reached.
        """
        if self.name.is_cluster and self._cluster is None:
            module, opener = OPENERS[self.name.kind]
            opened: Callable[[RunnerName, int], AbstractContextManager[Cluster]] = getattr(
                import_module(module), opener
            )
            self._cluster = self._opened.enter_context(opened(self.name, count))
        return self._cluster

    def close(self) -> None:
        """End the cluster that was started; leave the one that was there."""
        self._opened.close()


_runner: ContextVar[Runner | None] = ContextVar("xmerge_runner", default=None)


@contextmanager
def open_runner(text: str) -> Iterator[Runner]:
    """The task runner of this name: that of the flow that called this one, or a new one.

    Raises:
        ConfigError: There is none of this name.
        PlanError: It cannot be had.
    """
    name, outer = parse_runner(text), _runner.get()
    if outer is not None and outer.name == name:
        yield outer
        return
    check_runner(name)
    runner = Runner(name)
    token = _runner.set(runner)
    try:
        yield runner
    finally:
        _runner.reset(token)
        runner.close()
