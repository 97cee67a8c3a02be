"""A Prefect server on SQLite that has been prepared, and a worker of its pool: each a process of its own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from flows.server.settings import apply_settings

# Before Prefect is imported, which is when it reads them.
apply_settings()

from prefect.settings import PREFECT_API_URL, PREFECT_HOME  # noqa: E402

from tests.deployments.preparing import run_prepare  # noqa: E402
from tests.servers.reporting import reporting_to  # noqa: E402
from tests.servers.server import Server  # noqa: E402
from tests.servers.worker import Worker  # noqa: E402


@pytest.fixture(scope="module")
def server(tmp_path_factory) -> Iterator[Server]:
    """A server with nothing in it, which this process talks to."""
    home = Path(tmp_path_factory.mktemp("server"))
    quick = {"PREFECT_SERVER_EVENTS_PROACTIVE_GRANULARITY": "PT1S"}
    server = Server(home, f"sqlite+aiosqlite:///{home}/prefect.db", quick)
    try:
        server.start()
        with reporting_to({PREFECT_API_URL: server.url, PREFECT_HOME: home}):
            yield server
    finally:
        server.kill()


@pytest.fixture(scope="module")
def prepared(server) -> list[str]:
    """What the command says when it prepares the server for the first time."""
    return run_prepare(server.url, "--pool", "process", "--pool", "docker", "--pool", "kubernetes")


@pytest.fixture(scope="module")
def worker(server, prepared, tmp_path_factory) -> Iterator[Path]:
    """The folder in which the relative paths of a worker's runs begin."""
    folder = Path(tmp_path_factory.mktemp("worker"))
    worker = Worker(folder, server.url, "xmerge", {"XMERGE_FOLDER": str(folder)})
    worker.start()
    try:
        yield folder
    finally:
        worker.kill()
