"""The plan on its way to the layers: a file in the work folder, read once in each process."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

from xmerge.errors import StorageError
from xmerge.files import read_text
from xmerge.planning import MergePlan


@lru_cache(maxsize=4)
def read_plan(path: str, fingerprint: str) -> MergePlan:
    """The plan in a file, which must be the one that the flow speaks of.

    Raises:
        StorageError: It is another one.
    """
    plan = MergePlan.model_validate_json(read_text(Path(path)))
    if plan.fingerprint != fingerprint:
        raise StorageError("the plan in the work folder is not the one that this run made.", where=path)
    return plan
