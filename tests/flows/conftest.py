"""One Prefect server for all tests of the flow: the embedded one itself, with a home of its own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from flows.server.settings import apply_settings

# Before Prefect is imported, which is when it reads them.
apply_settings()

from prefect.settings import (  # noqa: E402
    PREFECT_API_DATABASE_CONNECTION_URL,
    PREFECT_API_URL,
    PREFECT_FLOWS_HEARTBEAT_FREQUENCY,
    PREFECT_HOME,
    PREFECT_LOCAL_STORAGE_PATH,
    temporary_settings,
)

from flows.server.history import send_what_is_left  # noqa: E402
from flows.server.shared import EmbeddedServer  # noqa: E402
from tests.servers.reporting import reporting_to  # noqa: E402


@pytest.fixture(scope="session")
def prefect_home(tmp_path_factory) -> Path:
    """Where Prefect keeps what it keeps."""
    return Path(tmp_path_factory.mktemp("prefect"))


@pytest.fixture(scope="session")
def home_settings(prefect_home) -> dict[Any, Any]:
    """Where the server of these tests keeps what it keeps."""
    return {
        PREFECT_HOME: prefect_home,
        PREFECT_LOCAL_STORAGE_PATH: prefect_home / "storage",
        PREFECT_API_DATABASE_CONNECTION_URL: f"sqlite+aiosqlite:///{prefect_home}/prefect.db",
    }


@pytest.fixture(scope="session")
def server(home_settings) -> Iterator[EmbeddedServer]:
    """A running server."""
    with temporary_settings(updates=home_settings):
        server = EmbeddedServer()
    try:
        server.wait()
        yield server
    finally:
        with temporary_settings(updates={PREFECT_API_URL: server.api_url}):
            send_what_is_left(patience=5)
        server.stop()


@pytest.fixture
def api_url(server, home_settings) -> Iterator[str]:
    """Its address, to which the flows of one test report: tests of other folders have servers of their own."""
    reported = {PREFECT_API_URL: server.api_url, PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None}
    with reporting_to(home_settings | reported):
        yield server.api_url
