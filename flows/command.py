"""What `xmerge merge` calls: one merge as a flow, against the configured Prefect API or an embedded server."""

from __future__ import annotations

import contextvars
import logging
import math
import threading
import time
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flows.server.settings import apply_settings
from xmerge.config import load_stages
from xmerge.errors import Interrupted, XmergeError
from xmerge.interrupt import interruption
from xmerge.progress import Reporter
from xmerge.signals import StopSignals, leave_anyway, stop_on_signals

if TYPE_CHECKING:
    from flows.server.api import Api
    from xmerge.planning.downloads import FetchMode

SECONDS_TO_STOP = 1.0
SECONDS_TO_REPORT = 20.0
SECONDS_TO_REPORT_IF_STOPPED = 0.5
SECONDS_FOR_HISTORY = 15.0
SECONDS_FOR_HISTORY_IF_STOPPED = 0.5


def run_merge(
    config_path: Path,
    out: Path,
    *,
    device: str = "auto",
    workers: int = 2,
    store: Path | None = None,
    seed: int | None = None,
    trial: bool = True,
    fetch: FetchMode = "auto",
    task_runner: str = "thread",
    reporter: Reporter,
) -> dict[str, Any]:
    """Carry out one merge as a Prefect flow; what there is to say about it, in a few plain values.

    Args:
        config_path: The configuration.
        out: The folder to make.
        device: `auto`, `cpu`, `cuda` or `cuda:N`.
        workers: How many layers are merged at the same time.
        store: A folder that keeps merged layers for other merges.
        seed: Takes the place of the configuration's `random_seed`.
        trial: Load the output with transformers before it appears.
        fetch: What comes of a shard on the Hub: the whole, or the parts that are read.
        task_runner: Who merges layers: `thread`, `dask` or `ray`, the latter two with `:ADDRESS` after them.
        reporter: Who is told how far it has come.

    Raises:
        XmergeError: The merge cannot be carried out; exactly as the library raises it.
        Interrupted: SIGINT or SIGTERM came; the same call resumes.
    """
    apply_settings()
    load_stages(config_path)
    parameters = {
        "recipe": str(config_path.absolute()),
        "out": str(out.absolute()),
        "device": device,
        "workers": workers,
        "store": str(store.absolute()) if store else "",
        "seed": seed,
        "trial": trial,
        "fetch": fetch,
        "task_runner": task_runner,
    }
    return run_flow("flows.merge", "merge_models", parameters, reporter)


def run_flow(module: str, name: str, parameters: dict[str, Any], reporter: Reporter) -> dict[str, Any]:
    """Carry out a flow against the configured API or an embedded one; what has come of it, in a few plain values.

    Args:
        module: Where the flow is; imported late, since it imports Prefect.
        name: The flow.
        parameters: What it is called with.
        reporter: Who is told how far it has come.

    Raises:
        XmergeError: What the flow ended with.
    """
    with stop_on_signals() as signals:
        from flows.server.api import open_api
        from flows.server.leftovers import settle_dead_runs

        with open_api(reporter) as api:
            if api.is_embedded:
                _import_while_the_server_starts()
            api.wait()
            if api.is_embedded:
                settle_dead_runs(reporter)
            return _FlowCall((module, name), parameters, api, reporter, signals).carry_out()


def _import_while_the_server_starts() -> None:
    """Import what the flow needs, torch above all, in time that is waited anyway."""
    for module in ("flows.merge", "xmerge.engine", "xmerge.output"):
        import_module(module)


