"""`xmerge verify`: whether a checkpoint, whoever wrote it, is whole."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from xmerge.cli.screen import print_report
from xmerge.errors import InvalidMergeError

if TYPE_CHECKING:
    from xmerge.architecture import ResolvedModel


@click.command()
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
@click.option("--base", help="A folder or repository whose architecture it should have.")
@click.option("--skip-trial-load", is_flag=True, help="Do not load it with transformers.")
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
def verify(folder: Path, base: str | None, skip_trial_load: bool, as_json: bool) -> None:
    """Check the checkpoint in DIR: tensors, shapes, dtypes, numbers, config, index and digests; then load it."""
    from xmerge.validation import verify as run

    report = run(folder, describe_base(base) if base else None, trial=not skip_trial_load)
    if as_json:
        click.echo(report.model_dump_json())
    else:
        print_report(report)
    if not report.ok:
        raise click.exceptions.Exit(InvalidMergeError.exit_code)


def describe_base(text: str) -> ResolvedModel:
    """The model that a base is named by."""
    from xmerge.architecture import describe_model
    from xmerge.config import parse_reference
    from xmerge.sources import locate_model

    return describe_model(locate_model(parse_reference(text)))
