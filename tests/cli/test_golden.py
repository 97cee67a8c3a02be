"""mergekit's results, through the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

GOLDEN = Path(__file__).parents[1] / "golden"
CASES = sorted(path.name for path in (GOLDEN / "cases").iterdir())
RELATIVE = {"karcher": 1e-4, "multislerp": 1e-5}
"""How near to mergekit's largest number a float32 result comes, where not to 1e-6: both iterate, or divide by sums."""
SHARE = {"ties": 0.9999, "breadcrumbs": 0.9999}
"""How many elements do, where which ones are kept may depend on numbers that are equal."""
if torch.backends.cpu.get_cpu_capability() != "AVX512":
    # Its importance is mostly rounding of float32 softmaxes, in mergekit too: there it changes with the processor.
    SHARE["arcee_fusion"] = 0.995
SEED = 7
"""What mergekit was run with."""


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_a_mergekit_recipe_gives_mergekit_s_tensors(case, xmerge, tmp_path, monkeypatch):
    """Every tensor is mergekit's: to float32 rounding, and to bfloat16's where mergekit computed in bfloat16."""
    made = run_case(case, xmerge, tmp_path, monkeypatch)
    expected = read_tensors([GOLDEN / "cases" / case / "expected.safetensors"])
    assert made.keys() == expected.keys()
    largest = largest_inputs()
    for name, want in expected.items():
        assert made[name].dtype == want.dtype, name
        error = (made[name].double() - want.double()).abs()
        relative = next((bound for method, bound in RELATIVE.items() if case.startswith(method)), 1e-6)
        exact = want.dtype == torch.float32
        bound = relative * want.abs().max().item() + 1e-8 if exact else 2**-7 * largest
        share = next((share for method, share in SHARE.items() if case.startswith(method)), 1.0)
        within = (error <= bound).double().mean().item()
        assert within >= share, f"{name}: {error.max().item()} > {bound}"
    config = json.loads((tmp_path / "out" / "config.json").read_text(encoding="utf-8"))
    layers = {name.split(".")[2] for name in expected if name.startswith("model.layers.")}
    assert config["num_hidden_layers"] == len(layers)


@pytest.mark.parametrize("case", [case for case in CASES if case.startswith("dare")])
def test_the_usual_generator_keeps_as_much_as_was_asked_for(case, xmerge, tmp_path, monkeypatch):
    """Without `rng: mergekit` other elements are kept, and as many: within four standard deviations."""
    made = run_case(case, xmerge, tmp_path, monkeypatch, rng="counter")
    models = {name: read_tensors([GOLDEN / "models" / name / "model.safetensors"]) for name in ("base", "a", "b")}
    density, kept, count = 0.6, 0.0, 0
    for name, base in models["base"].items():
        changed = (models["a"][name] != base) & (models["b"][name] != base)
        kept += ((made[name] == base) & changed).sum().item()
        count += int(changed.sum())
    # An element stays the base's where both donors drop it; where they cancel each other is too rare to count.
    share = (1 - density) ** 2
    assert abs(kept - share * count) <= 4 * (count * share * (1 - share)) ** 0.5


def run_case(case, xmerge, tmp_path, monkeypatch, rng="mergekit"):
    """The tensors that the command line makes of a case."""
    monkeypatch.chdir(GOLDEN / "models")
    text = (GOLDEN / "cases" / case / "config.yml").read_text(encoding="utf-8")
    recipe = tmp_path / "config.yml"
    recipe.write_text(text + (f"\nrng: {rng}\n" if case.startswith("dare") else ""), encoding="utf-8")
    out = tmp_path / "out"
    said = xmerge("merge", recipe, out, "--direct", "--skip-trial-load", "--quiet", "--seed", SEED)
    assert said.exit_code == 0, said.err
    return read_tensors(sorted(out.glob("*.safetensors")))


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
