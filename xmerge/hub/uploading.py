"""Uploading: put a finished folder on the Hub, and check that it arrived."""

from __future__ import annotations

from glob import escape
from pathlib import Path
from typing import TYPE_CHECKING

from xmerge.errors import HubError
from xmerge.hub.client import ANSWER_TIMEOUT, hub_api, is_offline, no_progress_bars
from xmerge.hub.faults import Doing, in_words, tell_wrong_size
from xmerge.hub.names import require_repo_id
from xmerge.hub.reading import list_files
from xmerge.values import Value

if TYPE_CHECKING:
    from huggingface_hub import HfApi
    from huggingface_hub.hf_api import ModelInfo

_MAIN = "main"
_WEIGHTS = (".safetensors", ".safetensors.index.json")


class UploadedTo(Value):
    """Where an upload went.

    Attributes:
        repo: The repository, with its owner's name.
        branch: The branch that has the commit.
        commit: The commit that has exactly the folder's weights.
        private: Whether the repository is private.
        url: The page of the commit's files.
    """

    repo: str
    branch: str
    commit: str
    private: bool
    url: str


def upload_folder(folder: Path, repo: str, *, private: bool, branch: str | None, message: str) -> UploadedTo:
    """Upload a folder as the content of a branch, making repository and branch where they are missing.

    Weights that the branch has and the folder lacks are removed in the same commit, since shards of an earlier
    upload beside this one's would be read as part of the model. Uploading the same folder again changes nothing.

    Args:
        folder: The finished output.
        repo: `org/name`; a bare `name` belongs to the token's account.
        private: Whether a new repository is private; an existing public one is then refused.
        branch: The branch; None for the main branch.
        message: The commit's message.

    Raises:
        HubError: The folder or the repository may not be used for this, or the branch moved during the upload.
        HubUnavailableError: The Hub cannot answer for now.
    """
    require_repo_id(repo)
    sizes = _files_to_upload(folder)
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
    doing = Doing(repo, "write", revision=target)
    stale = [name for name in list_files(repo, str(head.sha)) if name.endswith(_WEIGHTS) and name not in sizes]
    with in_words(doing), no_progress_bars():
        commit = api.upload_folder(
            repo_id=repo,
            folder_path=folder,
            revision=target,
            parent_commit=head.sha,
            commit_message=message,
            delete_patterns=[escape(name) for name in stale] or None,
        ).oid
    _check_upload(repo, commit, sizes)
    return UploadedTo(
        repo=repo,
        branch=target,
        commit=commit,
        private=bool(head.private),
        url=f"{api.endpoint}/{repo}/tree/{commit}",
    )


def _files_to_upload(folder: Path) -> dict[str, int]:
    """Every file of the folder with its size; a link out of it would publish a file nobody chose."""
    inside = folder.resolve()
    sizes = {}
    for path in sorted(folder.rglob("*")):
        if not path.resolve().is_relative_to(inside):
            raise HubError(
                "the folder to upload has a link to a place outside of it.",
                where=str(path),
                remedy="replace the link with a copy of the file, or remove it.",
            )
        if path.is_file():
            sizes[path.relative_to(folder).as_posix()] = path.stat().st_size
    if not sizes:
        raise HubError("the folder to upload has no files.", where=str(folder), remedy="merge first.")
    return sizes


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


def _check_upload(repo: str, commit: str, sizes: dict[str, int]) -> None:
    arrived = list_files(repo, commit)
    for name, size in sizes.items():
        if arrived.get(name) != size:
            raise tell_wrong_size(f"{name} in {repo}@{commit}", size, arrived.get(name))
