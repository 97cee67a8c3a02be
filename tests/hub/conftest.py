"""A server on 127.0.0.1, and the client of this process connected to it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.hub.samples import FILES, MODEL, UNWANTED, WEIGHTS
from tests.hub.server import HubServer, connected, running


@pytest.fixture(scope="module")
def started() -> Iterator[HubServer]:
    """One server for all tests; each gets it empty."""
    with running() as server:
        yield server


@pytest.fixture
def server(started: HubServer, tmp_path: Path) -> Iterator[HubServer]:
    """The server, empty, with the client of this process connected to it."""
    for record in (
        started.repositories,
        started.storage,
        started.served,
        started.faults,
        started.slept,
        started.ignored,
        started.xet_hashes,
    ):
        record.clear()
    started.xet_store = None
    with connected(started, tmp_path / "home"):
        yield started


@pytest.fixture
def commit(server: HubServer) -> str:
    """The commit of a repository with two shards, all kinds of metadata, and files that nobody wants."""
    return server.add(MODEL, FILES | WEIGHTS | UNWANTED)
