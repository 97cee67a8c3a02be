"""What the guides show works as it stands there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from tests.fake_checkpoints import write_fake
from xmerge.architecture import Family, resolve
from xmerge.architecture.models import describe_checkpoint
from xmerge.checkpoints import read_checkpoint
from xmerge.config import parse_config
from xmerge.planning import map_slices
from xmerge.sources import Location

ROOT = Path(__file__).resolve().parents[1]


def read_yaml(name: str) -> str:
    """The first YAML of a page."""
    found = re.search(r"```yaml\n(.*?)```", (ROOT / name).read_text(encoding="utf-8"), re.DOTALL)
    assert found is not None
    return found[1]


def test_the_first_recipe_plans_as_it_stands(tmp_path):
    """A Llama of 32 layers takes v and o of a Qwen3 of 36, and nothing else changes."""
    write_fake(tmp_path / "my-llama", num_hidden_layers=32)
    write_fake(tmp_path / "my-qwen3", "qwen3", num_hidden_layers=36)
    config = parse_config(read_yaml("README.md"), "recipe.yml", tmp_path)
    plan = map_slices(config, resolve(config))
    merged = {tensor.role for tensor in plan.tensors if tensor.decision == "merge"}
    assert merged == {"attn_v", "attn_output"}
    assert {tensor.decision for tensor in plan.tensors if tensor.role not in merged} == {"keep"}


@pytest.mark.slow
def test_the_family_of_the_guide_describes_what_transformers_writes(tmp_path):
    """Every tensor that the class of transformers saves has a role in the file, and the shape that goes with it."""
    from tests.tiny_models import build_tiny, list_kinds

    family = Family.model_validate(yaml.safe_load(read_yaml("docs/adding-a-family.md")))
    for number, kind in enumerate(list_kinds(family)):
        folder = build_tiny(family, kind).write(tmp_path / str(number))
        location = Location(reference="model", label="model", folder=folder)
        described = describe_checkpoint(location, read_checkpoint(folder, "model"), family)
        assert [spec.name for spec in described.tensors if spec.role is None] == []
