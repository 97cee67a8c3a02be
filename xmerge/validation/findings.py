"""What validation has found: values with a stable code, a text and a remedy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from xmerge.errors import InvalidMergeError
from xmerge.values import Value

Severity = Literal["error", "warning"]


class Finding(Value):
    """One thing that is wrong."""

    code: str
    """Stable: `foreign_tensor`, `missing_tensor`, `wrong_shape`, ..."""
    text: str
    remedy: str
    tensor: str | None = None
    layer: int | None = None
    severity: Severity = "error"


class ValidationReport(Value):
    """What was checked and what was found."""

    findings: tuple[Finding, ...]
    facts: tuple[tuple[str, str], ...]
    """What was counted or checked, as (name, value)."""

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong; warnings do not count."""
        return not any(finding.severity == "error" for finding in self.findings)

    @property
    def summary(self) -> tuple[str, ...]:
        """The facts, then the findings, one line each."""
        lines = [f"{name}: {value}" for name, value in self.facts]
        return (*lines, *(f"{each.severity} {each.code}: {each.text}" for each in self.findings))

    def raise_if_invalid(self) -> None:
        """Refuse an output with errors.

        Raises:
            InvalidMergeError: Lists them.
        """
        errors = [finding for finding in self.findings if finding.severity == "error"]
        if errors:
            shown = "".join(f"\n    {finding.text}" for finding in errors[:10])
            more = f"\n    and {len(errors) - 10} more" if len(errors) > 10 else ""
            raise InvalidMergeError(
                f"the output has {count(len(errors), 'fault')}.", why=f"{shown}{more}", remedy=errors[0].remedy
            )


def count(number: int, noun: str) -> str:
    """`1 fault`, `2 faults`."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def join_reports(reports: Sequence[ValidationReport]) -> ValidationReport:
    """Several reports as one."""
    return ValidationReport(
        findings=tuple(finding for report in reports for finding in report.findings),
        facts=tuple(fact for report in reports for fact in report.facts),
    )
