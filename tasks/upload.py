"""The step `upload_checkpoint`: a checkpoint that has been verified goes to the Hub."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from prefect import task
from prefect.cache_policies import NO_CACHE
from prefect.logging import get_run_logger
from prefect.tasks import exponential_backoff

from tasks.pages.output import show_output
from tasks.retrying import is_worth_retrying
from xmerge.publishing import publish_verified


@task(
    cache_policy=NO_CACHE,
    persist_result=False,
    retries=3,
    retry_delay_seconds=exponential_backoff(backoff_factor=5),
    retry_jitter_factor=0.5,
    retry_condition_fn=is_worth_retrying,
)
def upload_checkpoint(
    folder: str, repo: str, public: bool, branch: str | None, acknowledge: list[str]
) -> dict[str, Any]:
    """Upload all of it in one commit, or find it there."""
    # Here, because it imports torch, and everything that lists or deploys the flow imports this module.
    from xmerge.output import Publication

    place = Path(folder).expanduser()
    uploaded = publish_verified(place, repo, private=not public, branch=branch, acknowledged=acknowledge)
    publication = Publication(
        folder=place, repo=uploaded.repo, commit=uploaded.commit, url=uploaded.url, uploaded=uploaded.changed
    )
    show_output(publication, Path(os.path.abspath(place)).name)
    get_run_logger().info("%s is %s", uploaded.url, "published" if uploaded.changed else "there already")
    return publication.model_dump(mode="json")
