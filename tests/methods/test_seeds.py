"""What a seed decides, and what it does not; and random numbers as mergekit draws them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.small_merges import digest_files, load_weights, make_plan, run, write_model
from xmerge.engine import merge_layer
from xmerge.engine.results import LayerResult
from xmerge.errors import PlanError
from xmerge.methods import MergeMethod, list_methods
from xmerge.progress import Silence
from xmerge.store import Store

METHODS = list_methods()
DRAWING = [method.name for method in METHODS if method.draws]
OTHERS = [method for method in METHODS if not method.draws]
DENSITY = 0.4
SEED = 7


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base and two donors in float32, beside each other."""
    folder = tmp_path_factory.mktemp("models")
    for seed, name in enumerate(("base", "a", "b")):
        write_model(folder / name, "qwen2", seed=seed, stored="F32")
    return folder


def write_recipe(method: str, seed: int | None = SEED, *, donors: str = "ab", **more: str) -> str:
    """A recipe that draws for two donors, in an order."""
    listed = ", ".join(f"{{model: {name}, parameters: {{weight: {ord(name) - 96}}}}}" for name in donors)
    lines = {"rng": "mergekit", **more} | ({} if seed is None else {"random_seed": str(seed)})
    text = f"merge_method: {method}\nbase_model: base\nmodels: [{listed}]\nparameters: {{density: {DENSITY}}}\n"
    return text + "".join(f"{name}: {value}\n" for name, value in lines.items())


def write_plain(method: MergeMethod, seed: int) -> str:
    """A recipe of a method that draws nothing."""
    names = ["base", "a", "b"][: method.inputs[1] or 3]
    needed = ", ".join(f"{each.name}: 0.5" for each in method.parameters if each.default is None)
    base = "base_model: base\n" if method.base == "required" else ""
    listed = ", ".join(f"{{model: {name}}}" for name in names)
    return f"merge_method: {method.name}\n{base}models: [{listed}]\nparameters: {{{needed}}}\nrandom_seed: {seed}\n"


@pytest.mark.slow
@pytest.mark.parametrize("method", DRAWING)
@pytest.mark.parametrize("rng", ["counter", "mergekit"])
def test_another_seed_is_another_merge(method: str, rng: str, models: Path, tmp_path: Path):
    """One seed gives one plan and the same bytes again; another gives another fingerprint and other bytes."""
    recipes = [write_recipe(method, seed, rng=rng) for seed in (SEED, SEED, SEED + 1)]
    plans = [make_plan(models, recipe)[1].fingerprint for recipe in recipes]
    assert plans[0] == plans[1] != plans[2]
    for number, recipe in enumerate(recipes):
        run(models, tmp_path / str(number), recipe, workers=1)
    weights = [load_weights(tmp_path / str(number)) for number in range(3)]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    assert any(not torch.equal(weights[0][name], weights[2][name]) for name in weights[0])


@pytest.mark.parametrize("method", OTHERS, ids=lambda method: method.name)
def test_a_seed_is_nothing_to_methods_that_do_not_draw(method: MergeMethod, models: Path):
    """Layers that no chance is needed for are the same whatever the seed, so that a store has them already."""
    one, other = (make_plan(models, write_plain(method, seed))[1] for seed in (SEED, SEED + 1))
    assert [layer.fingerprint for layer in one.layers] == [layer.fingerprint for layer in other.layers]


@pytest.mark.parametrize("donors", ["ab", "ba"])
def test_mergekit_s_numbers_are_torch_s(donors: str, models: Path, tmp_path: Path):
    """Seeded once, torch draws for the tensors by their names, and for the donors in the order of the recipe."""
    recipe = write_recipe("dare_linear", donors=donors).replace("}\nrng", ", rescale: false}\nrng")
    run(models, tmp_path / "out", recipe, workers=4)
    made, base = load_weights(tmp_path / "out"), load_weights(models / "base")
    tensors = {name: load_weights(models / name) for name in donors}
    generator = torch.Generator().manual_seed(SEED)
    for name in sorted(base):
        expected = base[name].clone()
        for donor in donors:
            kept = torch.full_like(base[name], DENSITY).bernoulli(generator=generator)
            expected += (ord(donor) - 96) * kept * (tensors[donor][name] - base[name])
        torch.testing.assert_close(made[name], expected, rtol=1e-6, atol=1e-6)


