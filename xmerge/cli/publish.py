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
def publish(folder: Path, repo: str, public: bool, revision: str | None) -> None:
    """Verify the checkpoint in DIR and upload it to REPO (org/name) on the Hub."""
    from xmerge import hub
    from xmerge.provenance import read_provenance
    from xmerge.validation import verify

    report = verify(folder)
    if not report.ok:
        print_report(report)
    report.raise_if_invalid()
    fingerprint = str((read_provenance(folder) or {}).get("plan_fingerprint", ""))
    message = f"xmerge: {folder.resolve().name}" + (f" ({fingerprint[:12]})" if fingerprint else "")
    uploaded = hub.upload_folder(folder, repo, private=not public, branch=revision, message=message)
    click.echo(f"published: {uploaded.url}")
