"""What a command says to a person."""

from __future__ import annotations

from flows.reporting import LogReporter


class Notes(LogReporter):
    """Keeps it."""

    def __init__(self) -> None:
        self.said = list[str]()

    def note(self, text: str) -> None:
        """Keep one more."""
        self.said.append(text)