def test_mergekit_s_ranks_are_torch_s(models: Path, tmp_path: Path):
    """For della the probabilities follow the ranks in the rows of a tensor, which a bias is one of."""
    recipe = write_recipe("della_linear", donors="a").replace("}\nrng", ", rescale: false, epsilon: 0.3}\nrng")
    run(models, tmp_path / "out", recipe, workers=4)
    made, base, donor = (load_weights(folder) for folder in (tmp_path / "out", models / "base", models / "a"))
    generator = torch.Generator().manual_seed(SEED)
    for name in sorted(base):
        delta = donor[name] - base[name]
        ranks = delta.abs().argsort(-1).argsort(-1).float()
        probabilities = DENSITY - 0.3 + ranks / (delta.shape[-1] - 1) * 2 * 0.3
        kept = probabilities.bernoulli(generator=generator)
        torch.testing.assert_close(made[name], base[name] + kept * delta, rtol=1e-6, atol=1e-6)


def test_a_donor_that_keeps_all_draws_nothing(models: Path, tmp_path: Path):
    """A donor with a density of 1 leaves mergekit's stream where it was for those behind it."""
    recipe = write_recipe("dare_linear").replace("{weight: 1}", "{weight: 0, density: 1}")
    alone = write_recipe("dare_linear", donors="b")
    run(models, tmp_path / "out", recipe, workers=1)
    run(models, tmp_path / "alone", alone, workers=1)
    made, expected = load_weights(tmp_path / "out"), load_weights(tmp_path / "alone")
    assert all(torch.equal(made[name], expected[name]) for name in expected)


@pytest.mark.slow
@pytest.mark.parametrize("method", DRAWING)
@pytest.mark.parametrize("rng", ["counter", "mergekit"])
def test_layers_draw_the_same_in_any_order(method: str, rng: str, models: Path, tmp_path: Path):
    """What is drawn for a layer does not follow from the layers that were made before it, or were not."""
    _, plan = make_plan(models, write_recipe(method, rng=rng))
    folders = [model.folder for model in plan.models if model.folder is not None]
    indices = range(len(plan.layers))
    digests = []
    for place, order in (("up", indices), ("down", indices[::-1])):
        (tmp_path / place).mkdir()
        store = Store(tmp_path / place)
        found = {index: merge_layer(plan, index, folders, store, "cpu").sha256 for index in order}
        digests.append([found[index] for index in indices])
    assert digests[0] == digests[1]


@pytest.mark.slow
@pytest.mark.parametrize("rng", ["counter", "mergekit"])
def test_a_merge_that_is_resumed_draws_what_it_would_have_drawn(rng: str, models: Path, tmp_path: Path):
    """Stopped after some layers and run again, with other workers, it is the same files."""

    class StopHalfway(Silence):
        def layer_done(self, result: LayerResult, done: int, total: int) -> None:
            if done == total // 2:
                raise KeyboardInterrupt

    recipe = write_recipe("della", rng=rng)
    with pytest.raises(KeyboardInterrupt):
        run(models, tmp_path / "out", recipe, workers=1, reporter=StopHalfway())
    assert run(models, tmp_path / "out", recipe, workers=4).reused
    run(models, tmp_path / "whole", recipe, workers=1)
    assert digest_files(tmp_path / "out") == digest_files(tmp_path / "whole")


def test_a_base_among_the_models_draws_nothing(models: Path):
    """Whether `models` lists the base too, and where, changes nothing that is drawn."""
    listed = "models: [{model: a, parameters: {weight: 1}}, {model: base}, {model: b, parameters: {weight: 2}}]\n"
    recipe = write_recipe("dare_ties")
    with_base = "".join(listed if line.startswith("models") else line for line in recipe.splitlines(keepends=True))
    plans = [make_plan(models, text)[1] for text in (recipe, with_base)]
    draws = [
        {
            tensor.name: [each for each in tensor.draws.starts if each is not None]
            for tensor in plan.tensors
            if tensor.draws
        }
        for plan in plans
    ]
    assert draws[0]
    assert draws[0] == draws[1]


def test_an_order_that_mergekit_leaves_to_a_set_is_refused(models: Path):
    """Where two tensors are made of layers that mergekit cannot tell apart by name, it cannot be followed."""
    ranges = [("[0, 2]", "[1, 3]"), ("[1, 3]", "[0, 2]")]
    slices = ", ".join(
        f"{{sources: [{{model: base, layer_range: {one}}}, {{model: a, layer_range: {two}}}]}}" for one, two in ranges
    )
    text = f"merge_method: dare_ties\nbase_model: base\nslices: [{slices}]\nparameters: {{density: 0.4, weight: 1}}\n"
    assert make_plan(models, text)
    with pytest.raises(PlanError, match=r"mergekit's random numbers cannot be drawn for model\.layers\.") as caught:
        make_plan(models, text + "rng: mergekit\n")
    assert "from the order of a set" in str(caught.value)
    assert caught.value.exit_code == 2
