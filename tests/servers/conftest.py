"""What a team runs: a Prefect server on PostgreSQL and a worker of a process work pool, each a process of its own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from uuid import UUID

import pytest

from flows.server.settings import apply_settings

# Before Prefect is imported, which is when it reads them.
apply_settings()

from prefect.settings import PREFECT_API_URL, PREFECT_HOME  # noqa: E402

from deployments.prepare import POOLS  # noqa: E402
from tests.deployments.preparing import run_prepare  # noqa: E402
from tests.flows.tiny import Bench, digest  # noqa: E402
from tests.servers.postgres import MISSING, find_programs, running_postgres  # noqa: E402
from tests.servers.reporting import reporting_to  # noqa: E402
from tests.servers.runs import UNHURRIED, deploy  # noqa: E402
from tests.servers.server import Server  # noqa: E402
from tests.servers.worker import Worker  # noqa: E402
from xmerge.config import parse_config  # noqa: E402
from xmerge.run import merge  # noqa: E402

SERVER_SETTINGS = {
    # How often it looks at new schedules, at a run that waits for a slot, and for a heartbeat that stayed away.
    "PREFECT_SERVER_SERVICES_SCHEDULER_RECENT_DEPLOYMENTS_LOOP_SECONDS": "1",
    "PREFECT_SERVER_DEPLOYMENTS_CONCURRENCY_SLOT_WAIT_SECONDS": "1",
    "PREFECT_SERVER_EVENTS_PROACTIVE_GRANULARITY": "PT1S",
}


@pytest.fixture(scope="session")
def database() -> Iterator[str]:
    """The address of an empty database on PostgreSQL."""
    programs = find_programs()
    if programs is None:
        pytest.skip(MISSING)
    with running_postgres(programs) as url:
        yield url


@pytest.fixture(scope="session")
def server(database, tmp_path_factory) -> Iterator[Server]:
    """A server on PostgreSQL, prepared; a test that kills it starts it again."""
    server = Server(Path(tmp_path_factory.mktemp("server")), database, SERVER_SETTINGS)
    try:
        server.start()
        run_prepare(server.url)
        yield server
    finally:
        server.kill()


@pytest.fixture(autouse=True)
def api(server) -> Iterator[None]:
    """Let this process talk to the server for one test: those of other folders have servers of their own."""
    with reporting_to({PREFECT_API_URL: server.url, PREFECT_HOME: server.log.parent}):
        yield


@pytest.fixture(scope="session")
def worker(server, tmp_path_factory) -> Iterator[Worker]:
    """A worker of the pool; a test that kills it starts it again."""
    worker = Worker(Path(tmp_path_factory.mktemp("worker")), server.url, POOLS["process"].name)
    worker.start()
    try:
        yield worker
    finally:
        worker.kill()


@pytest.fixture
def unhurried(api) -> UUID:
    """A deployment of the flow, with layers that take their time."""
    return deploy(UNHURRIED, "unhurried", POOLS["process"].name)


@pytest.fixture(scope="session")
def wanted(models, tmp_path_factory) -> str:
    """The digest of what the plain loop makes of the bench's recipe."""
    place = Path(tmp_path_factory.mktemp("wanted"))
    bench = Bench(models, place)
    merge(parse_config(bench.recipe(), "the recipe"), bench.out, trial=False)
    return digest(bench.out)
