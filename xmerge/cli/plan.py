"""`xmerge plan`: everything that would be done, before any weight is read."""

from __future__ import annotations

import json
from pathlib import Path

import click

from xmerge.cli.screen import print_plan
from xmerge.planning import MergePlan, summarize_plan
from xmerge.planning.downloads import FETCH_MODES, Download, list_downloads


@click.command()
@click.argument("config", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print the whole plan as data, tensor by tensor.")
def plan(config: Path, as_json: bool) -> None:
    """Show every decision of the merge in CONFIG, with sizes; no weight is read or fetched."""
    made = make_plan(config)
    if as_json:
        click.echo(json.dumps(describe_plan(made)))
    else:
        print_plan(made)


def make_plan(path: Path, seed: int | None = None) -> MergePlan:
    """The plan of the configuration in a file."""
    from xmerge.architecture import resolve
    from xmerge.config import load_config
    from xmerge.planning import map_slices

    config = load_config(path)
    if seed is not None:
        config = config.model_copy(update={"random_seed": seed})
    return map_slices(config, resolve(config))


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
