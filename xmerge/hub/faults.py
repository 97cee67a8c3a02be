"""Faults of the Hub and of the way to it, in words; no token and no signed URL ever gets into them."""

from __future__ import annotations

import errno
import logging
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import TYPE_CHECKING, Literal, NamedTuple

from xmerge.errors import HubError, HubUnavailableError, StorageError, XmergeError

if TYPE_CHECKING:
    from huggingface_hub.errors import HfHubHTTPError

_TRANSIENT = frozenset({408, 429, 500, 502, 503, 504})
_NO_SPACE = frozenset({errno.ENOSPC, errno.EDQUOT})
_SECRETS = (
    (re.compile(r"(https?://)[^\s/@'\"]+@"), r"\1"),
    (re.compile(r"(https?://[^\s?'\"<>]+)\?[^\s'\"<>)]*"), r"\1?(removed)"),
    (re.compile(r"\b(hf|api_org)_[A-Za-z0-9]{6,}"), r"\1_(removed)"),
    (re.compile(r"(?i)\bbearer\s+\S+"), "Bearer (removed)"),
)
_HTTP_LOGGERS = ("httpx", "httpx2", "httpcore", "httpcore2", "urllib3", "huggingface_hub")
_CLIENT_LOGGERS = ("huggingface_hub.file_download", "huggingface_hub.utils._http", "huggingface_hub._snapshot_download")


class Doing(NamedTuple):
    """What a request was for; an error says it back."""

    repo: str
    action: Literal["read", "write"] = "read"
    revision: str | None = None
    file: str | None = None

    @property
    def where(self) -> str:
        """The repository with its revision and file, as an error names it."""
        place = f"{self.repo}@{self.revision}" if self.revision else self.repo
        return f"{self.file} in {place}" if self.file else place


@contextmanager
def in_words(doing: Doing) -> Iterator[None]:
    """Turn what the client raises inside the block into an error that a person can act on.

    Only calls of the client belong inside: a ValueError of ours would be taken for the client's.

    Args:
        doing: What the calls are for.

    Raises:
        HubUnavailableError: The same call may succeed later.
        HubError: It will not.
        StorageError: The disk, not the Hub.
    """
    # The client sets the level of its loggers when this is imported: before ours, not after.
    import huggingface_hub.utils.logging  # noqa: F401
    from huggingface_hub.errors import EntryNotFoundError

    quiet_loggers()
    try:
        yield
    except (http_library().HTTPError, EntryNotFoundError, OSError, RuntimeError, ValueError) as error:
        # Without `from None` the client's text, which holds full URLs, would be in every traceback.
        raise _tell(_origin(error), doing) from None


def quiet_loggers() -> None:
    """Keep request URLs, which are credentials where they are signed, out of every log."""
    for name in _HTTP_LOGGERS:
        logger = logging.getLogger(name)
        # Also where it says more only later, when the root logger does.
        if logger.level < logging.WARNING:
            logger.setLevel(logging.WARNING)
    for name in _CLIENT_LOGGERS:
        logging.getLogger(name).addFilter(_remove_secrets)


def without_secrets(text: str) -> str:
    """The text without tokens and without what follows the '?' of a URL."""
    for pattern, replacement in _SECRETS:
        text = pattern.sub(replacement, text)
    return text


def is_passing(error: HfHubHTTPError) -> bool:
    """Whether an answer is a disturbance, so that the same request may succeed later."""
    return error.response.status_code in _TRANSIENT


def http_library() -> ModuleType:
    """The HTTP library under the client: httpx before huggingface_hub 2, httpx2 since."""
    from huggingface_hub.errors import HfHubHTTPError

    root = next(base for base in HfHubHTTPError.__mro__ if base.__name__ == "HTTPError")
    return sys.modules[root.__module__.partition(".")[0]]


def _remove_secrets(record: logging.LogRecord) -> bool:
    record.msg, record.args = without_secrets(record.getMessage()), ()
    return True


def _origin(error: BaseException) -> BaseException:
    """The fault itself, below the client's 'not found locally' and 'error while uploading'."""
    from huggingface_hub.errors import LocalEntryNotFoundError

    while isinstance(error, LocalEntryNotFoundError | RuntimeError) and error.__cause__ is not None:
        error = error.__cause__
    return error


