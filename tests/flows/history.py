"""What Prefect's API knows of the last run."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterFlowRunId, FlowRunFilter, FlowRunFilterId
from prefect.client.schemas.objects import Artifact, FlowRun, TaskRun
from prefect.client.schemas.sorting import FlowRunSort

from flows.server.history import wait_for_history


@dataclass
class LastRun:
    """A flow run, its task runs in the order in which they began, and its artifacts."""

    run: FlowRun
    tasks: list[TaskRun]
    artifacts: list[Artifact]

    @property
    def names(self) -> list[str]:
        """The task runs' names, without what Prefect appends to those that have none of their own."""
        return [_without_suffix(task.name) for task in self.tasks]

    @property
    def layer_states(self) -> Counter[str]:
        """State name -> how many layers ended in it."""
        return Counter(str(task.state_name) for task in self.tasks if task.name.startswith("merge "))

    @property
    def markdown(self) -> str:
        """Everything that Prefect's pages render as Markdown."""
        texts: list[Any] = [artifact.description for artifact in self.artifacts]
        texts += [artifact.data for artifact in self.artifacts if artifact.type == "markdown"]
        return "\n".join(str(text) for text in texts if text)


def last_run(tasks: int) -> LastRun:
    """The run that began last, when the server has recorded the end of so many of its tasks."""
    with get_client(sync_client=True) as client:
        run = client.read_flow_runs(sort=FlowRunSort.START_TIME_DESC, limit=1)[0]
        assert wait_for_history(str(run.id), tasks, patience=15)
        found = client.read_task_runs(flow_run_filter=FlowRunFilter(id=FlowRunFilterId(any_=[run.id])))
        mine = ArtifactFilter(flow_run_id=ArtifactFilterFlowRunId(any_=[run.id]))
        artifacts = client.read_artifacts(artifact_filter=mine)
        return LastRun(client.read_flow_run(run.id), sorted(found, key=lambda task: str(task.start_time)), artifacts)


def _without_suffix(name: str) -> str:
    head, _, tail = name.rpartition("-")
    return head if head and len(tail) == 3 else name
