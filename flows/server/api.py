"""Which Prefect API a command talks to: the one that is configured, else one that is embedded for its duration."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import MappingProxyType
from typing import Any

import httpx
from prefect.client.orchestration import get_client
from prefect.exceptions import PrefectHTTPStatusError
from prefect.settings import (
    PREFECT_API_URL,
    PREFECT_CLIENT_MAX_RETRIES,
    PREFECT_FLOWS_HEARTBEAT_FREQUENCY,
    PREFECT_UI_URL,
    temporary_settings,
)
from typing_extensions import override

from flows.server.shared import EmbeddedServer
from xmerge.errors import PlanError
from xmerge.progress import Reporter

SECONDS_TO_ANSWER = 5.0
RETRIES = 3
"""Of each call, with pauses that double: enough for a database that others have just locked. Prefect's five take a
minute, and the server of a command never comes back once it is gone."""


class Api(ABC):
    """A server as a command uses it."""

    is_embedded: bool
    url: str
    ui: str
    settings: Mapping[Any, Any] = MappingProxyType({})

    @abstractmethod
    def wait(self) -> None:
        """Return when it answers.

        Raises:
            PlanError: It does not.
        """

    @abstractmethod
    def stop(self) -> None:
        """Use it no longer."""

    def page(self, run: str) -> str:
        """The address of a run's page."""
        return f"{self.ui}/runs/flow-run/{run}"


class ConfiguredApi(Api):
    """A server that runs already, whose address the environment or a profile gives."""

    is_embedded = False

    def __init__(self, url: str) -> None:
        self.url = url
        self.ui = PREFECT_UI_URL.value() or url.removesuffix("/api")

    @override
    def wait(self) -> None:
        """Ask it something that it answers only to those who may use it.

        Raises:
            PlanError: It cannot be reached, or refuses.
        """
        try:
            with get_client(sync_client=True, httpx_settings={"timeout": SECONDS_TO_ANSWER}) as client:
                client.read_flows(limit=1)
        except (httpx.TransportError, PrefectHTTPStatusError) as error:
            refused = isinstance(error, PrefectHTTPStatusError)
            raise PlanError(
                f"the Prefect API at {self.url} {'refused' if refused else 'cannot be reached'}.",
                why=str(error).splitlines()[0] if str(error) else type(error).__name__,
                remedy="start that server, or unset PREFECT_API_URL (and leave the profile that sets it) to merge "
                "with an embedded one, or merge without Prefect with --direct.",
            ) from error

    @override
    def stop(self) -> None:
        """Leave it running: it is not ours."""


class EmbeddedApi(Api):
    """The server that the commands of this machine share, for as long as one of them runs."""

    is_embedded = True

    def __init__(self, port: int = 0) -> None:
        self._server = EmbeddedServer(port)
        self.is_new = self._server.is_new
        self.url, self.ui = self._server.address.api, self._server.address.ui
        self.settings = {
            PREFECT_API_URL: self.url,
            # A run that dies here is known by its process, and joining the heartbeat's thread takes a second.
            PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None,
        }
        if PREFECT_CLIENT_MAX_RETRIES.name not in os.environ:
            self.settings[PREFECT_CLIENT_MAX_RETRIES] = RETRIES

    @override
    def wait(self) -> None:
        """Return when it answers.

        Raises:
            PlanError: It did not start.
        """
        self._server.wait()

    @override
    def stop(self) -> None:
        """Leave it, and end it if nobody else uses it; the history stays in Prefect's database."""
        self._server.stop()


@contextmanager
def open_api(reporter: Reporter, port: int = 0) -> Iterator[Api]:
    """The configured API, or an embedded one that starts, at this port if it can, while the caller goes on."""
    url = PREFECT_API_URL.value()
    api = ConfiguredApi(url) if url else EmbeddedApi(port)
    if isinstance(api, EmbeddedApi) and api.is_new:
        reporter.note("starting an embedded Prefect server ...")
    try:
        with temporary_settings(updates=dict(api.settings)):
            yield api
    finally:
        api.stop()
