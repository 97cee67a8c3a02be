"""`xmerge publish`: upload a checkpoint that has been verified."""

from __future__ import annotations

from pathlib import Path

import click

from xmerge.cli.screen import print_report


@click.command()
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
@click.argument("repo")
@click.option("--public", is_flag=True, help="Create the repository public; default: private.")
@click.option("--revision", metavar="BRANCH", help="Upload to this branch instead of the main one.")
@click.option(
    "--acknowledge",
    metavar="LICENCE",
    multiple=True,
    help="Publish although the words of this licence forbid it; may be given more than once.",
)
@click.option("--skip-trial-load", is_flag=True, help="Do not load it with transformers before it is uploaded.")
def publish(
    folder: Path,
    repo: str,
    public: bool,
    revision: str | None,
    acknowledge: tuple[str, ...],
    skip_trial_load: bool,
) -> None:
    """Verify the checkpoint in DIR and upload it to REPO (org/name) on the Hub.

    The branch gets all of it or nothing. Run the same command again to finish an interrupted upload.
    """
    from xmerge.publishing import publish_verified
    from xmerge.validation import verify

    report = verify(folder, trial=not skip_trial_load)
    if not report.ok:
        print_report(report)
    report.raise_if_invalid()
    uploaded = publish_verified(folder, repo, private=not public, branch=revision, acknowledged=acknowledge)
    told = "published" if uploaded.changed else "nothing to upload, all of it is there already"
    click.echo(f"{told}: {uploaded.url}")
