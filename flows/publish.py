"""The flow `publish_model`: a checkpoint that lies here goes to the Hub, if it is whole."""

from __future__ import annotations

from typing import Annotated, Any

from prefect import flow
from pydantic import Field

from flows.secrets import token_from_block
from flows.server.leftovers import sign_run
from tasks.upload import upload_checkpoint
from tasks.verify import verify_checkpoint
from xmerge.hub.faults import quiet_loggers
from xmerge.interrupt import stoppable
from xmerge.licences import list_licences

REFUSING = [licence.id for licence in list_licences() if licence.refuses]
"""What Prefect's form offers as a menu."""


@flow(
    name="publish_model",
    flow_run_name="publish {folder} as {repo}",
    persist_result=False,
    result_serializer="json",
    on_running=[sign_run],
)
def publish_model(
    folder: str,
    repo: str,
    public: bool = False,
    branch: str = "",
    acknowledge: tuple[Annotated[str, Field(json_schema_extra={"enum": REFUSING})], ...] = (),
    trial: bool = True,
) -> dict[str, Any]:
    """Verify a checkpoint and upload it; the branch gets all of it or nothing.

    Args:
        folder: The checkpoint.
        repo: Where it goes on the Hub, as org/name.
        public: Create the repository public, if it is not there.
        branch: Upload to this branch; empty for the main one.
        acknowledge: Licences whose words forbid it and which do not stop it.
        trial: Load it with transformers, where that is installed, before it is uploaded.
    """
    quiet_loggers()
    with token_from_block(), stoppable():
        checked = verify_checkpoint.submit(folder, None, trial)
        checked.result()
        return upload_checkpoint(folder, repo, public, branch or None, list(acknowledge), wait_for=[checked])
