"""Methods of other packages: named by an entry point, they are methods like any other."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.small_merges import load_weights, write_model

PAGE = Path(__file__).parents[2] / "docs" / "adding-a-method.md"
PROJECT = """\
[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"

[project]
name = "xmerge-graft"
version = "1.0"

[project.entry-points."xmerge.methods"]
graft = "graft_methods"

[tool.hatch.build.targets.wheel]
include = ["graft_methods.py"]
"""
RECIPE = """\
merge_method: graft
base_model: base
models: [{model: base}, {model: donor}]
parameters: {share: [{filter: v_proj, value: 0.25}]}
"""


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of installed packages with the worked example of the documentation in one of its own."""
    project, target = tmp_path_factory.mktemp("project"), tmp_path_factory.mktemp("site-packages")
    (project / "pyproject.toml").write_text(PROJECT, encoding="utf-8")
    (project / "graft_methods.py").write_text(read_example("graft"), encoding="utf-8")
    options = ("--quiet", "--no-deps", "--no-build-isolation", "--no-index", "--target", str(target))
    subprocess.run([sys.executable, "-m", "pip", "install", *options, str(project)], check=True)
    return target


def read_example(name: str) -> str:
    """The Python block of the documentation that defines a function."""
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    return str(next(block for block in blocks if f"def {name}(" in block))


def call(installed: Path, *words: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run xmerge where a package is installed."""
    environment = {**os.environ, "PYTHONPATH": f"{installed}{os.pathsep}{Path.cwd()}"}
    command = [sys.executable, "-m", "xmerge", *words]
    return subprocess.run(command, cwd=folder, env=environment, check=False, capture_output=True, text=True)


def test_the_worked_example_is_short():
    """A method takes under 20 lines."""
    assert all(len(read_example(name).splitlines()) < 20 for name in ("graft", "halfway"))


@pytest.mark.slow
def test_a_method_of_another_package_merges(installed: Path, tmp_path: Path):
    """Installed, it is listed, explained, planned and carried out, with its ranges checked."""
    write_model(tmp_path / "base", seed=1)
    write_model(tmp_path / "donor", seed=2)
    (tmp_path / "recipe.yml").write_text(RECIPE, encoding="utf-8")
    explained = call(installed, "methods", "graft", folder=tmp_path)
    assert "The donor's numbers where it differs most from the base." in explained.stdout, explained.stderr
    merged = call(installed, "merge", "recipe.yml", "out", "--direct", "--skip-trial-load", folder=tmp_path)
    assert merged.returncode == 0, merged.stderr
    name = "model.layers.0.self_attn.v_proj.weight"
    base, donor, out = (load_weights(tmp_path / place)[name] for place in ("base", "donor", "out"))
    taken = (out == donor) & (out != base)
    assert int(taken.sum()) == base.numel() // 4
    moved = (donor.float() - base.float()).abs()
    assert moved[taken].min() >= moved[~taken].max()
    assert torch.equal(out[~taken], base[~taken])
    (tmp_path / "recipe.yml").write_text(RECIPE.replace("0.25", "2"), encoding="utf-8")
    refused = call(installed, "plan", "recipe.yml", folder=tmp_path)
    assert refused.returncode == 2
    assert "0 to 1" in refused.stderr


@pytest.mark.slow
def test_a_package_that_cannot_be_loaded_is_named(installed: Path, tmp_path: Path):
    """What another package breaks is an error of the configuration that says which package it is."""
    module = installed / "graft_methods.py"
    text = module.read_text(encoding="utf-8")
    try:
        module.write_text(text.replace("def graft(", "def slerp("), encoding="utf-8")
        said = call(installed, "methods", folder=tmp_path)
    finally:
        module.write_text(text, encoding="utf-8")
    assert said.returncode == 2
    assert "package xmerge-graft" in said.stderr
    assert "there is a method 'slerp' already" in said.stderr
