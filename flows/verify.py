"""The flow `verify_model`: a checkpoint's validation as a page."""

from __future__ import annotations

from typing import Any

from prefect import flow

from flows.secrets import token_from_block
from flows.server.leftovers import sign_run
from tasks.verify import verify_checkpoint


@flow(
    name="verify_model",
    flow_run_name="verify {folder}",
    persist_result=False,
    result_serializer="json",
    on_running=[sign_run],
)
def verify_model(folder: str, base: str = "", trial: bool = True) -> dict[str, Any]:
    """Check a checkpoint, whoever wrote it: tensors, shapes, numbers, config, index and digests.

    Args:
        folder: The checkpoint.
        base: A folder or repository whose architecture it should have; without one, that of its own config.json.
        trial: Load it with transformers, where that is installed.
    """
    with token_from_block():
        return verify_checkpoint(folder, base or None, trial)
