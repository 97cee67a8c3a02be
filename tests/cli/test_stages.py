"""The command line and a recipe of several stages."""

from __future__ import annotations

import json
import os

import pytest

FIRST = """\
name: first
merge_method: slerp
base_model: base
models: [{model: base}, {model: donor}]
parameters: {t: 0.5}
"""
LAST = "merge_method: passthrough\nmodels: [{model: first}]\n"


@pytest.fixture
def recipe(place) -> str:
    """Two stages, in a file."""
    (place / "recipe.yml").write_text(f"{FIRST}---\n{LAST}", encoding="utf-8")
    return "recipe.yml"


def test_a_plan_shows_every_stage(recipe, xmerge):
    """Each stage has a heading, in the order in which they are made; what another stage makes is told as that."""
    said = xmerge("plan", recipe)
    assert said.exit_code == 0
    assert said.out.index("stage 1 of 2: first\n") < said.out.index("stage 2 of 2: the output\n")
    assert "an earlier stage" in said.out


def test_a_plan_as_data_has_the_stages_beside_the_output(recipe, place, xmerge):
    """The output's plan is where it always was; a recipe of one document has no stages."""
    planned = json.loads(xmerge("plan", recipe, "--json").out)
    assert planned["method"] == "passthrough"
    (stage,) = planned["stages"]
    assert (stage["name"], stage["method"]) == ("first", "slerp")
    assert planned["models"][0]["pin"] == stage["fingerprint"]
    (place / "one.yml").write_text(FIRST, encoding="utf-8")
    assert "stages" not in json.loads(xmerge("plan", "one.yml", "--json").out)


def test_a_seed_on_the_command_line_is_every_stage_s(recipe, place, xmerge):
    """`--seed` takes the place of each document's `random_seed`, and the card says so."""
    said = xmerge("merge", recipe, "out", "--direct", "--skip-trial-load", "--quiet", "--seed", 7)
    assert said.exit_code == 0
    assert "stage first" not in said.err
    provenance = json.loads((place / "out" / "provenance.json").read_text(encoding="utf-8"))
    assert provenance["configuration"]["random_seed"] == 7
    assert provenance["stages"]["first"]["configuration"]["random_seed"] == 7
    assert "--seed 7" in (place / "out" / "README.md").read_text(encoding="utf-8")


def test_what_is_merged_is_verified_and_left_alone_the_next_time(recipe, place, xmerge):
    """The output is a whole checkpoint, and the same command finds it in its place."""
    words = ("merge", recipe, "out", "--direct", "--skip-trial-load", "--quiet")
    assert xmerge(*words).exit_code == 0
    assert xmerge("verify", "out", "--skip-trial-load").exit_code == 0
    assert "nothing to do" in xmerge(*words).out
    assert not os.path.exists(place / ".out.xmerge")


def test_a_cycle_is_refused(refuse):
    """Exit 2, the cycle named, nothing written."""
    refuse(
        f"{FIRST.replace('model: donor', 'model: second')}---\nname: second\n{LAST}---\n{LAST}",
        2,
        "first -> second -> first",
    )


def test_a_fault_of_the_last_stage_is_told_first(refuse):
    """The last stage's plan is refused before the first is made."""
    refuse(f"{FIRST}---\n{LAST}architecture: donor\n", 2, "'architecture' names donor", "recipe.yml, line 9")
