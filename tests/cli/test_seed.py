"""`--seed`, for methods that draw random numbers."""

from __future__ import annotations

import pytest
import torch

from tests.small_merges import load_weights, run, write_model

RECIPE = """\
merge_method: dare_linear
base_model: base
models: [{model: donor, parameters: {weight: 1, density: 0.5}}]
random_seed: SEED
"""


@pytest.mark.slow
def test_the_command_line_s_seed_takes_the_place_of_the_recipe_s(xmerge, tmp_path):
    """`--seed` gives what the recipe with that seed gives, and not what it gives with its own."""
    for seed, name in enumerate(("base", "donor")):
        write_model(tmp_path / name, seed=seed)
    for seed in (7, 8):
        run(tmp_path, tmp_path / f"out{seed}", RECIPE.replace("SEED", str(seed)), workers=1)
    recipe = tmp_path / "recipe.yml"
    recipe.write_text(RECIPE.replace("SEED", "8"), encoding="utf-8")
    said = xmerge("merge", recipe, tmp_path / "out", "--direct", "--skip-trial-load", "--quiet", "--seed", 7)
    assert said.exit_code == 0, said.err
    wanted, other, made = (load_weights(tmp_path / name) for name in ("out7", "out8", "out"))
    assert all(torch.equal(made[name], wanted[name]) for name in wanted)
    assert any(not torch.equal(made[name], other[name]) for name in other)
