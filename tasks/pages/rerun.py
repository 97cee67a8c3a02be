"""How to carry out the running merge once more: it resumes what was interrupted, and finds what is finished."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from typing import Any

from prefect.context import FlowRunContext

from tasks.markdown import draw_code
from tasks.recipes import is_recipe_text

OPTIONS = {
    "device": "--device",
    "workers": "--workers",
    "store": "--store",
    "seed": "--seed",
    "fetch": "--fetch",
    "task_runner": "--task-runner",
}
"""What the parameters of `merge_models` are called on the command line."""


def tell_rerun() -> str:
    """Markdown: how to carry out the running flow again."""
    context = FlowRunContext.get()
    if context is None or context.flow_run is None or context.flow is None:
        return ""
    if context.flow_run.deployment_id is not None:
        told = "**Retry**, in the menu of the run's page, or"
        return f"{told}\n\n{draw_code([f'prefect flow-run retry {context.flow_run.id}'])}"
    fields = context.flow.parameters.properties
    defaults = {name: field.get("default") for name, field in fields.items()}
    words = list_words(context.parameters or {}, defaults) if context.flow.name == "merge_models" else None
    return draw_code([shlex.join(words)]) if words else "Start the same flow with the same parameters."


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
