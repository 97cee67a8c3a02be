"""What a run tells about itself while it goes on."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from xmerge.engine.results import LayerResult
    from xmerge.planning import MergePlan


class Reporter(Protocol):
    """Whoever wants to know how far a run has come."""

    def stage(self, name: str) -> None:
        """A step begins."""

    def plan_ready(self, plan: MergePlan) -> None:
        """Everything is decided and nothing done."""

    def layer_done(self, result: LayerResult, done: int, total: int) -> None:
        """A layer is in the store."""

    def note(self, text: str) -> None:
        """Something a person may want to know."""


class Silence:
    """A reporter that tells nobody."""

    def stage(self, name: str) -> None:
        """Nothing."""

    def plan_ready(self, plan: MergePlan) -> None:
        """Nothing."""

    def layer_done(self, result: LayerResult, done: int, total: int) -> None:
        """Nothing."""

    def note(self, text: str) -> None:
        """Nothing."""
