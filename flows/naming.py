"""What a run is called and found by: its name, its tags, and the series of runs that it is compared with."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from prefect import runtime
from prefect.client.orchestration import get_client
from prefect.context import FlowRunContext

from flows.reporting import RunWatch, find_run_id
from tasks.markdown import show_plain
from tasks.pages.showing import try_to_show
from xmerge.planning import MergePlan
from xmerge.runners import RunnerName

MOST_DONORS = 3
"""Of those that a name lists."""
LONGEST_PART = 40
"""Signs of a model's or output's name, or of a tag."""
MOST_TAGS = 12
DIGITS = 8
"""Of the plan's fingerprint: the same in two runs that make the same bytes."""


def name_series(watch: RunWatch, out: Path) -> str:
    """What the runs have in common whose pages are versions of each other: the output's name, if nothing is said."""
    return watch.series or Path(os.path.abspath(out)).name


def name_unplanned() -> str:
    """`merge → output`: what a run is called until it is known what it merges."""
    out = str(runtime.flow_run.parameters.get("out", ""))
    return f"merge → {_shorten(Path(os.path.abspath(out)).name)}"


def name_run(plan: MergePlan, series: str, device: str, runner: RunnerName) -> str:
    """Give the running flow a name that says what it merges, and tags to find it by; the name."""
    name = draw_name(plan, series)
    tags = list(dict.fromkeys([*_list_own_tags(), *list_tags(plan, device, runner)]))
    try_to_show("run's name", lambda: get_client(sync_client=True).update_flow_run(find_run_id(), name=name, tags=tags))
    return name


def draw_name(plan: MergePlan, series: str) -> str:
    """`slerp base + donor → output · 1f3a9c02`."""
    donors = [model.label for index, model in enumerate(plan.models) if index != plan.target]
    labels = [_shorten(label) for label in (plan.models[plan.target].label, *donors[:MOST_DONORS])]
    labels += [f"{len(donors) - MOST_DONORS} more"] if len(donors) > MOST_DONORS else []
    return f"{plan.method} {' + '.join(labels)} → {_shorten(series)} · {plan.fingerprint[:DIGITS]}"


def list_tags(plan: MergePlan, device: str, runner: RunnerName) -> list[str]:
    """The method, the families of all models, and where they are merged, each once and in this order."""
    kinds = [plan.models[plan.target].kind, *(model.kind for model in plan.models)]
    tags = [plan.method, *kinds, *_list_places(device, runner)]
    return list(dict.fromkeys(filter(None, map(_shorten, tags))))[:MOST_TAGS]


def _list_places(device: str, runner: RunnerName) -> list[str]:
    """The cluster, if there is one, and the device; what `auto` means on a cluster, only its workers know."""
    cluster = [runner.kind] if runner.is_cluster else []
    if device != "auto" or cluster:
        return [*cluster, *([device] if device != "auto" else [])]
    from xmerge.engine.devices import choose_device

    return [choose_device(device).type]


def _shorten(text: str) -> str:
    return show_plain(text, LONGEST_PART).strip()


def _list_own_tags() -> Sequence[str]:
    """Those that the run has already, of its deployment above all."""
    context = FlowRunContext.get()
    return context.flow_run.tags if context and context.flow_run else []
