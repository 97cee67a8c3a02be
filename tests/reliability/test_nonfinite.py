"""NaN and infinity in an input, and what `on_nonfinite` says: an error, the base's tensor, or what they give."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.engine.bench import Bench, draw, same_bits
from tests.methods.test_engine_laws import METHODS, count_of, parameters_of
from tests.small_merges import RECIPE, digest_files, load_weights, make_plan, run, write_model, write_models
from xmerge.errors import InvalidMergeError, NonfiniteInputError
from xmerge.methods import MergeMethod

Q = "model.layers.1.self_attn.q_proj.weight"
NORM = "model.norm.weight"
KEEP = f"{RECIPE}on_nonfinite: base\n"
PASS = f"{RECIPE}on_nonfinite: propagate\n"
COPY = (
    "merge_method: slerp\nbase_model: llama\nmodels: [{model: llama}, {model: other}]\nparameters: {t: 1}\n"
    "on_nonfinite: base\n"
)


def spoil(folder: Path, name: str, *places: int, value: float = math.nan) -> None:
    """Put a number that is none into places of a tensor."""
    weights = load_file(folder / "model.safetensors")
    weights[name].view(-1)[list(places)] = value
    save_file(weights, folder / "model.safetensors", {"format": "pt"})


@pytest.fixture
def models(tmp_path):
    """The two models, the donor with NaN and infinity in a tensor that is merged."""
    write_models(tmp_path)
    spoil(tmp_path / "qwen3", "model.layers.2.self_attn.q_proj.weight", 5, 7)
    spoil(tmp_path / "qwen3", "model.layers.2.self_attn.q_proj.weight", 6, value=math.inf)
    return tmp_path


def test_an_input_that_is_merged_is_refused(models):
    """Without a word about it, the merge stops, names model, tensor and place, and leaves no output."""
    with pytest.raises(NonfiniteInputError) as caught:
        run(models)
    assert caught.value.exit_code == 3
    assert caught.value.what == ("qwen3 holds NaN or infinity in model.layers.2.self_attn.q_proj.weight, at element 5.")
    assert caught.value.where == f"for {Q} of the output"
    assert not (models / "out").exists()


def test_the_base_is_kept_where_it_is_asked_for(models):
    """Only the spoiled tensor is the base's, bit for bit; report, provenance and card say which, why and where."""
    report = run(models, recipe=KEEP).report
    made, base = load_weights(models / "out"), load_weights(models / "llama")
    same = [name for name in made if "self_attn" in name and same_bits(made[name], base[name])]
    assert same == [Q]
    assert report is not None and report.ok
    told = "qwen3 holds NaN or infinity in model.layers.2.self_attn.q_proj.weight, at element 5"
    assert [(each.code, each.text) for each in report.findings] == [
        ("kept_base", f"layer 1: '{Q}' is the base's: {told}.")
    ]
    described = json.loads((models / "out" / "provenance.json").read_text())["tensors"][Q]
    assert described["decision"] == "keep" and described["reason"] == f"a source holds NaN or infinity: {told}"
    assert [source["model"] for source in described["sources"]] == ["llama"]
    card = (models / "out" / "README.md").read_text().replace("\\", "")
    assert f"layer 1, {Q}: the base's, because {told}." in card


def test_the_bytes_do_not_depend_on_workers_or_on_a_resume(models):
    """A kept tensor is as determined as a merged one, and a layer that holds one is found in the store again."""
    first = run(models, models / "one", KEEP, workers=1, store=models / "store")
    again = run(models, models / "two", KEEP, workers=4, store=models / "store")
    fresh = run(models, models / "three", KEEP, workers=4)
    assert (first.reused, again.reused, fresh.reused) == (0, first.layers, 0)
    assert digest_files(models / "one") == digest_files(models / "two") == digest_files(models / "three")


def test_asking_changes_no_byte_of_a_good_merge(tmp_path):
    """Where every number is one, all three answers give the same weights."""
    write_models(tmp_path)
    made = []
    for number, recipe in enumerate((RECIPE, KEEP, PASS)):
        report = run(tmp_path, tmp_path / str(number), recipe).report
        assert report is not None and report.findings == ()
        made.append({name: digest for name, digest in digest_files(tmp_path / str(number)).items() if "00" in name})
    assert len(made[0]) == 6 and made[0] == made[1] == made[2]


def test_a_layer_is_not_taken_for_another_answer_s(models):
    """What one answer has made of spoiled numbers is no entry for another."""
    store = models / "store"
    run(models, models / "kept", KEEP, store=store)
    passed = run(models, models / "passed", PASS, store=store)
    assert passed.reused < passed.layers
    with pytest.raises(NonfiniteInputError):
        run(models, models / "out", store=store)


def test_a_copied_tensor_is_looked_at_too(tmp_path):
    """A donor's bytes that pass through are the base's instead where they hold NaN, and written once more."""
    write_models(tmp_path)
    write_model(tmp_path / "other", seed=7)
    spoil(tmp_path / "other", Q, 3)
    report = run(tmp_path, recipe=COPY).report
    made = load_weights(tmp_path / "out")
    base, other = load_weights(tmp_path / "llama"), load_weights(tmp_path / "other")
    assert [name for name in made if not same_bits(made[name], other[name])] == [Q]
    assert same_bits(made[Q], base[Q])
    assert report is not None and report.findings[0].text.endswith(f"other holds 1 NaN or infinity in {Q}.")


