"""Many recipes from a terminal: `python -m flows.merge_many RECIPES... OUT`, in a checkout."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import click

from flows.command import run_flow
from flows.server.settings import apply_settings
from xmerge.cli.merge import task_runner_option
from xmerge.cli.progress import choose_reporter
from xmerge.errors import XmergeError
from xmerge.many import BatchOutcome, tell_disk
from xmerge.runners import check_runner, parse_runner


@click.command()
@click.argument("recipes", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N.")
@click.option("--workers", type=click.IntRange(min=1), default=2, show_default=True, help="Layers under way at once.")
@click.option("--store", type=click.Path(path_type=Path), help="Keep finished layers here.")
@task_runner_option
@click.option("--skip-trial-load", is_flag=True, help="Do not load the outputs with transformers.")
@click.option("--json", "as_json", is_flag=True, help="Print the outcome as one line of JSON.")
@click.option("--quiet", is_flag=True, help="Say only what should not be missed.")
def merge_recipes(
    recipes: tuple[Path, ...],
    out: Path,
    device: str,
    workers: int,
    store: Path | None,
    task_runner: str,
    skip_trial_load: bool,
    as_json: bool,
    quiet: bool,
) -> None:
    """Merge RECIPES, and those in folders among them, each into a folder of its own in OUT."""
    apply_settings()
    parameters = {
        "recipes": [str(recipe.absolute()) for recipe in recipes],
        "out": str(out.absolute()),
        "device": device,
        "workers": workers,
        "store": str(store.absolute()) if store else "",
        "trial": not skip_trial_load,
        "task_runner": task_runner,
    }
    try:
        check_runner(parse_runner(task_runner))
        with choose_reporter(quiet=quiet) as reporter:
            outcome = run_flow("flows.many", "merge_many", parameters, reporter)
    except XmergeError as error:
        click.echo(f"{type(error).__name__}: {error}", err=True)
        sys.exit(error.exit_code)
    _tell(outcome, as_json=as_json)
    sys.exit(outcome["exit_code"])


def _tell(outcome: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps(outcome))
        return
    batch = BatchOutcome.model_validate({key: outcome[key] for key in BatchOutcome.model_fields})
    for each in batch.recipes:
        if each.error:
            click.echo(f"{each.recipe}: {each.outcome}\n  {each.error}")
        else:
            click.echo(f"{each.recipe}: {each.outcome}, {each.made} layers made, {each.reused} reused")
    for name, value in tell_disk(batch):
        click.echo(f"{name}: {value}")


if __name__ == "__main__":
    merge_recipes()
