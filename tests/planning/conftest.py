"""A bench for planning: fake checkpoints in a folder, and the plan of a configuration beside them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.fake_checkpoints import Tensors, write_fake, write_headers
from xmerge.architecture import resolve
from xmerge.config import parse_config
from xmerge.errors import XmergeError
from xmerge.planning import MergePlan, TensorPlan, map_slices


@dataclass(frozen=True)
class Bench:
    """A folder of fake checkpoints; configurations name them by their folders."""

    folder: Path

    def write(self, name: str, family: str = "llama", *, extra: Tensors | None = None, **config: Any) -> Path:
        """A fake checkpoint of a family, as `tests.fake_checkpoints.write_fake` makes it."""
        return write_fake(self.folder / name, family, extra=extra, **config)

    def write_unknown(self, name: str, tensors: Tensors, **config: Any) -> Path:
        """A fake checkpoint that no family file describes."""
        return write_headers(
            self.folder / name, {"model_type": "unheard-of", "num_hidden_layers": 2, **config}, tensors
        )

    def plan(self, text: str) -> MergePlan:
        """The plan of a configuration."""
        config = parse_config(text, "recipe.yml", self.folder)
        return map_slices(config, resolve(config))

    def refuse(self, text: str, code: int = 2) -> XmergeError:
        """The error that a configuration is refused with, by the exit code that it should have."""
        with pytest.raises(XmergeError) as caught:
            self.plan(text)
        assert caught.value.exit_code == code, str(caught.value)
        return caught.value


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    """An empty folder to write checkpoints in and plan with."""
    return Bench(tmp_path)


def tensors_of(plan: MergePlan) -> dict[str, TensorPlan]:
    """The plan's tensors by name."""
    return {tensor.name: tensor for tensor in plan.tensors}


def decisions_of(plan: MergePlan, part: str) -> set[str]:
    """What is decided for the tensors with a part in their name."""
    found: set[str] = {tensor.decision for tensor in plan.tensors if part in tensor.name}
    assert found, part
    return found
