"""`xmerge compat`: what of one model can cross into another, before anybody writes a recipe."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text

from xmerge.cli.screen import open_console
from xmerge.planning.table import show_bytes, show_ranges

if TYPE_CHECKING:
    from xmerge.compatibility import Compatibility, ComponentFit, Matrix, Report
    from xmerge.compatibility.comparison import ComparedModel

COLORS = {"A": "green", "B": "cyan", "C": "yellow", "D": "magenta", "E": "red", "-": "dim", "?": "dim"}
ORIGINS = {
    "config.json": "no weights are here; the shapes are what config.json implies.",
    "pickle": "its weights are pickle files, which xmerge never opens, because unpickling runs code from the file; the "
    "shapes are what config.json implies. To merge it, load it with transformers and save it again with "
    "save_pretrained, which writes safetensors.",
    "table": "from the bundled table of popular models; the shapes are what config.json implies.",
}
NORMS = "Norms and embeddings that fit belong to their own model all the same; the recipe leaves them to the base."
JOINED = "joined with "
WIDEST = 24
"""Columns of a narrow terminal that names may take without being folded."""


@click.command()
@click.argument("base", required=False)
@click.argument("donor", required=False)
@click.option("--all", "folder", metavar="DIR", type=click.Path(path_type=Path), help="Every pair of models in DIR.")
@click.option("--json", "as_json", is_flag=True, help="Print data instead of tables.")
def compat(base: str | None, donor: str | None, folder: Path | None, as_json: bool) -> None:
    """Compare DONOR with BASE: what fits exactly (A), after conversion (B), approximately (C), or not (D, E), and why.

    A model is a folder, a repository on the Hub (org/name), or the name of a popular one, such as llama-3-8b. Nothing
    but config.json and headers is read; a folder may hold a config.json alone.
    """
    from xmerge.compatibility import compare_folder, describe_models_named, report_on

    if folder is not None:
        if base is not None:
            raise click.UsageError("--all compares every pair in a folder; leave BASE and DONOR out.")
        matrix = compare_folder(folder)
        click.echo(json.dumps(matrix.model_dump(mode="json"))) if as_json else _print_matrix(matrix)
        return
    if base is None or donor is None:
        raise click.UsageError("name a BASE and a DONOR, or --all DIR.")
    report = report_on(*describe_models_named([base, donor]))
    click.echo(json.dumps(report.model_dump(mode="json"))) if as_json else _print_report(report)


class _Row(NamedTuple):
    """What components of a row have in common."""

    grade: str
    layers: tuple[int, ...]
    notes: tuple[str, ...]


def _print_report(report: Report) -> None:
    console, found = open_console(), report.compatibility
    _print_head(console, found)
    console.print()
    for sentence in report.summary:
        console.print(_plain(sentence))
    console.print()
    rows = _join_rows(found.components)
    notes = list(dict.fromkeys(note for row in rows for note in row.notes))
    console.print(_draw_table(rows, notes))
    console.print()
    for number, note in enumerate(notes, 1):
        console.print(_hang(str(number), note))
    if notes:
        console.print()
    _print_legend(console)
    console.print(
        "-: only the base has it, and it stays. Size: bytes in the base. Read: bytes that a merge reads of the donor."
    )
    if found.dropped:
        console.print(_plain(f"Dropped, because the base has no place for it: {', '.join(found.dropped)}."))
    if found.base.known:
        console.print(NORMS)
    console.print()
    if report.recipe is None:
        console.print(_tell_no_recipe(found))
    else:
        console.print("A recipe to start from:\n")
        click.echo(report.recipe)


def _tell_no_recipe(found: Compatibility) -> str:
    if not found.base.known:
        return "No recipe: no tensor of the two matches."
    told = "No recipe: nothing of attention or feed-forward crosses exactly or by conversion."
    approximate = any(each.is_projection and each.grade == "C" for each in found.components)
    return f"{told} What has class C merges where a recipe names it, and is then approximate." if approximate else told


def _print_head(console: Console, found: Compatibility) -> None:
    sides = [(_plain(each.label, "bold"), f"({each.kind}, {each.layers} layers)") for each in (found.donor, found.base)]
    (donor, of_donor), (base, of_base) = sides
    console.print(Text.assemble(donor, " ", _plain(of_donor), " into ", base, " ", _plain(of_base)))
    _print_facts(console, (found.base, found.donor))


def _print_facts(console: Console, models: Sequence[ComparedModel]) -> None:
    """What a person should know before the table: on what it rests, and what cannot be merged at all."""
    for origin, told in ORIGINS.items():
        labels = [each.label for each in models if each.origin == origin]
        if labels:
            console.print(_plain(f"{', '.join(labels)}: {told}"))
    for each in models:
        if each.packed is not None:
            told = "what is packed cannot be merged."
            if each.origin != "headers":
                told += " Only headers tell what is; here every matrix of its layers counts as packed."
            console.print(_plain(f"{each.label}: its weights are packed ({each.packed}); {told}"))


def _join_rows(components: Sequence[ComponentFit]) -> dict[_Row, list[ComponentFit]]:
    """Components that are alike in class, layers and notes, joined where the first of them stands."""
    rows: dict[_Row, list[ComponentFit]] = {}
    for each in components:
        rows.setdefault(_Row(each.grade or "-", each.layers, tuple(_list_notes(each))), []).append(each)
    return rows


def _list_notes(each: ComponentFit) -> Iterator[str]:
    """What a person should know of it; that the donor calls it otherwise is nothing."""
    joined = [step.removeprefix(JOINED) for step in each.steps if step.startswith(JOINED)]
    if joined:
        yield f"converted: {JOINED}{', '.join(joined)}"
    for step in each.steps:
        if not step.startswith(("named ", JOINED)) and not step.endswith(tuple(f" from {name}" for name in joined)):
            yield f"converted: {step.removeprefix(f'{each.component} ')}"
    yield from each.reasons


def _draw_table(rows: dict[_Row, list[ComponentFit]], notes: Sequence[str]) -> Table:
    words = [word for alike in rows.values() for each in alike for word in f"{each.component},".split()]
    table = Table(box=None, pad_edge=False)
    table.add_column("component", overflow="fold", min_width=min(WIDEST, max(map(len, words))))
    for heading in ("layers", "class", "size", "read", "notes"):
        table.add_column(heading, overflow="fold")
    for row, alike in rows.items():
        read = sum(each.donor_bytes for each in alike)
        cells = (
            ", ".join(each.component for each in alike),
            show_ranges(row.layers) or "-",
            row.grade,
            show_bytes(sum(each.nbytes for each in alike)),
            show_bytes(read) if read else "-",
            ", ".join(str(1 + notes.index(note)) for note in row.notes) or "-",
        )
        table.add_row(*map(_plain, cells), style=COLORS[row.grade])
    return table


def _print_matrix(matrix: Matrix) -> None:
    from xmerge.compatibility.matrix import PARTS

    console = open_console()
    for donors in _divide(matrix, console.width):
        console.print(_draw_block(matrix, donors))
        console.print()
    for broken in matrix.unreadable:
        told = " ".join(part for part in (broken.what, broken.why) if part)
        console.print(_hang("-", f"{broken.folder}: {told}"))
    for model in matrix.models:
        if model.unknown is not None:
            console.print(
                _plain(f"{model.label}: {model.unknown}; it is compared by name, with models of its own type.")
            )
    _print_facts(console, matrix.models)
    console.print(
        f"Rows are bases; columns are donors, by the numbers of their rows. Each cell: the worst class of "
        f"{', '.join(PARTS)}. One letter alone: of all that matches by name."
    )
    _print_legend(console)
    console.print("-: the base has no such part. ?: of one of the two nobody knows what its tensors do.")


def _divide(matrix: Matrix, width: int) -> Iterator[range]:
    """The donors in groups, each as many as a terminal of this width has columns for beside the names of the bases."""
    from xmerge.compatibility.matrix import PARTS

    count = len(matrix.models)
    name = max(len(_plain(each.label)) for each in matrix.models)
    room = width - len(str(count)) - 2 - min(name, max(width // 3, WIDEST))
    step = max(1, room // (len(PARTS) + 2))
    for first in range(0, count, step):
        yield range(first, min(first + step, count))


def _draw_block(matrix: Matrix, donors: Sequence[int]) -> Table:
    table = Table(box=None, pad_edge=False)
    for heading in ("", "base \\ donor", *(str(donor + 1) for donor in donors)):
        table.add_column(heading, overflow="fold")
    for position, model in enumerate(matrix.models):
        row = matrix.row(position)
        table.add_row(str(position + 1), _plain(model.label), *(_draw_cell(row[donor]) for donor in donors))
    return table


def _draw_cell(found: Compatibility | object) -> Text:
    from xmerge.compatibility import Compatibility
    from xmerge.compatibility.matrix import grade_parts

    signs = [grade or "-" for grade in grade_parts(found)] if isinstance(found, Compatibility) else ["?"]
    return Text.assemble(*((sign, COLORS[sign]) for sign in signs))


def _print_legend(console: Console) -> None:
    from xmerge.architecture.differences import CLASS_NAMES

    told = Text(", ").join(Text.assemble((sign, COLORS[sign]), f" {name}") for sign, name in CLASS_NAMES.items())
    console.print(Text.assemble("Class: ", told, "."))


def _hang(mark: str, text: str) -> Table:
    """Text whose lines begin behind its mark."""
    table = Table.grid(padding=(0, 1))
    table.add_column(overflow="fold")
    table.add_column(overflow="fold")
    table.add_row(mark, _plain(text))
    return table


def _plain(text: str, style: str = "") -> Text:
    """Text as it is: no markup, and nothing that a terminal would act upon."""
    from xmerge.compatibility import make_printable

    return Text(make_printable(text), style)