class _FlowCall:
    """One call of the flow, in a thread of its own, so that the main thread is free to hear signals."""

    def __init__(
        self,
        flow: tuple[str, str],
        parameters: dict[str, Any],
        api: Api,
        reporter: Reporter,
        signals: StopSignals,
    ) -> None:
        from flows.reporting import RunWatch

        self._flow = flow
        self._parameters, self._api, self._reporter, self._signals = parameters, api, reporter, signals
        self._watch = RunWatch(reporter)
        self._raised: BaseException | None = None

    def carry_out(self) -> dict[str, Any]:
        """Call the flow, wait for it, and let its history be recorded."""
        # Else Prefect prints each log line that a server which is gone did not take.
        logging.raiseExceptions = False
        # Prefect's settings and this run's reporter live in the context, which a new thread does not inherit.
        thread = threading.Thread(target=contextvars.copy_context().run, args=(self._call,), name="flow", daemon=True)
        self._signals.interrupts = False
        thread.start()
        self._wait_for(thread)
        reported = not thread.is_alive() and (self._raised is None or self._raised is self._watch.failure)
        recorded = reported and self._record()
        error = self._find_error()
        if isinstance(error, Interrupted) and thread.is_alive():
            self._report_interruption()
        if self._signals.came or not recorded:
            leave_anyway(_exit_code(error, self._watch.outcome))
        if error is not None:
            raise error
        return self._conclude(reported=reported, recorded=recorded)

    def _call(self) -> None:
        from prefect.exceptions import CancelledRun, FailedRun

        from flows.reporting import watch_run

        module, name = self._flow
        watch_run(self._watch)
        try:
            getattr(import_module(module), name)(**self._parameters)
        except (CancelledRun, FailedRun) as error:
            # What the flow itself has called a failure, and reported.
            self._raised = self._watch.failure or (None if self._watch.outcome else error)
        except BaseException as error:  # noqa: BLE001 - it is raised again, in the main thread
            self._raised = error

    def _wait_for(self, thread: threading.Thread) -> None:
        """Return when the flow has ended, or soon after a signal, or when it can no longer report that it is done."""
        stop_at: float | None = None
        report_at: float | None = None
        while thread.is_alive():
            thread.join(0.05)
            if stop_at is None and self._signals.came:
                stop_at = time.monotonic() + SECONDS_TO_STOP
            if report_at is None and (self._watch.outcome or self._watch.failure):
                patience = SECONDS_TO_REPORT_IF_STOPPED if self._signals.came else SECONDS_TO_REPORT
                report_at = time.monotonic() + patience
            if time.monotonic() > min(stop_at or math.inf, report_at or math.inf):
                return

    def _record(self) -> bool:
        from flows.server.history import send_what_is_left, wait_for_history

        patience = SECONDS_FOR_HISTORY_IF_STOPPED if self._signals.came else SECONDS_FOR_HISTORY
        sent = send_what_is_left(patience)
        if not self._api.is_embedded:
            return sent
        return sent and all(wait_for_history(run, tasks, patience) for run, tasks in self._watch.list_runs())

    def _report_interruption(self) -> None:
        """Say which flows were interrupted: a run of which nobody says so is called crashed by the next command."""
        from flows.server.history import report_interruption

        for run in self._watch.list_unfinished():
            report_interruption(run)

    def _find_error(self) -> BaseException | None:
        """What to raise: nothing if the output is in place, whatever happened to the reporting after it."""
        if self._watch.outcome is not None:
            return None
        if self._watch.failure is not None:
            return self._watch.failure
        return interruption() if self._signals.came else self._raised

    def _conclude(self, *, reported: bool, recorded: bool) -> dict[str, Any]:
        assert self._watch.outcome is not None
        if not reported:
            self._reporter.note("the merge is done; Prefect's API could not be told so.")
        elif not recorded:
            self._reporter.note("the merge is done; the history in Prefect is incomplete.")
        run = {
            "id": self._watch.flow_run_id,
            "name": self._watch.flow_run_name,
            "recorded": reported and recorded,
            # The pages of an embedded server go with it.
            "url": None if self._api.is_embedded else self._api.page(str(self._watch.flow_run_id)),
        }
        return {**self._watch.outcome, "flow_run": run}


def _exit_code(error: BaseException | None, outcome: dict[str, Any] | None) -> int:
    if error is None:
        return int((outcome or {}).get("exit_code", 0))
    return error.exit_code if isinstance(error, XmergeError) else 1
