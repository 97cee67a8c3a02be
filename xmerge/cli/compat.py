"""`xmerge compat`: what of one model can cross into another, before anybody writes a recipe."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click
from rich.markup import escape
from rich.table import Table

from xmerge.cli.screen import open_console
from xmerge.planning.table import show_bytes, show_ranges

if TYPE_CHECKING:
    from xmerge.architecture import ResolvedModel
    from xmerge.compatibility import Compatibility, ComponentFit

CLASS_COLORS = {"A": "green", "B": "cyan", "C": "yellow", "D": "magenta", "E": "red", None: "dim"}
MATRIX_COMPONENTS = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn")


@click.command()
@click.argument("base", required=False)
@click.argument("donor", required=False)
@click.option("--all", "folder", metavar="DIR", type=click.Path(path_type=Path), help="Every pair of models in DIR.")
@click.option("--json", "as_json", is_flag=True, help="Print data instead of tables.")
def compat(base: str | None, donor: str | None, folder: Path | None, as_json: bool) -> None:
    """Compare DONOR with BASE: what fits exactly (A), after conversion (B), approximately (C), or not (D, E), and why.

    A model is a folder, a repository on the Hub (org/name), or the name of a popular one, such as llama-3-8b.
    """
    from xmerge.compatibility import compare_models, describe_model_named, list_model_folders

    if folder is not None:
        if base is not None:
            raise click.UsageError("--all compares every pair in a folder; leave BASE and DONOR out.")
        models = [describe_model_named(str(path)) for path in list_model_folders(folder)]
        found = [[compare_models(each, other) for other in models] for each in models]
        if as_json:
            click.echo(json.dumps([each.model_dump(mode="json") for row in found for each in row]))
        else:
            _print_matrix(found)
        return
    if base is None or donor is None:
        raise click.UsageError("name a BASE and a DONOR, or --all DIR.")
    models = [describe_model_named(base), describe_model_named(donor)]
    _print_pair(models, compare_models(*models), as_json=as_json)


def _print_pair(models: list[ResolvedModel], found: Compatibility, *, as_json: bool) -> None:
    from xmerge.compatibility import write_recipe

    recipe = write_recipe(found, *(model.location.reference for model in models))
    if as_json:
        click.echo(json.dumps({**found.model_dump(mode="json"), "recipe": recipe}))
        return
    console = open_console()
    console.print(
        f"[bold]{escape(found.donor)}[/bold] ({found.donor_kind}, {found.donor_layers} layers) into "
        f"[bold]{escape(found.base)}[/bold] ({found.base_kind}, {found.base_layers} layers)\n"
    )
    table = Table("component", "layers", "class", "size", "read of the donor", "why", box=None, pad_edge=False)
    for each in found.components:
        table.add_row(*map(escape, _draw_component(each)), style=CLASS_COLORS[each.grade])
    console.print(table)
    if found.dropped:
        console.print(f"\n[yellow]dropped[/yellow] from {escape(found.donor)}: {escape(', '.join(found.dropped))}")
    _print_legend()
    if recipe is None:
        console.print("\nNo recipe: nothing of attention or feed-forward crosses exactly or by conversion.")
    else:
        console.print("\nA recipe to start from:\n")
        click.echo(recipe)


def _draw_component(each: ComponentFit) -> tuple[str, ...]:
    why = "; ".join([*each.steps, *each.reasons])
    read = show_bytes(each.donor_bytes) if each.donor_bytes else "-"
    return (each.component, show_ranges(each.layers) or "-", each.grade or "-", show_bytes(each.nbytes), read, why)


def _print_matrix(found: list[list[Compatibility]]) -> None:
    console = open_console()
    table = Table("base \\ donor", *(escape(each.donor) for each in found[0]), box=None, pad_edge=False)
    for row in found:
        table.add_row(escape(row[0].base), *(_draw_cell(each) for each in row))
    console.print(table)
    console.print("\nEach cell: the worst class of q, k, v, o and the feed-forward.")
    _print_legend()


def _draw_cell(found: Compatibility) -> str:
    drawn = ""
    for name in MATRIX_COMPONENTS:
        grades = [
            each.grade
            for each in found.components
            if any(role == name or (name == "ffn" and role.startswith("ffn_")) for role in each.component.split("+"))
            and each.grade
        ]
        worst = max(grades, default=None)
        drawn += f"[{CLASS_COLORS[worst]}]{worst or '-'}[/]"
    return drawn


def _print_legend() -> None:
    from xmerge.architecture.differences import CLASS_NAMES

    told = ", ".join(f"[{CLASS_COLORS[grade]}]{grade}[/] {name}" for grade, name in CLASS_NAMES.items())
    open_console().print(f"\n{told}, - only the base has it and it stays.")
