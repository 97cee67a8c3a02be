"""Which Prefect server this process reports to."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from prefect.settings import temporary_settings

from flows.server.history import send_what_is_left

SECONDS_TO_SEND = 5.0


@contextmanager
def reporting_to(settings: Mapping[Any, Any]) -> Iterator[None]:
    """Let what is done here go to the server of these settings.

    Prefect sends events over the connection that it has, also when that was made to another server, which may be gone.
    """
    send_what_is_left(SECONDS_TO_SEND)
    with temporary_settings(updates=dict(settings)):
        yield
