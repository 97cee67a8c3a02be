"""`xmerge verify`: whether a checkpoint, whoever wrote it, is whole."""

from __future__ import annotations

from pathlib import Path

import click

from xmerge.cli.screen import print_report
from xmerge.errors import InvalidMergeError


@click.command()
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
@click.option("--base", help="A folder or repository whose architecture it should have.")
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
def verify(folder: Path, base: str | None, as_json: bool) -> None:
    """Check the checkpoint in DIR: tensors, shapes, dtypes, numbers, config, index and digests; then load it."""
    from xmerge.validation import verify as run

    report = run(folder, describe_base(base) if base else None)
    if as_json:
        click.echo(report.model_dump_json())
    else:
        print_report(report)
    if not report.ok:
        raise click.exceptions.Exit(InvalidMergeError.exit_code)


def describe_base(text: str):  # type: ignore[no-untyped-def]  # noqa: ANN201 - the type would import the library early
    """The model that a base is named by."""
    from xmerge.architecture import describe_model
    from xmerge.config import ModelReference
    from xmerge.config.schema import parse_model_reference
    from xmerge.sources import locate_model

    return describe_model(locate_model(ModelReference.model_validate(parse_model_reference(text))))
