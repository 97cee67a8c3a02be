"""`xmerge plan`: everything that would be done, before any weight is read."""

from __future__ import annotations

import json
from pathlib import Path

import click

from xmerge.cli.screen import print_plan
from xmerge.planning import MergePlan, summarize_plan


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
        "summary": dict(summarize_plan(made)),
        **data,
    }
