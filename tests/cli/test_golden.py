"""mergekit's results, through the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

GOLDEN = Path(__file__).parents[1] / "golden"
CASES = sorted(path.name for path in (GOLDEN / "cases").iterdir())


@pytest.mark.parametrize("case", CASES)
def test_a_mergekit_recipe_gives_mergekit_s_tensors(case, xmerge, tmp_path, monkeypatch):
    """Every tensor is mergekit's: to float32 rounding, and to bfloat16's where mergekit computed in bfloat16."""
    monkeypatch.chdir(GOLDEN / "models")
    out = tmp_path / "out"
    recipe = GOLDEN / "cases" / case / "config.yml"
    said = xmerge("merge", recipe, out, "--direct", "--skip-trial-load", "--quiet")
    assert said.exit_code == 0, said.err
    expected = read_tensors([GOLDEN / "cases" / case / "expected.safetensors"])
    made = read_tensors(sorted(out.glob("*.safetensors")))
    assert made.keys() == expected.keys()
    largest = largest_inputs()
    for name, want in expected.items():
        assert made[name].dtype == want.dtype, name
        error = (made[name].double() - want.double()).abs().max().item()
        exact = want.dtype == torch.float32
        bound = 1e-6 * want.abs().max().item() + 1e-8 if exact else 2**-7 * largest
        assert error <= bound, f"{name}: {error} > {bound}"
    config = json.loads((out / "config.json").read_text(encoding="utf-8"))
    layers = {name.split(".")[2] for name in expected if name.startswith("model.layers.")}
    assert config["num_hidden_layers"] == len(layers)


def largest_inputs() -> float:
    """The largest number in any of the models."""
    models = read_tensors(sorted(GOLDEN.glob("models/*/model.safetensors")))
    return max(tensor.abs().max().item() for tensor in models.values())


def read_tensors(files: list[Path]) -> dict[str, torch.Tensor]:
    """All tensors of some files, by name."""
    tensors: dict[str, torch.Tensor] = {}
    for path in files:
        with safe_open(path, "pt") as file:
            tensors |= {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is no dict
    return tensors
