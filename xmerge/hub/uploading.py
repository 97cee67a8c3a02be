"""Publishing: put a finished folder on the Hub, so that a branch has all of it or nothing.

The files go to a branch of their own, are compared there, and one commit brings them to the branch they are meant for.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from glob import escape
from pathlib import Path
from typing import TYPE_CHECKING

from xmerge.errors import HubError, HubUnavailableError
from xmerge.files import hash_file, read_bytes, storage_error
from xmerge.hub.client import ANSWER_TIMEOUT, hub_api, is_offline, no_progress_bars, request_headers
from xmerge.hub.faults import Doing, in_words, tell_wrong_size
from xmerge.hub.names import require_repo_id
from xmerge.values import Value

if TYPE_CHECKING:
    from huggingface_hub import HfApi
    from huggingface_hub.hf_api import ModelInfo, RepoFile

_MAIN = "main"
_NO_SUCH_ROUTE = (404, 405, 501)
_WEIGHTS = (".safetensors", ".safetensors.index.json")


class UploadedTo(Value):
    """Where an upload went.

    Attributes:
        repo: The repository, with its owner's name.
        branch: The branch that has the commit.
        commit: The commit that has exactly the folder's weights.
        private: Whether the repository is private.
        url: The page of the commit's files.
        changed: Whether anything was to be uploaded; False: the branch had all of it.
    """

    repo: str
    branch: str
    commit: str
    private: bool
    url: str
    changed: bool


@dataclass(frozen=True)
class _File:
    """A file to upload, with what the Hub would say of it."""

    path: Path
    size: int
    known_sha256: str | None

    def is_at(self, there: RepoFile | None) -> bool:
        """Whether the Hub has these very bytes under this name."""
        if there is None or there.size != self.size:
            return False
        return there.lfs.sha256 == self.sha256 if there.lfs else there.blob_id == self.git_id

    @cached_property
    def sha256(self) -> str:
        """By which the Hub names a large file."""
        try:
            return self.known_sha256 or hash_file(self.path)[1]
        except OSError as error:
            raise storage_error(error, self.path, doing="read") from error

    @cached_property
    def git_id(self) -> str:
        """By which git, and the Hub, names a small file."""
        try:
            data = read_bytes(self.path)
        except OSError as error:
            raise storage_error(error, self.path, doing="read") from error
        return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()  # noqa: S324 -- git's choice, not ours


def upload_folder(
    folder: Path,
    repo: str,
    *,
    private: bool,
    branch: str | None,
    message: str,
    digests: Mapping[str, str] | None = None,
) -> UploadedTo:
    """Make a folder the content of a branch in one commit, making repository and branch where they are missing.

    Weights that the branch has and the folder lacks are removed in the same commit, since shards of an earlier
    upload beside this one's would be read as part of the model. A folder that is there already is left alone, and
    an upload that was interrupted goes on where it stopped.

    Args:
        folder: The finished output.
        repo: `org/name`; a bare `name` belongs to the token's account.
        private: Whether a new repository is private; an existing public one is then refused.
        branch: The branch; None for the main branch.
        message: The commit's message.
        digests: SHA-256 of files that need not be read for it.

    Raises:
        HubError: The folder or the repository may not be used for this, the branch moved during the upload, or
            something else than the folder arrived.
        HubUnavailableError: The Hub cannot answer for now.
        StorageError: A file of the folder cannot be read.
    """
    require_repo_id(repo)
    files = _list_to_upload(folder, digests or {})
    if is_offline():
        raise HubError(
            "an upload needs the Hub, and it may not be asked.",
            where=repo,
            why="HF_HUB_OFFLINE is set.",
            remedy="unset HF_HUB_OFFLINE and publish again; the folder is as it was.",
        )
    target = branch or _MAIN
    api = hub_api()
    repo = _make_repository(api, repo, private=private)
    head = _make_branch(api, repo, target)
    there = _list_remote(api, repo, str(head.sha))
    missing = [name for name, file in files.items() if not file.is_at(there.get(name))]
    stale = [name for name in there if name.endswith(_WEIGHTS) and name not in files]
    commit, waiting = str(head.sha), f"xmerge-upload-{target.replace('/', '-')}"
    if missing or stale:
        staged = _upload_aside(api, folder, repo, files, missing, branch=waiting, start=commit, message=message)
        commit = _bring_over(api, repo, missing, stale, source=staged, branch=target, head=commit, message=message)
        _check_arrived(files, _list_remote(api, repo, commit), f"{repo}@{commit}")
    _remove_branch(api, repo, waiting)
    return UploadedTo(
        repo=repo,
        branch=target,
        commit=commit,
        private=bool(head.private),
        url=f"{api.endpoint}/{repo}/tree/{commit}",
        changed=bool(missing or stale),
    )


def _list_to_upload(folder: Path, digests: Mapping[str, str]) -> dict[str, _File]:
    """Every file of the folder; a link out of it would publish a file nobody chose."""
    inside = folder.resolve()
    files = {}
    for path in sorted(folder.rglob("*")):
        if not path.resolve().is_relative_to(inside):
            raise HubError(
                "the folder to upload has a link to a place outside of it.",
                where=str(path),
                remedy="replace the link with a copy of the file, or remove it.",
            )
        if path.is_file():
            name = path.relative_to(folder).as_posix()
            files[name] = _File(path, path.stat().st_size, digests.get(name))
    if not files:
        raise HubError("the folder to upload has no files.", where=str(folder), remedy="merge first.")
    return files


def _make_repository(api: HfApi, repo: str, *, private: bool) -> str:
    doing = Doing(repo, "write")
    with in_words(doing):
        made = api.create_repo(repo, private=private, exist_ok=True).repo_id
        is_private = api.model_info(made, timeout=ANSWER_TIMEOUT).private
    if private and not is_private:
        raise HubError(
            "the repository exists and is public, and the upload is to be private.",
            where=made,
            why="the Hub keeps an existing repository's visibility.",
            remedy="allow a public upload (--public), choose another name, or make the repository private on its page.",
        )
    return made


def _make_branch(api: HfApi, repo: str, branch: str) -> ModelInfo:
    """Make the branch where it is missing, and give the repository as it stands on it."""
    with in_words(Doing(repo, "write", revision=branch)):
        # A pull request's ref is made by opening the pull request.
        if branch != _MAIN and not branch.startswith("refs/"):
            api.create_branch(repo, branch=branch, exist_ok=True)
        return api.model_info(repo, revision=branch, timeout=ANSWER_TIMEOUT)


def _list_remote(api: HfApi, repo: str, revision: str) -> dict[str, RepoFile]:
    """The files of a revision as the Hub has them now; never from the cache."""
    from huggingface_hub.hf_api import RepoFile

    with in_words(Doing(repo, "write", revision=revision)):
        entries = list(api.list_repo_tree(repo, recursive=True, revision=revision))
    return {entry.path: entry for entry in entries if isinstance(entry, RepoFile)}


def _upload_aside(
    api: HfApi,
    folder: Path,
    repo: str,
    files: Mapping[str, _File],
    missing: list[str],
    *,
    branch: str,
    start: str,
    message: str,
) -> str:
    """Upload the missing files to a branch of their own; the commit in which they were found as they should be."""
    doing = Doing(repo, "write", revision=branch)
    with in_words(doing):
        api.create_branch(repo, branch=branch, revision=start, exist_ok=True)
    # What an interrupted upload has left there need not be sent, nor read, again.
    arrived = _list_remote(api, repo, branch)
    wanted = [name for name in missing if not files[name].is_at(arrived.get(name))]
    if wanted:
        _require_xet(api, repo, branch)
        try:
            _send(api, folder, repo, wanted, branch=branch, message=message)
        except HubUnavailableError:
            # Of a token that has expired meanwhile, the client of the store says that the connection broke.
            _require_xet(api, repo, branch)
            raise
    with in_words(doing):
        commit = str(api.model_info(repo, revision=branch, timeout=ANSWER_TIMEOUT).sha)
    asked = {name: files[name] for name in missing}
    _check_arrived(asked, _list_remote(api, repo, commit), f"{repo}@{commit}")
    return commit


def _send(api: HfApi, folder: Path, repo: str, names: Sequence[str], *, branch: str, message: str) -> None:
    """Upload the named files of a folder, in as many commits as the client makes of them."""
    with in_words(Doing(repo, "write", revision=branch)), no_progress_bars():
        api.upload_folder(
            repo_id=repo,
            folder_path=folder,
            revision=branch,
            allow_patterns=[escape(name) for name in names],
            commit_message=message,
        )


def _require_xet(api: HfApi, repo: str, branch: str) -> None:
    """Refuse a server that has no Xet storage before the client, which then says little, begins to send."""
    from huggingface_hub.utils import get_session, hf_raise_for_status  # type: ignore[attr-defined]
    from huggingface_hub.utils._runtime import is_xet_available

    if not is_xet_available():
        return
    doing = Doing(repo, "write", revision=branch)
    url = f"{api.endpoint}/api/models/{repo}/xet-write-token/{branch}"
    with in_words(doing):
        answer = get_session().get(url, headers=request_headers(), timeout=ANSWER_TIMEOUT)
        if answer.status_code not in _NO_SUCH_ROUTE:
            hf_raise_for_status(answer)
    if answer.status_code in _NO_SUCH_ROUTE:
        raise HubError(
            "this server has no Xet storage to write to.",
            where=doing.where,
            why=f"it gives out no token for that (status {answer.status_code}).",
            remedy="set HF_HUB_DISABLE_XET=1 and publish again: the client then uploads by LFS.",
        )


def _bring_over(
    api: HfApi, repo: str, names: list[str], stale: list[str], *, source: str, branch: str, head: str, message: str
) -> str:
    """Make the files of the commit `source` the branch's in one commit, which fails if the branch is not at `head`."""
    from huggingface_hub import CommitOperationCopy, CommitOperationDelete

    with in_words(Doing(repo, "write", revision=branch)):
        return str(
            api.create_commit(
                repo,
                [
                    *(CommitOperationCopy(name, name, src_revision=source) for name in names),
                    *(CommitOperationDelete(name) for name in stale),
                ],
                commit_message=message,
                revision=branch,
                parent_commit=head,
            ).oid
        )


def _check_arrived(files: Mapping[str, _File], there: Mapping[str, RepoFile], place: str) -> None:
    for name, file in files.items():
        found = there.get(name)
        if found is None or found.size != file.size:
            raise tell_wrong_size(f"{name} in {place}", file.size, found.size if found else None)
        if not file.is_at(found):
            raise HubError(
                "the Hub has other bytes than the ones that were uploaded.",
                where=f"{name} in {place}",
                why="its digest of the file is not that of the file here.",
                remedy="leave the folder alone while it is published, and publish again.",
            )


def _remove_branch(api: HfApi, repo: str, branch: str) -> None:
    """Remove the branch that the files waited on, also one that an interrupted run has left."""
    with in_words(Doing(repo, "write", revision=branch)):
        if any(each.name == branch for each in api.list_repo_refs(repo).branches):
            api.delete_branch(repo, branch=branch)
