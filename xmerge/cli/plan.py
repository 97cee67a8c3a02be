"""`xmerge plan`: everything that would be done, before any weight is read."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from xmerge.cli.screen import print_plan
from xmerge.planning import MergePlan, summarize_plan
from xmerge.planning.downloads import FETCH_MODES, Download, list_downloads

if TYPE_CHECKING:
    from xmerge.stages import Stage


@click.command()
@click.argument("config", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print the whole plan as data, tensor by tensor.")
def plan(config: Path, as_json: bool) -> None:
    """Show every decision of the merge in CONFIG, with sizes; no weight is read or fetched."""
    made = make_plans(config, Path("OUT"))
    if as_json:
        click.echo(json.dumps(describe_plans(made)))
        return
    for number, stage in enumerate(made, start=1):
        if len(made) > 1:
            click.echo(f"stage {number} of {len(made)}: {stage.name or 'the output'}\n")
        print_plan(stage.plan)
        if number < len(made):
            click.echo()


def make_plans(path: Path, out: Path, seed: int | None = None) -> tuple[Stage, ...]:
    """The stages of the configuration in a file, planned; mostly it is the one."""
    from xmerge.config import load_stages
    from xmerge.stages import plan_stages

    configs = load_stages(path)
    if seed is not None:
        configs = tuple(config.model_copy(update={"random_seed": seed}) for config in configs)
    return plan_stages(configs, out)


def describe_plans(stages: Sequence[Stage]) -> dict[str, object]:
    """The output's plan as data, with those of the stages before it, if there are any."""
    *earlier, last = stages
    described = describe_plan(last.plan)
    if earlier:
        described["stages"] = [{"name": stage.name, **describe_plan(stage.plan)} for stage in earlier]
    return described


def describe_plan(made: MergePlan) -> dict[str, object]:
    """A plan as data, with its fingerprints and sums."""
    data = made.model_dump(mode="json")
    for layer, described in zip(made.layers, data["layers"], strict=True):
        described["fingerprint"] = layer.fingerprint
    return {
        "fingerprint": made.fingerprint,
        "title": made.title,
        "bytes_read": sum(layer.bytes_read for layer in made.layers),
        "bytes_copied": sum(layer.bytes_copied for layer in made.layers),
        "bytes_written": made.bytes_written,
        "downloads": [describe_download(made, each) for each in list_downloads(made)],
        "summary": dict(summarize_plan(made)),
        **data,
    }


def describe_download(made: MergePlan, download: Download) -> dict[str, object]:
    """A shard on the Hub that a merge reads, as data: its size, and the bytes that each way would fetch."""
    model = made.models[download.model]
    return {
        "repo": model.repo,
        "commit": model.commit,
        "file": download.file,
        "bytes": download.size,
        "bytes_used": download.used,
        "cached": download.cached,
        "bytes_fetched": {mode: download.bytes_fetched(mode) for mode in FETCH_MODES},
    }
