"""Drawing on a terminal: tables and reports in colour there, plain text elsewhere."""

from __future__ import annotations

from rich.console import Console
from rich.markup import escape
from rich.table import Table
from typing_extensions import override

from xmerge.planning import PLAN_COLUMNS, MergePlan, draw_plan, summarize_plan, tell_layer_map
from xmerge.planning.table import show_bytes
from xmerge.validation.findings import ValidationReport, count

PLAIN_WIDTH = 160
COLORS = {"keep": "dim", "copy": "cyan", "convert": "yellow"}


class _Printer(Console):
    """A console whose reader may go away (`xmerge plan ... | head`): that is no failure."""

    @override
    def on_broken_pipe(self) -> None:
        raise BrokenPipeError


def open_console() -> Console:
    """A console that wraps at the terminal's width, and at a fixed one where there is no terminal."""
    console = _Printer(highlight=False)
    return console if console.is_terminal else _Printer(highlight=False, width=PLAIN_WIDTH)


def print_plan(plan: MergePlan) -> None:
    """The plan, for a person."""
    console = open_console()
    target = plan.models[plan.target]
    console.print(f"[bold]{escape(plan.title)}[/bold]")
    console.print(f"The output is a {target.kind} model, with the config and tokenizer of {escape(target.label)}.\n")
    console.print(_draw_models(plan))
    table = Table(*PLAN_COLUMNS, box=None, header_style="bold", pad_edge=False)
    for row in draw_plan(plan):
        table.add_row(*map(escape, row), style=COLORS.get(row[4].split()[0], "green"))
    console.print(table)
    console.print()
    for meeting in tell_layer_map(plan):
        console.print(f"[cyan]layers[/cyan] of {escape(meeting)}")
    for model in plan.models:
        if model.dropped:
            console.print(f"[yellow]dropped[/yellow] from {escape(model.label)}: {escape(', '.join(model.dropped))}")
    for warning in plan.warnings:
        console.print(f"[yellow]warning[/yellow] {escape(warning)}")
    for edit in plan.config_edits:
        console.print(f"[cyan]config.json[/cyan] {escape(edit)}")
    summary = Table(box=None, show_header=False, pad_edge=False)
    for name, value in summarize_plan(plan):
        summary.add_row(name, escape(value))
    console.print(summary)


def print_report(report: ValidationReport) -> None:
    """A validation report, for a person."""
    console = open_console()
    table = Table(box=None, show_header=False, pad_edge=False)
    for name, value in report.facts:
        table.add_row(name, escape(value))
    console.print(table)
    for finding in report.findings:
        color = "red" if finding.severity == "error" else "yellow"
        console.print(f"[{color}]{finding.severity} {finding.code}[/{color}] {escape(finding.text)}")
        console.print(f"  do: {escape(finding.remedy)}")
    console.print("[green]valid[/green]" if report.ok else "[red]not valid[/red]")


def _draw_models(plan: MergePlan) -> Table:
    table = Table("model", "family", "layers", "used", "from", box=None, header_style="bold", pad_edge=False)
    for index, model in enumerate(plan.models):
        part = " (architecture)" if index == plan.target else ""
        origin = f"{model.repo}@{model.commit}" if model.repo else str(model.folder)
        origin = origin if model.made_of is None else "an earlier stage"
        used = f"{show_bytes(model.bytes_used)} in {count(len(model.files), 'file')}"
        table.add_row(escape(model.label) + part, model.kind, str(model.layers), used, escape(origin))
    table.add_section()
    table.add_row()
    return table
