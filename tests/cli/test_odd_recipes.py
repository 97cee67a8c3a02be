"""Recipes as people write them on a bad day: told where and what, or read as they are meant."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.fake_checkpoints import write_fake

MODELS = "merge_method: slerp\nbase_model: base\nmodels:\n- model: base\n- model: donor\n"
SLERP = MODELS + "parameters:\n  t: 0.5\n"
DEEP = SLERP.replace("donor", "deep")
PASSTHROUGH = "merge_method: passthrough\nslices:\n- sources: [{model: base, layer_range: RANGE}]\n"

REFUSED = {
    "text for a number": (SLERP.replace("0.5", "half"), 2, "line 7: parameters.t", "'half'"),
    "nothing for a number": (SLERP.replace("0.5", ""), 2, "line 7: parameters.t", "got nothing"),
    "no number in a gradient": (SLERP.replace("0.5", "[0, x]"), 2, "line 7: parameters.t[1]", "'x'"),
    "numbers among filters": (SLERP.replace("0.5", "[{filter: mlp, value: 1}, 0.2]"), 2, "parameters.t", "own 'value'"),
    "a filter without a list": (SLERP.replace("0.5", "{filter: mlp, value: 1}"), 2, "parameters.t", "'- filter: ...'"),
    "a filter in capitals": (SLERP.replace("0.5", "[{filter: MLP, value: 1}]"), 2, "t[0].filter", "case-sensitive"),
    "a pattern as a filter": (SLERP.replace("0.5", "[{filter: layers.*.mlp, value: 1}]"), 2, "t[0].filter", "'mlp'"),
    "a list of names": (SLERP.replace("- model: ", "- "), 2, "line 4: models[0]", "expected a mapping, got 'base'"),
    "no models": (SLERP.replace("- model: base\n- model: donor\n", ""), 2, "line 3: models", "expected a list"),
    "models beside slices": (SLERP + "slices: []\nmodules: {}\nallow: 1\n", 2, "line 10: allow", "unknown key 'allow'"),
    "no method": (SLERP.replace("merge_method: slerp\n", ""), 2, "line 1", "'merge_method' is missing"),
    "a method in capitals": (SLERP.replace("slerp", "SLERP", 1), 2, "line 1: merge_method", "'SLERP'"),
    "a base that is not listed": (
        SLERP.replace("base_model: base", "base_model: other"),
        2,
        "line 3: models",
        "name one of those listed in 'base_model'",
    ),
    "one model too few": (SLERP.replace("- model: donor\n", ""), 2, "line 3: models", "exactly 2 models"),
    "a reversed range": (PASSTHROUGH.replace("RANGE", "[4, 0]"), 2, "line 3: slices[0]", "did you mean [0, 4]"),
    "a range of three": (PASSTHROUGH.replace("RANGE", "[0, 2, 4]"), 2, "line 3: slices[0]", "[start, end]"),
    "a range of text": (PASSTHROUGH.replace("RANGE", "0-4"), 2, "line 3: slices[0]", "[start, end]"),
    "a range that is too long": (PASSTHROUGH.replace("RANGE", "[0, 5]"), 2, "line 3: slices[0]", "base has 4 layers"),
    "models of other depth": (DEEP, 2, "line 1: layer_map", "'layer_map: proportional'"),
    "a pair beyond the base": (DEEP + "layer_map: [[0, 0], [4, 1]]\n", 2, "line 8: layer_map[1]", "0 to 3"),
    "a pair beyond the donor": (DEEP + "layer_map: [[0, 6]]\n", 2, "line 8: layer_map[0]", "0 to 5"),
    "a layer in two pairs": (DEEP + "layer_map: [[0, 0], [0, 1]]\n", 2, "line 8: layer_map[1]", "stands twice"),
    "a fold that is none": (SLERP + "folds: [gain]\n", 2, "line 8: folds[0]", "'input_norm'"),
    "a fold that is no list": (SLERP + "folds: input_norm\n", 2, "line 8: folds", "expected a list"),
    "a tokenizer of nobody": (SLERP + "tokenizer_source: doner\n", 2, "line 8: tokenizer_source", "no model of this"),
    "two tokenizers": (SLERP + "tokenizer: {}\ntokenizer_source: base\n", 2, "tokenizer_source", "keep 'tokenizer'"),
    "a built-in template": (SLERP + "chat_template: chatml\n", 2, "line 8: chat_template", "Jinja"),
    "a dtype by another name": (SLERP + "dtype: fp16\n", 2, "line 8: dtype", "bfloat16, float16, float32"),
    "a packed dtype": (SLERP + "out_dtype: float8\n", 2, "line 8: out_dtype", "bfloat16, float16, float32"),
    "a token in a recipe": (
        SLERP + "publish: {repo: a/b, token: x}\n",
        2,
        "publish.token",
        "valid here: acknowledge, branch, repo",
    ),
    "a public secret": (SLERP + "publish: {repo: a/b, visibility: secret}\n", 2, "publish.visibility", "'private'"),
    "no as a word": (SLERP + "on_mismatch: no\n", 2, "line 8: on_mismatch", "'error' or 'base'"),
    "a key twice": (SLERP + "parameters:\n  t: 1\n", 2, "line 8: parameters", "keep one"),
    "tabs": (SLERP.replace("  t", "\tt"), 2, "line 7", "indent with spaces"),
    "two documents without names": (SLERP + "---\n" + SLERP, 2, "2 stages that no other uses", "line 9"),
    "code in a tag": (SLERP.replace("0.5", "!!python/name:os.system"), 2, "line 7", "no meaning"),
    "nothing at all": ("", 2, "recipe.yml", "xmerge compat"),
    "a folder that is not there": (
        SLERP.replace("donor", "~/donor"),
        3,
        "line 5: models[1].model",
        "no model '~/donor'",
    ),
    "a file for a folder": (SLERP.replace("donor", "donor/config.json"), 3, "line 5: models[1].model", "is a file"),
    "a revision of a folder": (
        SLERP.replace("donor", "donor@main"),
        2,
        "line 5: models[1].model",
        "no revision 'main'",
    ),
    "an adapter": (SLERP.replace("donor", "donor+some/lora"), 2, "line 5: models[1].model", "merge_and_unload"),
}


@pytest.mark.parametrize(("recipe", "code", "where", "hint"), REFUSED.values(), ids=REFUSED)
def test_an_odd_recipe_is_refused(refuse, place, recipe, code, where, hint):
    """Exit code, line and key, and what would be right; nothing is written."""
    write_fake(place / "deep", num_hidden_layers=6)
    write_fake(place / "other")
    refuse(recipe, code, where, hint)


@pytest.mark.parametrize(
    "recipe",
    [
        "\ufeff" + SLERP,
        SLERP.replace("\n", "\r\n"),
        SLERP.replace("donor", "'Müdel 漢字'"),
        SLERP.replace("donor", "../HERE/donor"),
        SLERP.replace("donor", "~/donor"),
        SLERP.replace("donor", "ABSOLUTE/donor"),
        SLERP.replace("0.5", "[0, 0.5, 1]"),
        SLERP.replace("0.5", "&t 0.5") + "globals: {t: *t}\n",
        SLERP + "dtype: torch.float32\nout_dtype: bfloat16\n",
    ],
    ids=["BOM", "CRLF", "unicode", "relative", "home", "absolute", "gradient", "alias", "dtypes"],
)
def test_a_recipe_may_be_written_in_many_ways(place, xmerge, monkeypatch, recipe):
    """Each of these means what it seems to mean: the donor is merged into the base."""
    write_fake(place / "Müdel 漢字")
    monkeypatch.setenv("HOME", str(place))
    written = recipe.replace("HERE", place.name).replace("ABSOLUTE", str(place))
    (place / "recipe.yml").write_text(written, encoding="utf-8", newline="")
    said = xmerge("plan", "recipe.yml")
    assert said.exit_code == 0, said.err
    assert " merge" in said.out


def test_an_output_may_have_any_name(place, xmerge):
    """Spaces and letters of any language, in a folder that is not there yet."""
    (place / "recipe.yml").write_text(SLERP, encoding="utf-8")
    out = Path("neu é") / "Aus gabe"
    said = xmerge("merge", "recipe.yml", out, "--direct", "--skip-trial-load")
    assert said.exit_code == 0, said.err
    assert sorted(os.listdir(place / out.parent)) == [out.name]
