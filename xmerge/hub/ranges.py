"""Ranges: some bytes of a file on the Hub, going on where a connection broke."""

from __future__ import annotations

import random
import re
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from xmerge.hub.client import ANSWER_TIMEOUT, request_headers
from xmerge.hub.faults import (
    Doing,
    http_library,
    in_words,
    is_passing,
    tell_cut_short,
    tell_other_range,
    tell_wrong_size,
)
from xmerge.interrupt import check_stop

if TYPE_CHECKING:
    from huggingface_hub.errors import HfHubHTTPError

T = TypeVar("T")

ATTEMPTS = 5
LONGEST_WAIT = 300.0
"""Seconds; a Hub that asks for more has its answer passed on to the person."""

_CONTENT_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+)")


class Range(NamedTuple):
    """Bytes of a file, from `start` up to `stop`."""

    start: int
    stop: int

    @property
    def nbytes(self) -> int:
        """How many they are."""
        return self.stop - self.start


class RangesIgnoredError(Exception):
    """The server was asked for a part of a file and began to send the whole."""


def read_range(doing: Doing, size: int, wanted: Range) -> bytes:
    """The bytes of a range; where the server ignores ranges, no more is taken of the whole file than needed.

    Raises:
        HubError: The file may not be read, or does not have its size.
        HubUnavailableError: The Hub cannot answer for now.
    """
    return b"".join(stream_range(doing, size, wanted, takes_whole=True))


def stream_range(doing: Doing, size: int, wanted: Range, *, takes_whole: bool = False) -> Iterator[bytes]:
    """The bytes of a range as they come; answers a stop between two of them.

    Args:
        doing: The file, and what for.
        size: Bytes of the whole file, which every answer must agree with.
        wanted: Which bytes.
        takes_whole: Skip what comes before the range where the server ignores ranges.

    Raises:
        RangesIgnoredError: The server sends the whole file, and that is not to be taken.
        HubError: The file may not be read, does not have its size, or comes short.
        HubUnavailableError: The Hub cannot answer for now.
    """
    at = wanted.start
    for attempt in range(1, ATTEMPTS + 1):
        with in_words(doing):
            try:
                for block in _request(doing, size, Range(at, wanted.stop), takes_whole=takes_whole):
                    check_stop()
                    at += len(block)
                    yield block
                break
            except http_library().HTTPError as error:
                seconds = _seconds_to_wait(error, attempt)
                if seconds is None or attempt == ATTEMPTS:
                    raise
                pause(seconds)
    if at < wanted.stop:
        raise tell_cut_short(doing.where)


def try_again(call: Callable[[], T]) -> T:
    """Call until it succeeds, is refused, or has been disturbed too often; waits as long as the Hub asks."""
    for attempt in range(1, ATTEMPTS):
        try:
            return call()
        except http_library().HTTPError as error:
            seconds = _seconds_to_wait(error, attempt)
            if seconds is None:
                raise
        pause(seconds)
    return call()


def try_again_if_broken(call: Callable[[], T]) -> T:
    """The same for calls of the client that wait out the Hub's disturbances themselves, but give up at a reset."""
    for attempt in range(1, ATTEMPTS):
        try:
            return call()
        except http_library().TransportError:
            pause(_backoff(attempt))
    return call()


def pause(seconds: float) -> None:
    """Wait, unless a stop ends it.

    Raises:
        Interrupted: A stop was requested.
    """
    end = time.monotonic() + seconds
    while (left := end - time.monotonic()) > 0:
        check_stop()
        time.sleep(min(left, 0.1))


def _seconds_to_wait(error: Exception, attempt: int) -> float | None:
    """How long to wait before the same request is sent again; None: it is not worth it."""
    from huggingface_hub.errors import HfHubHTTPError

    if isinstance(error, HfHubHTTPError):
        asked = _seconds_asked(error)
        if not is_passing(error) or (asked or 0.0) > LONGEST_WAIT:
            return None
        # The jitter comes on top: nobody returns before the time that the Hub named.
        return _backoff(attempt) if asked is None else asked + random.random()  # noqa: S311 -- jitter, not a secret
    return _backoff(attempt) if isinstance(error, http_library().TransportError) else None


def _backoff(attempt: int) -> float:
    """0.5 to 1 s after the first attempt, and twice that after each further one; others do not come back together."""
    return float(2 ** (attempt - 1)) * random.uniform(0.5, 1.0)  # noqa: S311 -- jitter, not a secret


def _seconds_asked(error: HfHubHTTPError) -> float | None:
    """The wait that an answer's Retry-After asks for, as seconds or as a date."""
    said = str(error.response.headers.get("Retry-After", "")).strip()
    if said.isdigit():
        return float(said)
    try:
        when = parsedate_to_datetime(said)
    except ValueError:
        return None
    return max(0.0, (when.replace(tzinfo=when.tzinfo or UTC) - datetime.now(UTC)).total_seconds())


def _request(doing: Doing, size: int, wanted: Range, *, takes_whole: bool) -> Iterator[bytes]:
    """What one request gives of a range, at most all of it."""
    from huggingface_hub import get_session, hf_hub_url
    from huggingface_hub.utils import hf_raise_for_status  # type: ignore[attr-defined]

    url = hf_hub_url(doing.repo, str(doing.file), revision=doing.revision)
    headers = {**request_headers(), "Range": f"bytes={wanted.start}-{wanted.stop - 1}"}
    with get_session().stream("GET", url, headers=headers, timeout=ANSWER_TIMEOUT) as response:
        hf_raise_for_status(response)
        skipped, left = 0, wanted.nbytes
        if response.status_code == 206:
            _require_range(response.headers.get("Content-Range", ""), size, wanted, doing)
        elif takes_whole or wanted == (0, size):
            _require_size(response.headers.get("Content-Length"), size, doing)
            skipped = wanted.start
        else:
            raise RangesIgnoredError
        for block in response.iter_bytes():
            part = block[skipped : skipped + left]
            skipped = max(0, skipped - len(block))
            left -= len(part)
            if part:
                yield part
            if left == 0:
                return


def _require_range(said: str, size: int, wanted: Range, doing: Doing) -> None:
    """Refuse other bytes than those that were asked for."""
    found = _CONTENT_RANGE.fullmatch(said)
    if found is None or int(found[1]) != wanted.start or int(found[2]) >= wanted.stop:
        raise tell_other_range(doing.where)
    if int(found[3]) != size:
        raise tell_wrong_size(doing.where, size, int(found[3]))


def _require_size(said: str | None, size: int, doing: Doing) -> None:
    if said is not None and said.isdigit() and int(said) != size:
        raise tell_wrong_size(doing.where, size, int(said))
