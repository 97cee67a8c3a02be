"""What `xmerge serve` calls: the flows as deployments that this process carries out, one run a process."""

from __future__ import annotations

import asyncio
import contextvars
import os
import signal
import socket
import threading
import time
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx

from flows.catalogue import FLOWS
from flows.server.settings import apply_settings
from xmerge import __version__
from xmerge.errors import Interrupted, PlanError
from xmerge.progress import Reporter
from xmerge.signals import StopSignals, leave_anyway, stop_on_signals

if TYPE_CHECKING:
    from prefect.runner import Runner

    from flows.server.api import Api

SECONDS_BETWEEN_QUESTIONS = 5.0
RETRIES = "8"
"""With pauses that double: nobody waits for a run of a deployment, so it may outlast a server that is away."""


def serve_flows(port: int, limit: int, tell: Callable[[dict[str, Any]], None], reporter: Reporter) -> None:
    """Offer the flows on the configured server, or on one of this machine, until SIGINT or SIGTERM.

    Args:
        port: Where a new server should listen.
        limit: How many runs may be under way at once.
        tell: Called once, when runs can be started, with the addresses and the deployments.
        reporter: Who is told what takes time.

    Raises:
        PlanError: The configured server cannot be reached, or a new one does not start.
    """
    apply_settings(quiet=False)
    os.environ.setdefault("PREFECT_CLIENT_MAX_RETRIES", RETRIES)
    _let_children_find_flows()
    from flows.server.api import open_api
    from flows.server.children import end_runs
    from flows.server.leftovers import settle_dead_runs

    try:
        with stop_on_signals() as signals, open_api(reporter, port) as api:
            api.wait()
            settle_dead_runs(reporter)
            _end_zombies()
            runner, names = _make_runner(limit)
            tell({"ui": api.ui, "api": api.url, "deployments": names})
            try:
                _carry_out(runner, limit, api, signals, reporter)
            finally:
                end_runs(reporter)
    except Interrupted:
        return


def _let_children_find_flows() -> None:
    """Each run is a process of its own, which starts in this one's folder and imports the flows by name."""
    folder = str(Path(__file__).parents[1])
    os.environ["PYTHONPATH"] = os.pathsep.join([folder, *filter(None, [os.environ.get("PYTHONPATH")])])


def _end_zombies() -> None:
    from prefect.client.orchestration import get_client

    from flows.server.zombies import end_zombies

    with get_client(sync_client=True) as client:
        end_zombies(client)


def _make_runner(limit: int) -> tuple[Runner, list[str]]:
    """A runner that has registered every flow, and the deployments' names.

    The machine is in the name, because a server may have several, and workers beside them.
    """
    from prefect import Flow
    from prefect.deployments.runner import RunnerDeployment
    from prefect.runner import Runner
    from prefect.types.entrypoint import EntrypointType

    runner = Runner(name=f"xmerge serve {socket.gethostname()}", limit=limit, pause_on_shutdown=False)
    names = []
    for name, place in FLOWS.items():
        module, _, function = place.partition(":")
        served: Flow[..., Any] = getattr(import_module(module), function)
        # A deployment, not the flow itself: a flow would be pickled into the run's process, and not whole.
        deployment = served.to_deployment(
            name=f"{name}@{socket.gethostname()}",
            tags=["xmerge"],
            version=__version__,
            description=(served.description or "").partition("\n")[0],
            entrypoint_type=EntrypointType.MODULE_PATH,
        )
        # Awaitable only where an event loop runs.
        assert isinstance(deployment, RunnerDeployment)
        runner.add_deployment(deployment)
        names.append(f"{served.name}/{name}@{socket.gethostname()}")
    return runner, names


def _carry_out(runner: Runner, limit: int, api: Api, signals: StopSignals, reporter: Reporter) -> None:
    """Let the runner work, and another one after each absence of the server, of which it gives up within a minute."""
    while (ended := _run_to_its_end(runner, signals)) is not None:
        if not _tells_of_absence(ended):
            raise ended
        reporter.note("the Prefect server is away; waiting for it ...")
        _wait_until_it_is_back(api)
        runner, _ = _make_runner(limit)
        reporter.note("the Prefect server is back.")


def _run_to_its_end(runner: Runner, signals: StopSignals) -> BaseException | None:
    """What the runner has ended with, if not with a signal; in a thread, so that the main one is free to hear those."""
    signals.interrupts = False
    loop, ended = asyncio.new_event_loop(), list[BaseException]()

    def work() -> None:
        # What this thread starts inherits it: Ctrl-C of a terminal goes to the runs too, and is left to this process.
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
        try:
            loop.run_until_complete(runner.start())
        except BaseException as error:  # noqa: BLE001 - it is looked at in the main thread
            ended.append(error)

    thread = threading.Thread(target=contextvars.copy_context().run, args=(work,), name="runner", daemon=True)
    thread.start()
    while thread.is_alive() and not signals.came:
        thread.join(0.2)
    signals.interrupts = True
    if signals.came:
        # It stands still from now on: it would go on to start runs, and call crashed those that are ended. Its own end
        # asks the server about each run before it stops that one, and then waits for it before it stops the next.
        loop.call_soon_threadsafe(threading.Event().wait)
        leave_anyway(0)
        return None
    return ended[0] if ended else None


def _tells_of_absence(error: BaseException) -> bool:
    """Whether a runner ended because the API did not answer: Prefect says it by a bare RuntimeError, or in a group."""
    if isinstance(error, BaseExceptionGroup):
        return any(_tells_of_absence(each) for each in error.exceptions)
    return isinstance(error, httpx.HTTPError) or "exceeded error threshold" in str(error)


def _wait_until_it_is_back(api: Api) -> None:
    """Ask until the configured server answers; one of ours that is gone does not come back.

    Raises:
        PlanError: It was ours.
    """
    while True:
        try:
            return api.wait()
        except PlanError:
            if api.is_embedded:
                raise
            time.sleep(SECONDS_BETWEEN_QUESTIONS)
