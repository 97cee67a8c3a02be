"""The client: one configured `HfApi`, its headers, and where its cache lies."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from huggingface_hub import HfApi

ANSWER_TIMEOUT = 30.0  # Seconds; the client's own default is to wait for ever.


def hub_api() -> HfApi:
    """The client's API object, for the endpoint and token that the environment names."""
    from huggingface_hub import HfApi

    return HfApi(library_name="xmerge", library_version=_version())


def request_headers() -> dict[str, str]:
    """The headers of a request of our own, the token of the environment among them."""
    from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]

    # Compressed answers have no length, and a range of a compressed body is not a range of the file.
    return {**build_hf_headers(library_name="xmerge", library_version=_version()), "Accept-Encoding": "identity"}


def is_offline() -> bool:
    """Whether HF_HUB_OFFLINE forbids asking the Hub."""
    from huggingface_hub import is_offline_mode

    return is_offline_mode()


@contextmanager
def no_progress_bars() -> Iterator[None]:
    """Keep the client from drawing on the terminal, which is the caller's."""
    from huggingface_hub.utils import (  # type: ignore[attr-defined]
        are_progress_bars_disabled,
        disable_progress_bars,
        enable_progress_bars,
    )

    if are_progress_bars_disabled():
        yield
        return
    disable_progress_bars()
    try:
        yield
    finally:
        enable_progress_bars()


def cache_folder(repo: str) -> Path:
    """The folder of a repository in the local Hub cache; it need not exist."""
    from huggingface_hub import constants
    from huggingface_hub.file_download import repo_folder_name

    return Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=repo, repo_type="model")


def snapshot_folder(repo: str, commit: str) -> Path:
    """The folder of one commit's files in the local Hub cache; it need not exist."""
    return cache_folder(repo) / "snapshots" / commit


def _version() -> str:
    try:
        return version("xmerge")
    except PackageNotFoundError:  # A checkout that is on the path without being installed.
        return "0"
