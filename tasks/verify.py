"""The step `verify_checkpoint`: whether a checkpoint, whoever wrote it, is whole."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from prefect import task
from prefect.cache_policies import NO_CACHE
from prefect.logging import get_run_logger

from tasks.pages.validation import show_validation
from xmerge import validation
from xmerge.architecture import describe_model
from xmerge.config import parse_reference
from xmerge.sources import locate_model


# No retry: the same bytes are as wrong the second time.
@task(cache_policy=NO_CACHE, persist_result=False)
def verify_checkpoint(folder: str, base: str | None, trial: bool) -> dict[str, Any]:
    """Check a checkpoint, against the architecture of `base` if one is named; what it finds wrong is an error."""
    described = describe_model(locate_model(parse_reference(base))) if base else None
    report = validation.verify(Path(folder).expanduser(), described, trial=trial)
    show_validation(report, Path(os.path.abspath(folder)).name)
    get_run_logger().info("%s has %d findings", folder, len(report.findings))
    report.raise_if_invalid()
    return report.model_dump(mode="json")
