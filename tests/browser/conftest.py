"""A browser, and what it looks at: a Prefect server with its pages, a worker, and two models of different families."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from uuid import UUID

import pytest

from flows.server.settings import apply_settings

# Before Prefect is imported, which is when it reads them.
apply_settings()

from playwright.sync_api import Browser, Page, sync_playwright  # noqa: E402
from prefect.client.orchestration import get_client  # noqa: E402
from prefect.client.schemas.actions import WorkPoolCreate  # noqa: E402
from prefect.settings import PREFECT_API_URL, PREFECT_HOME, temporary_settings  # noqa: E402

from flows.catalogue import FLOWS  # noqa: E402
from tests.browser.models import new_folder, write_models  # noqa: E402
from tests.browser.pages import Pages  # noqa: E402
from tests.flows.calls import write_site  # noqa: E402
from tests.servers.runs import deploy  # noqa: E402
from tests.servers.server import Server  # noqa: E402
from tests.servers.worker import Worker  # noqa: E402

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    # What is not on this machine does not exist: the pages must do without.
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
]
POOL = "xmerge"
SHOTS = "XMERGE_SCREENSHOTS"
"""The environment variable that names a folder for pictures of the pages; without it none are taken."""
SEEN = Path("/srv/models")
"""Where the models lie in the pictures: made for them, and removed."""


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Iterator[Path]:
    """A folder with two models; where pictures are taken, one whose name may be seen."""
    if SHOTS not in os.environ:
        folder = Path(tmp_path_factory.mktemp("models"))
        write_models(folder)
        yield folder
        return
    with new_folder(SEEN) as folder:
        write_models(folder)
        yield folder


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Debian's Chromium, or whichever there is."""
    program = next(filter(None, map(shutil.which, BROWSERS)), None)
    if program is None:
        pytest.skip(f"there is no browser ({', '.join(BROWSERS)}): apt-get install chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, headless=True, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def server(browser, tmp_path_factory) -> Iterator[Server]:
    """A server with pages, which this process talks to."""
    home = Path(tmp_path_factory.mktemp("server"))
    server = Server(home, f"sqlite+aiosqlite:///{home}/prefect.db", {"PREFECT_SERVER_UI_ENABLED": "true"})
    try:
        server.start()
        with temporary_settings(updates={PREFECT_API_URL: server.url, PREFECT_HOME: home}):
            with get_client(sync_client=True) as client:
                client.create_work_pool(WorkPoolCreate(name=POOL, type="process"))
            yield server
    finally:
        server.kill()


@pytest.fixture(scope="module")
def worker(server, tmp_path_factory) -> Iterator[Worker]:
    """What carries out the runs, whose layers take their time."""
    folder = Path(tmp_path_factory.mktemp("worker"))
    worker = Worker(folder, server.url, POOL, {"PYTHONPATH": str(write_site(folder))})
    worker.start()
    try:
        yield worker
    finally:
        worker.kill()


@pytest.fixture(scope="module")
def deployment(worker) -> UUID:
    """The flow, startable from its form."""
    return deploy(FLOWS["merge"].replace(":", "."), "merge", POOL)


@pytest.fixture(scope="module")
def page(browser: Browser) -> Page:
    """One tab."""
    return browser.new_page(viewport={"width": 1280, "height": 900})


@pytest.fixture(scope="module")
def pages(server: Server, page: Page) -> Pages:
    """Prefect's pages in that tab."""
    return Pages(page, server.url.removesuffix("/api"), os.environ.get(SHOTS))
