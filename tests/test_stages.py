"""Stages of one merge: foreseen before they are made, made once, and gone afterwards."""

from __future__ import annotations

import json
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from tests.small_merges import digest_files, list_tree, write_model
from xmerge.config import MergeConfig, parse_stages
from xmerge.engine import layer as engine_layer
from xmerge.errors import OutputExistsError, PlanError
from xmerge.run import MergeOutcome, merge
from xmerge.source_cards import read_source_card
from xmerge.sources import Location, read_model
from xmerge.stages import Stage, foresee_card, foresee_needed, place_stage, plan_stages

LAYERS = 4
CARD = "---\nlicense: {licence}\nlanguage: [en, de]\ndatasets: [org/set]\n---\n"
RECIPE = """\
name: first
merge_method: slerp
base_model: one
models: [{{model: one}}, {{model: two}}]
parameters: {{t: {t}}}
---
merge_method: linear
models:
- {{model: first, parameters: {{weight: 1}}}}
- {{model: three, parameters: {{weight: {weight}}}}}
{more}"""


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """Three Llamas with cards and tokenizers, beside each other."""
    for seed, name in enumerate(("one", "two", "three")):
        folder = write_model(tmp_path / name, seed=seed)
        (folder / "tokenizer.json").write_text(json.dumps({"model": {"vocab": {"a": 0}}}), encoding="utf-8")
        (folder / "chat_template.jinja").write_text("{{ messages }}", encoding="utf-8")
        licence = "llama3" if name == "two" else "apache-2.0"
        (folder / "README.md").write_text(CARD.format(licence=licence), encoding="utf-8")
        (folder / "LICENSE").write_text(f"the licence of {name}", encoding="utf-8")
    return tmp_path


def parse(place: Path, t: float = 0.4, weight: float = 1.0, more: str = "") -> tuple[MergeConfig, ...]:
    """The two stages of `RECIPE`."""
    return parse_stages(RECIPE.format(t=t, weight=weight, more=more), "recipe.yml", place)


def run(place: Path, out: str = "out", *, store: Path | None = None, **options: Any) -> MergeOutcome:
    """Merge the two stages."""
    return merge(parse(place, **options), place / out, trial=False, store=store)


def plan(place: Path) -> tuple[Stage, ...]:
    """Plan the two stages."""
    return plan_stages(parse(place), place / "out")


@pytest.fixture
def made(monkeypatch) -> list[str]:
    """`METHOD LABEL` of every layer that is really merged."""
    runner: Any = import_module("xmerge.run")

    merged: list[str] = []

    def watched(*args: Any):
        result = engine_layer.merge_layer(*args)
        merged.extend([] if result.reused else [f"{args[0].method} {result.label}"])
        return result

    monkeypatch.setattr(runner, "merge_layer", watched)
    return merged


def test_a_stage_is_foreseen_as_it_is_made(place: Path):
    """What the plan says of a stage's output is what that output says of itself: config, headers and card."""
    first, last = plan(place)
    foreseen = foresee_needed(last.config, {"first": first}, place / "out")["first"]
    merge(first.config, place / "first", trial=False)
    location = Location(reference="first", label="first", folder=place / "first")
    read = read_model(location)
    shards = tuple(shard._replace(modified_ns=0) for shard in read.shards)
    assert replace(read, shards=shards, pin=foreseen.checkpoint.pin) == foreseen.checkpoint
    assert read_source_card(location) == foreseen.card
    assert foreseen.checkpoint.pin == first.plan.fingerprint


def test_the_output_s_card_says_what_the_plan_foresaw(place: Path):
    """Also where a stage's card goes into another's: languages, data sets and licence come from the models alone."""
    run(place)
    _, last = plan(place)
    assert read_source_card(Location(reference="out", label="out", folder=place / "out")) == foresee_card(last.plan)


@pytest.mark.slow
def test_stages_give_the_weights_of_merges_one_after_the_other(place: Path):
    """Two stages in one file make the tensors that two merges make by hand; only the output is left."""
    before = set(list_tree(place))
    run(place)
    assert {name.split("/")[0] for name in set(list_tree(place)) - before} == {"out"}
    first, last = parse(place)
    merge(first, place / "first", trial=False)
    merge(last, place / "by-hand", trial=False)
    shards = {name: digest for name, digest in digest_files(place / "out").items() if name.endswith(".safetensors")}
    assert shards
    assert shards.items() <= digest_files(place / "by-hand").items()


