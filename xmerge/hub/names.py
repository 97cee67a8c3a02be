"""Names: which texts may name a repository, a commit, a shard or a ref."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence

from xmerge.errors import HubError, nearest

_PART = r"\b[\w\-.]{1,96}\b"
_REPO_ID = re.compile(rf"({_PART}/)?{_PART}", re.ASCII)
_COMMIT = re.compile(r"[0-9a-f]{40}")
_SHARD = re.compile(r"\w[\w.+-]{0,199}\.safetensors", re.ASCII)
_URL = "hf://"
_REF = re.compile(r"\w[\w.+-]*(/\w[\w.+-]*)*", re.ASCII)


def is_repo_id(text: str) -> bool:
    """Whether a text can name a repository: `org/name`, or a legacy `name`, by the Hub's own rules."""
    named = _REPO_ID.fullmatch(text) is not None
    return named and "--" not in text and ".." not in text and not text.endswith(".git")


def is_url(text: str) -> bool:
    """Whether a text is an address on the Hub, whatever lies there: `hf://...`."""
    return text.startswith(_URL)


def repo_of_url(url: str) -> str:
    """The repository that `hf://org/name` or `hf://models/org/name` names.

    Raises:
        HubError: It names something else: a data set, a space, or a file.
    """
    repo = url.removeprefix(_URL).removeprefix("models/").removesuffix("/")
    if not is_repo_id(repo):
        raise HubError(
            "this is not the address of a model on the Hub.",
            where=url,
            why="a merge reads whole models, not data sets, spaces or single files.",
            remedy="write hf://org/name, or hf://org/name@revision.",
        )
    return repo


def is_commit(text: str) -> bool:
    """Whether a text is a full commit sha, the only revision that never moves."""
    return _COMMIT.fullmatch(text) is not None


def is_ref_name(text: str) -> bool:
    """Whether a branch or tag name is safe as a path below the cache's `refs` folder."""
    return _REF.fullmatch(text) is not None and ".." not in text


def require_repo_id(repo: str) -> None:
    """Refuse what cannot name a repository, before any request is made.

    Raises:
        HubError: The text is not a repository's name.
    """
    if not is_repo_id(repo):
        raise HubError(
            "this is not the name of a repository on the Hub.",
            where=repr(repo),
            why="a name is `org/name`, of letters, digits, '-', '_' and '.', with neither '--' nor '..'.",
            remedy="write `org/name`; a folder on this machine is written as ./folder or /path/to/folder.",
        )


def require_commit(repo: str, commit: str) -> None:
    """Refuse a revision that may move, because two requests for it could meet different files.

    Raises:
        HubError: The text is not a full commit sha.
    """
    if not is_commit(commit):
        raise HubError(
            "this revision is not pinned to a commit.",
            where=f"{repo}@{commit}",
            why="only a sha of 40 hexadecimal digits names the same files for ever.",
            remedy="pin the revision first, and pass the commit that this gives.",
        )


def require_shards(repo: str, files: Sequence[str], listing: Collection[str]) -> None:
    """Refuse shard names that an index made up: each must be a plain name, and be in the repository.

    Raises:
        HubError: A name is a path, is not a safetensors file, or is not listed at the commit.
    """
    for name in files:
        if not _SHARD.fullmatch(name):
            raise HubError(
                "a shard's name is not the plain name of a safetensors file.",
                where=f"{name!r} in {repo}",
                why="an index that names paths, addresses or other kinds of file is damaged or hostile.",
                remedy="use another revision of this model, or tell its authors.",
            )
        if name not in listing:
            shards = [listed for listed in listing if _SHARD.fullmatch(listed)]
            raise HubError(
                "the repository has no such shard.",
                where=f"{name!r} in {repo}",
                why="its index names a file that is not there.",
                remedy=nearest(name, shards) if shards else "it has no safetensors file at all; use another model.",
            )
