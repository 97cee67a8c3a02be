"""What `xmerge ui` calls: a server that is there as long as somebody looks at its pages."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from flows.server.settings import apply_settings
from xmerge.errors import Interrupted
from xmerge.progress import Reporter
from xmerge.signals import stop_on_signals

if TYPE_CHECKING:
    from flows.server.api import Api

SECONDS_BETWEEN_LOOKS = 10.0


def show_pages(port: int, tell: Callable[[dict[str, Any]], None], reporter: Reporter) -> None:
    """Find or start a server, tell where its pages are, and keep one of ours until SIGINT or SIGTERM.

    Args:
        port: Where a new server should listen.
        tell: Called once, with the addresses and the last run.
        reporter: Who is told what takes time.

    Raises:
        PlanError: The configured server cannot be reached, or a new one does not start.
    """
    apply_settings()
    from flows.server.api import open_api
    from flows.server.leftovers import settle_dead_runs

    try:
        with stop_on_signals(), open_api(reporter, port) as api:
            api.wait()
            settle_dead_runs(reporter)
            tell({"ui": api.ui, "api": api.url, "last_run": find_last_run(api)})
            while api.is_embedded:
                time.sleep(SECONDS_BETWEEN_LOOKS)
                api.wait()
                settle_dead_runs(reporter)
    except Interrupted:
        return


def find_last_run(api: Api) -> dict[str, Any] | None:
    """The run of one of our flows that began last: its name, its state and its page."""
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.filters import FlowFilter, FlowFilterName, FlowRunFilter, FlowRunFilterStartTime
    from prefect.client.schemas.sorting import FlowRunSort

    from flows.catalogue import FLOW_NAMES

    ours = FlowFilter(name=FlowFilterName(any_=FLOW_NAMES))
    # A planned run is sorted by when it is expected to begin, and so comes before all that have begun.
    begun = FlowRunFilter(start_time=FlowRunFilterStartTime(is_null_=False))
    with get_client(sync_client=True) as client:
        runs = client.read_flow_runs(flow_filter=ours, flow_run_filter=begun, sort=FlowRunSort.START_TIME_DESC, limit=1)
    return next(
        ({"id": str(run.id), "name": run.name, "state": run.state_name, "url": api.page(str(run.id))} for run in runs),
        None,
    )