@pytest.mark.slow
def test_the_same_stages_give_the_same_folder(place: Path):
    """No byte depends on where the output is, on a store, or on what was there before."""
    run(place, "one-place")
    run(place, "another", store=place / "store")
    run(place, "third", store=place / "store")
    assert digest_files(place / "one-place") == digest_files(place / "another") == digest_files(place / "third")


@pytest.mark.slow
def test_a_finished_output_needs_no_stage(place: Path, made):
    """When the output is in its place, nothing is made again, although the stages before it are gone."""
    run(place)
    made.clear()
    assert run(place).report is None
    assert made == []
    with pytest.raises(OutputExistsError):
        run(place, t=0.5)


@pytest.mark.slow
def test_an_interrupted_run_goes_on_after_the_stages_that_are_done(place: Path, made, monkeypatch):
    """A stage that is in its place is not made again; layers of the next that are done are not either."""
    runner: Any = import_module("xmerge.run")

    watched = runner.merge_layer

    def failing(plan: Any, index: int, *args: Any):
        if plan.method == "linear" and index == 0:
            raise OSError("gone")
        return watched(plan, index, *args)

    monkeypatch.setattr(runner, "merge_layer", failing)
    with pytest.raises(OSError, match="gone"):
        merge(parse(place), place / "out", trial=False, workers=1)
    assert (place_stage(place / "out", "first") / "provenance.json").is_file()
    assert not (place / "out").exists()
    done = len(made)
    monkeypatch.setattr(runner, "merge_layer", watched)
    outcome = run(place)
    assert len(made) == len(set(made)) == outcome.layers
    assert outcome.reused == done
    assert not (place / ".out.xmerge").exists()


@pytest.mark.slow
def test_a_changed_recipe_replaces_the_stage_that_an_earlier_one_left(place: Path, monkeypatch):
    """What an interrupted run of another recipe left in the work folder is not used, and goes."""
    runner: Any = import_module("xmerge.run")

    first = [config for config in parse(place) if config.name == "first"]
    stale = place_stage(place / "out", "first")
    merge(first[0].model_copy(update={"random_seed": 7}), stale, trial=False)
    merge(first[0], stale.with_name("former"), trial=False)
    swept: list[list[str]] = []
    real = runner.sweep_stages

    def watched(stages, work):
        real(stages, work)
        swept.append(sorted(path.name for path in stale.parent.iterdir()))

    with monkeypatch.context() as patched:
        patched.setattr(runner, "sweep_stages", watched)
        run(place, t=0.2)
    assert swept == [["first"]]
    run(place, "clean", t=0.2)
    assert digest_files(place / "out") == digest_files(place / "clean")


@pytest.mark.slow
def test_only_the_stage_that_changed_is_made_with_a_store(place: Path, made):
    """Another last stage leaves the first as it is."""
    run(place, store=place / "store")
    made.clear()
    run(place, "again", store=place / "store", weight=2.0)
    assert {name.split()[0] for name in made} == {"linear"}


def test_a_plan_that_cannot_be_carried_out_is_refused_before_the_first_stage(place: Path, made):
    """The last stage's faults are told before a weight of the first is read."""
    with pytest.raises(PlanError):
        merge(parse(place, more="architecture: nowhere\n"), place / "out", trial=False)
    assert made == []
    assert not (place / ".out.xmerge").exists()


def test_provenance_holds_that_of_the_stages(place: Path):
    """The output says how each stage was made: its plan, its sources and its tensors."""
    run(place)
    said = json.loads((place / "out" / "provenance.json").read_text(encoding="utf-8"))
    first, last = plan(place)
    assert said["plan_fingerprint"] == last.plan.fingerprint
    assert said["stages"]["first"]["plan_fingerprint"] == first.plan.fingerprint
    assert [model["name"] for model in said["stages"]["first"]["models"]] == ["one", "two"]
    assert next(model["pin"] for model in said["models"] if model["name"] == "first") == first.plan.fingerprint


def test_a_licence_is_not_lost_between_stages(place: Path):
    """What the licences of a stage's models ask for is asked of the output."""
    _, last = plan(place)
    assert any("Llama 3" in words for words in last.plan.licensing.display)


def test_the_output_has_the_small_files_of_the_first_base(place: Path):
    """Tokenizer and template go along through the stages."""
    run(place)
    for name in ("tokenizer.json", "chat_template.jinja"):
        assert (place / "out" / name).read_bytes() == (place / "one" / name).read_bytes()
    assert (place / "out" / "xmerge_config.yml").read_text(encoding="utf-8") == RECIPE.format(
        t=0.4, weight=1.0, more=""
    )
