"""How a page reaches Prefect. Showing never decides about the merge: a page that cannot be made is missed."""

from __future__ import annotations

import hashlib
import logging
import math
import re
import time
from collections.abc import Callable
from typing import TypeVar

import httpx
from prefect.exceptions import MissingContextError, PrefectException
from prefect.logging import get_logger, get_run_logger
from prefect.logging.loggers import LoggingAdapter
from prefect.settings import PREFECT_CLIENT_MAX_RETRIES, temporary_settings

SECONDS_WITHOUT_PAGES = 60.0
LONGEST_SERIES = 60

Shown = TypeVar("Shown")


def name_key(page: str, series: str) -> str:
    """The key of an artifact, `xmerge-plan-my-merge`: the same in every run of a series, so that runs can be compared.

    Args:
        page: What is shown.
        series: What the run is one of many of: mostly the name of the output's folder.
    """
    slug = re.sub(r"[^a-z0-9]+", "-", series.lower()).strip("-")
    if not slug or len(slug) > LONGEST_SERIES or re.search(r"[^A-Za-z0-9._ -]", series):
        digest = hashlib.sha256(series.encode("utf-8", "surrogatepass")).hexdigest()[:8]
        slug = f"{slug[:LONGEST_SERIES]}-{digest}".strip("-")
    return f"xmerge-{page}-{slug}"


class _Api:
    """Whether it is worth asking: a server that is gone costs seconds each time, and a merge has many pages."""

    away_until = -math.inf
    left_out = 0


def try_to_show(what: str, show: Callable[[], Shown]) -> Shown | None:
    """Go on without a page that cannot be made, and say so in the log.

    One retry instead of Prefect's five, which take a minute.
    """
    if time.monotonic() < _Api.away_until:
        _Api.left_out += 1
        return None
    _tell_left_out()
    try:
        with temporary_settings(updates={PREFECT_CLIENT_MAX_RETRIES: 1}):
            return show()
    except httpx.TransportError as error:
        _Api.away_until = time.monotonic() + SECONDS_WITHOUT_PAGES
        told = "the %s could not be shown in Prefect, and nothing more is for %.0f s: %s"
        _find_logger().warning(told, what, SECONDS_WITHOUT_PAGES, error)
    except (httpx.HTTPError, PrefectException) as error:
        # It has answered: what it refuses of one page, or cannot do now, says nothing of the next.
        _find_logger().warning("the %s could not be shown in Prefect: %s", what, error)
    except Exception:  # noqa: BLE001 - a page with a bug in it is no reason to lose hours of work
        _find_logger().exception("the %s could not be drawn: a bug", what)
    return None


def _tell_left_out() -> None:
    if _Api.left_out:
        _find_logger().warning("while the server did not answer, %d pages or updates were left out", _Api.left_out)
        _Api.left_out = 0


def _find_logger() -> LoggingAdapter | logging.Logger:
    try:
        return get_run_logger()
    except MissingContextError:  # A hook is called outside of the run that it belongs to.
        return get_logger("xmerge")