def _tell(error: BaseException, doing: Doing) -> XmergeError:
    from huggingface_hub.errors import FileMetadataError, HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled

    if isinstance(error, HfHubHTTPError):
        return _tell_answer(error, doing)
    if isinstance(error, OfflineModeIsEnabled | LocalEntryNotFoundError):
        return tell_offline(doing.where)
    if isinstance(error, FileMetadataError):
        return HubError(
            "the server does not answer as a Hub does.",
            where=doing.where,
            why="its answer lacks the commit or the digest of the file.",
            remedy="check HF_ENDPOINT, and any proxy between here and the Hub.",
        )
    if isinstance(error, (http_library().HTTPError, ConnectionError, TimeoutError)):
        return _tell_connection(error, doing)
    if isinstance(error, OSError):
        return _tell_os_error(error, doing)
    return HubError(
        "the Hub's client could not make sense of an answer.",
        where=doing.where,
        why=_short(str(error)),
        remedy="check HF_ENDPOINT; if the server has no Xet storage, set HF_HUB_DISABLE_XET=1.",
    )


def tell_offline(where: str) -> HubError:
    """The error for what is not in the cache while nothing may be fetched."""
    return HubError(
        "this is not in the local cache, and the Hub may not be asked.",
        where=where,
        why="HF_HUB_OFFLINE is set.",
        remedy="unset HF_HUB_OFFLINE once to fetch it, or set HF_HUB_CACHE to a cache that has it.",
    )


def tell_wrong_size(where: str, expected: int, actual: int | None) -> HubError:
    """The error for a file that is shorter or longer than the repository says."""
    return HubError(
        "a file from the Hub does not have the size that the repository says.",
        where=where,
        why=f"the repository says {expected:,} bytes, and there are {actual or 0:,}.",
        remedy="run again; if it stays so, a proxy or mirror on the way changes files.",
    )


def tell_wrong_bytes(where: str) -> HubError:
    """The error for a file that came twice with other bytes than the repository has."""
    return HubError(
        "a file from the Hub does not hold the bytes that the repository says.",
        where=where,
        why="its SHA-256 is another one, also after it was fetched again; it was removed.",
        remedy="run again; if it stays so, a proxy or mirror on the way changes files.",
    )


def tell_other_range(where: str) -> HubError:
    """The error for a server that gives another part of a file than it was asked for."""
    return HubError(
        "the server gave another part of a file than it was asked for.",
        where=where,
        remedy="fetch whole files with --fetch shards; a proxy or mirror on the way does not understand ranges.",
    )


def tell_cut_short(where: str) -> HubError:
    """The error for a transfer that ended before everything had come, and said that this was all."""
    return HubError(
        "a transfer from the Hub ended early.",
        where=where,
        why="fewer bytes came than the repository says.",
        remedy="run again; if it stays so, a proxy or mirror on the way cuts files.",
    )


def _tell_connection(error: BaseException, doing: Doing) -> HubError:
    http = http_library()
    if isinstance(error, (http.UnsupportedProtocol, http.TooManyRedirects)):
        return HubError(
            "the address of the Hub cannot be used.",
            where=doing.where,
            why="it is not an http(s) address, or redirects without end.",
            remedy="check HF_ENDPOINT; it is an address like https://huggingface.co.",
        )
    if isinstance(error, (http.ConnectError, http.ProxyError)):
        return HubUnavailableError(
            "the Hub could not be reached.",
            where=doing.where,
            why="no connection could be made.",
            remedy="check the network and the proxy; with HF_HUB_OFFLINE=1 only what is in the local cache is used.",
        )
    late = isinstance(error, (http.TimeoutException, TimeoutError))
    return HubUnavailableError(
        "the connection to the Hub broke.",
        where=doing.where,
        why="it took too long to answer." if late else "it was closed before everything had come.",
        remedy="run again; what has been fetched completely is kept.",
    )


def _tell_os_error(error: OSError, doing: Doing) -> XmergeError:
    if error.errno in _NO_SPACE:
        return tell_disk_full(doing.where)
    if error.errno is not None:
        return StorageError(
            "a file of the local Hub cache could not be written or read.",
            where=str(error.filename) if error.filename else doing.where,
            why=error.strerror,
            remedy="set HF_HUB_CACHE to a folder that can be written.",
        )
    if "Consistency check failed" in str(error):
        return tell_cut_short(doing.where)
    if isinstance(error, PermissionError):
        return _tell_token(doing)
    return HubError(
        "the transfer failed.",
        where=doing.where,
        why=_short(str(error)),
        remedy="run again; if the server has no Xet storage, set HF_HUB_DISABLE_XET=1.",
    )


