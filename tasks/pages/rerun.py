"""How to carry out the running merge once more: it resumes what was interrupted, and finds what is finished."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from prefect.context import FlowRunContext

from tasks.markdown import draw_code
from tasks.recipes import is_recipe_text
from xmerge.provenance import CONFIG_COPY_NAME

MERGE = "merge_models"
OPTIONS = {
    "device": "--device",
    "workers": "--workers",
    "store": "--store",
    "seed": "--seed",
    "fetch": "--fetch",
    "task_runner": "--task-runner",
}
"""What the parameters of the flow `merge_models` are called on the command line."""


def tell_resume() -> str:
    """Markdown: how to carry out the running flow again."""
    context = FlowRunContext.get()
    run = context.flow_run if context else None
    if run is not None and run.deployment_id is not None:
        command = draw_code([f"prefect flow-run retry {run.id}"])
        return f"choose **Retry** in the menu of the run's page, or call\n\n{command}"
    words = _find_words()
    return f"call\n\n{draw_code([shlex.join(words)])}" if words else "start the same flow with the same parameters."


def tell_again(out: Path) -> str:
    """Markdown: the command that makes an output of the running flow; nothing where the flow makes none."""
    context = FlowRunContext.get()
    if context is None or context.flow is None or context.flow.name != MERGE:
        return ""
    words = _find_words() or ["xmerge", "merge", str(out / CONFIG_COPY_NAME), "ANOTHER_FOLDER"]
    return draw_code([shlex.join(words)])


def _find_words() -> list[str] | None:
    context = FlowRunContext.get()
    if context is None or context.flow is None or context.flow.name != MERGE:
        return None
    defaults = {name: field.get("default") for name, field in context.flow.parameters.properties.items()}
    return list_words(context.parameters or {}, defaults)


def list_words(parameters: Mapping[str, Any], defaults: Mapping[str, Any]) -> list[str] | None:
    """The command that calls `merge_models` with these parameters; None where the recipe is no file."""
    recipe = str(parameters.get("recipe") or "")
    if not recipe or is_recipe_text(recipe):
        return None
    words = ["xmerge", "merge", recipe, str(parameters["out"])]
    for name, option in OPTIONS.items():
        value = parameters.get(name)
        if value is not None and value != defaults.get(name):
            words += [option, str(value)]
    return words if parameters.get("trial", True) else [*words, "--skip-trial-load"]
