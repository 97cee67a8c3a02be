"""The page `validation`: what was checked, and each finding with what to do about it."""

from __future__ import annotations

from prefect.artifacts import create_markdown_artifact

from tasks.markdown import draw_table, escape
from tasks.pages.showing import name_key, try_to_show
from xmerge.validation import ValidationReport
from xmerge.validation.findings import count

MOST_FINDINGS = 200


def show_validation(report: ValidationReport, series: str) -> None:
    """Show the verdict, the facts and the findings."""
    key, told = name_key("validation", series), f"{tell_verdict(report)}, {count(len(report.findings), 'finding')}"
    try_to_show("validation report", lambda: create_markdown_artifact(draw_report(report), key=key, description=told))


def tell_verdict(report: ValidationReport) -> str:
    """`valid`, or not."""
    return "valid" if report.ok else "not valid"


def draw_report(report: ValidationReport) -> str:
    """The report as Markdown."""
    verdict = f"The output is **{tell_verdict(report)}**."
    facts = [f"- {escape(name)}: {escape(value)}" for name, value in report.facts]
    findings = draw_table(
        ("", "finding", "what", "what to do"),
        [(found.severity, found.code, found.text, found.remedy) for found in report.findings[:MOST_FINDINGS]],
    )
    more = len(report.findings) - MOST_FINDINGS
    told = [findings if report.findings else "No findings.", *([f"\nand {more} more findings."] if more > 0 else [])]
    return "\n".join([verdict, "", *facts, "", *told])