def tell_disk_full(where: str, *, why: str = "the disk of the local Hub cache is full.") -> StorageError:
    """The error for a cache with no room."""
    return StorageError(
        "there is no space left for a file from the Hub.",
        where=where,
        why=why,
        remedy="free some, or set HF_HUB_CACHE to a folder on a larger disk, and run again.",
    )


def _tell_answer(error: HfHubHTTPError, doing: Doing) -> HubError:  # noqa: PLR0911 -- one answer, one return
    from huggingface_hub.errors import (
        DisabledRepoError,
        GatedRepoError,
        RemoteEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    status = error.response.status_code
    if isinstance(error, GatedRepoError):
        return _tell_gated(doing)
    if isinstance(error, DisabledRepoError):
        return HubError("the Hub has disabled this repository.", where=doing.where, remedy="use another model.")
    if isinstance(error, RevisionNotFoundError):
        return HubError(
            "the repository has no such revision.",
            where=doing.where,
            why="neither a branch, nor a tag, nor a commit has this name.",
            remedy="look at the repository's page for its branches and tags, or leave the revision out.",
        )
    if isinstance(error, RemoteEntryNotFoundError):
        return HubError("the repository has no such file.", where=doing.where, remedy="use another revision.")
    if status == 401 and (doing.action == "write" or "credentials" in _server_words(error).lower()):
        return _tell_token(doing)
    if isinstance(error, RepositoryNotFoundError) or status in {401, 404}:
        return HubError(
            "there is no such repository on the Hub, or it is private and may not be seen.",
            where=doing.where,
            why="the Hub gives the same answer in both cases.",
            remedy="check the spelling; for a private one run `hf auth login`, or set HF_TOKEN.",
        )
    if is_passing(error):
        return _tell_transient(error, doing)
    return _tell_refusal(error, status, doing)


def _tell_gated(doing: Doing) -> HubError:
    from huggingface_hub import constants

    page = without_secrets(f"{constants.ENDPOINT}/{doing.repo}")
    return HubError(
        "this model is gated: its authors let only those in who accepted its licence.",
        where=doing.where,
        remedy=f"accept the licence on the model's page, {page}, then run `hf auth login` with that account.",
    )


def _tell_token(doing: Doing) -> HubError:
    needed = "may write to this repository" if doing.action == "write" else "is still valid"
    return HubError(
        "the Hub did not accept the token, or none was sent.",
        where=doing.where,
        remedy=f"run `hf auth login`, or set HF_TOKEN, with a token that {needed}.",
    )


def _tell_transient(error: HfHubHTTPError, doing: Doing) -> HubError:
    status = error.response.status_code
    wait = error.response.headers.get("Retry-After", "")
    busy = "too many requests came from this account or address." if status == 429 else "the Hub has a disturbance."
    return HubUnavailableError(
        f"the Hub could not answer for now (status {status}).",
        where=doing.where,
        why=busy,
        remedy=f"run again in {wait} seconds." if wait.isdigit() else "run again in a few minutes.",
    )


def _tell_refusal(error: HfHubHTTPError, status: int, doing: Doing) -> HubError:
    said = _server_words(error) or None
    if doing.action == "write" and status == 403:
        return HubError(
            "this account may not write to the repository.",
            where=doing.where,
            why=said,
            remedy="use a token with write permission for it: `hf auth login`, or HF_TOKEN.",
        )
    if doing.action == "write" and status in {409, 412}:
        return HubError(
            "the branch was changed by someone else during the upload; nothing of it was mixed.",
            where=doing.where,
            why=said,
            remedy="look at what came in between, and publish again.",
        )
    return HubError(
        f"the Hub refused the request (status {status}).",
        where=doing.where,
        why=said,
        remedy="check the token's permissions with `hf auth whoami`, and HF_ENDPOINT.",
    )


def _server_words(error: HfHubHTTPError) -> str:
    """What the Hub says itself; never the body, in which a storage server quotes the signature."""
    return _short(error.response.headers.get("X-Error-Message", ""))


def _short(text: str) -> str:
    return without_secrets(" ".join(text.split()))[:240]
