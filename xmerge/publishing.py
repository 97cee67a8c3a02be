"""Publishing a checkpoint that lies here: verified, allowed by its licences as far as they are known, and uploaded."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from xmerge import hub
from xmerge.errors import CheckpointError
from xmerge.licences import LicenceRecord, list_open_conflicts
from xmerge.planning.publication import tell_conflicts
from xmerge.provenance import PROVENANCE_NAME, list_digests, read_provenance


def publish_verified(
    folder: Path, repo: str, *, private: bool, branch: str | None, acknowledged: Collection[str]
) -> hub.UploadedTo:
    """Upload a checkpoint that `verify` has just found to be whole.

    Args:
        folder: The checkpoint.
        repo: `org/name` on the Hub.
        private: Whether a new repository is private.
        branch: The branch; None for the main branch.
        acknowledged: Licences whose words forbid it and which do not stop it.

    Raises:
        PlanError: A licence of the models it was made from forbids it, and nobody has acknowledged that.
        CheckpointError: What it says of its licences cannot be read.
        HubError: The upload failed.
    """
    provenance = read_provenance(folder) or {}
    _refuse_forbidden(provenance, folder, acknowledged)
    fingerprint = str(provenance.get("plan_fingerprint", ""))
    return hub.upload_folder(
        folder,
        repo,
        private=private,
        branch=branch,
        message=f"xmerge: {folder.resolve().name}" + (f" ({fingerprint[:12]})" if fingerprint else ""),
        digests=list_digests(provenance),
    )


def _refuse_forbidden(provenance: Mapping[str, Any], folder: Path, acknowledged: Collection[str]) -> None:
    if "licences" not in provenance:
        return
    try:
        record = LicenceRecord.model_validate(provenance["licences"])
    except ValidationError as error:
        raise CheckpointError(
            f"what {PROVENANCE_NAME} says of licences cannot be read.",
            where=str(folder),
            why=f"{error.error_count()} of its values are not as xmerge writes them.",
            remedy="make the checkpoint again, or fetch that file again.",
        ) from error
    forbidding = list_open_conflicts(record.verdict.conflicts, {*acknowledged, *record.acknowledged})
    if forbidding:
        options = " ".join(f"--acknowledge {conflict.licence}" for conflict in forbidding)
        raise tell_conflicts(forbidding, str(folder), f"add {options}")
