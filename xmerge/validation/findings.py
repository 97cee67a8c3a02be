"""What validation has found: values with a stable code, a text and a remedy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from xmerge.errors import InvalidMergeError
from xmerge.values import Value

Severity = Literal["error", "warning"]
MOST_SHOWN = 10
NEXT_LINE = "\n      "


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
            shown = errors[:MOST_SHOWN]
            remedies = list(dict.fromkeys(finding.remedy for finding in shown))
            # Each its own, unless one does for all of them.
            one = remedies[0] if len(remedies) == 1 else None
            told = [f"\n    {each.code}: {each.text}{'' if one else f'{NEXT_LINE}do: {each.remedy}'}" for each in shown]
            told += [f"\n    and {len(errors) - MOST_SHOWN} more"] if len(errors) > MOST_SHOWN else []
            raise InvalidMergeError(
                f"the output has {count(len(errors), 'fault')}.",
                why="".join(told),
                remedy=one or "mend what each of them names, and run the merge again.",
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
