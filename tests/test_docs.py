"""What the guides show works as it stands there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from xmerge.architecture import Family
from xmerge.architecture.models import describe_checkpoint
from xmerge.checkpoints import read_checkpoint
from xmerge.sources import Location

DOCS = Path(__file__).resolve().parents[1] / "docs"


def read_example() -> Family:
    """The family file of the worked example."""
    (text,) = re.findall(r"```yaml\n(.*?)```", (DOCS / "adding-a-family.md").read_text(encoding="utf-8"), re.DOTALL)
    return Family.model_validate(yaml.safe_load(text))


@pytest.mark.slow
def test_the_family_of_the_guide_describes_what_transformers_writes(tmp_path):
    """Every tensor that the class of transformers saves, of whatever kind, has the role and shape that the file says."""
    from tests.tiny_models import build_tiny, list_kinds

    family = read_example()
    for number, kind in enumerate(list_kinds(family)):
        folder = build_tiny(family, kind).write(tmp_path / str(number))
        location = Location(reference="model", label="model", folder=folder)
        described = describe_checkpoint(location, read_checkpoint(folder, "model"), family)
        assert [spec.name for spec in described.tensors if spec.role is None] == []