def test_a_base_that_is_spoiled_itself_is_no_way_out(models):
    """Where the base's tensor holds NaN too, the merge stops and names both."""
    spoil(models / "llama", Q, 9)
    with pytest.raises(NonfiniteInputError) as caught:
        run(models, recipe=KEEP)
    assert caught.value.what == f"llama holds 1 NaN or infinity in {Q}."
    assert caught.value.why is not None and caught.value.why.startswith("llama holds NaN or infinity")


def test_a_spoiled_base_is_named_where_a_copy_falls_back_to_it(tmp_path):
    """Donor and base of a copied tensor hold NaN: the base is what must be repaired, and the donor is told too."""
    for seed, name in enumerate(("llama", "other")):
        write_model(tmp_path / name, seed=seed)
        spoil(tmp_path / name, Q, 3)
    with pytest.raises(NonfiniteInputError) as caught:
        run(tmp_path, recipe=COPY)
    assert caught.value.what == f"llama holds 1 NaN or infinity in {Q}."
    assert caught.value.why == f"other holds 1 NaN or infinity in {Q}."


def test_what_is_the_base_s_already_has_no_other_answer(tmp_path):
    """NaN in a tensor that nothing is merged into keeps the output from appearing, unless they are to propagate."""
    write_models(tmp_path)
    spoil(tmp_path / "llama", NORM, 2)
    for recipe in (RECIPE, KEEP):
        with pytest.raises(InvalidMergeError, match=r"'model\.norm\.weight', from llama, holds 1 NaN or infinity"):
            run(tmp_path, recipe=recipe)
    report = run(tmp_path, recipe=PASS).report
    assert report is not None and report.ok
    assert [(each.code, each.severity) for each in report.findings] == [("nonfinite", "warning")]


def test_what_propagates_is_counted(models):
    """Numbers that are none go through the arithmetic to where it brings them, and every one is told."""
    report = run(models, recipe=PASS, store=models / "store").report
    made = load_weights(models / "out")
    spoiled = {name: int((~torch.isfinite(weight)).sum()) for name, weight in made.items()}
    assert [name for name, count in spoiled.items() if count] == [Q]
    assert report is not None and report.ok
    assert [each.text for each in report.findings] == [
        f"layer 1: '{Q}', from llama, holds {spoiled[Q]} NaN or infinity."
    ]
    again = run(models, models / "again", PASS, store=models / "store")
    assert again.reused == again.layers


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
def test_every_method_lets_them_through(tmp_path, method: MergeMethod):
    """With whatever method, a number that is none in a donor ends in numbers that are none, or in finite ones."""
    tensors = [draw(number, 24, torch.float32) for number in range(count_of(method, 2))]
    tensors[-1][5] = math.nan
    bench = Bench(tmp_path, tensors)
    plan = bench.plan(method.name, **parameters_of(method, len(tensors)))
    (layer,) = plan.layers
    passing = layer.tensors[0].model_copy(update={"on_nonfinite": "propagate"})
    changed = plan.model_copy(update={"layers": (layer.model_copy(update={"tensors": (passing,)}),)})
    made, result = bench.combine(changed, 8)
    assert made.shape == (24,)
    assert type(result).model_validate_json(result.model_dump_json()) == result


@pytest.mark.parametrize("policy", ["error", "propagate"])
def test_an_overflow_of_the_output_is_never_let_through(tmp_path, policy):
    """What only the output's dtype cannot hold is refused with tensor, method and dtype, whatever is said of inputs."""
    write_models(tmp_path)
    recipe = (
        "merge_method: linear\nmodels:\n- {model: llama, parameters: {weight: 60000}}\n"
        f"- {{model: llama, parameters: {{weight: 1}}}}\nparameters: {{normalize: false}}\n"
        f"out_dtype: float16\non_nonfinite: {policy}\n"
    )
    with pytest.raises(InvalidMergeError) as caught:
        run(tmp_path, recipe=recipe)
    assert caught.value.exit_code == 4
    assert "overflows F16 at element" in caught.value.what and "linear gives a number" in str(caught.value.why)
    assert not (tmp_path / "out").exists()


def test_the_answer_is_part_of_the_plan_only_where_it_matters(tmp_path):
    """`base` gives a way out to what is merged and to nothing else; the default leaves every fingerprint as it was."""
    write_models(tmp_path)
    usual, keeping = make_plan(tmp_path)[1], make_plan(tmp_path, KEEP)[1]
    for ours, theirs in zip(usual.tensors, keeping.tensors, strict=True):
        assert ours.fallback is None
        assert (theirs.fallback is not None) == (theirs.decision != "keep")
    for one, other in zip(usual.layers, keeping.layers, strict=True):
        assert (one.fingerprint == other.fingerprint) == all(tensor.decision == "keep" for tensor in one.tensors)
