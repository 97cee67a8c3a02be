"""The model card: readable by a person and by the Hub, and harmless whatever the checkpoints say."""

from __future__ import annotations

import html
import re

import pytest
import yaml
from hypothesis import example, given
from hypothesis import strategies as st

from tests.small_merges import RECIPE, make_plan, run, write_models
from xmerge.card import draw_card, draw_table, escape
from xmerge.engine import LayerResult, TensorResult
from xmerge.source_cards import SourceCard


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """The two models of the recipe."""
    return write_models(tmp_path_factory.mktemp("models"))


def fake_results(plan):
    """Results of layers that nobody has made."""
    return [
        LayerResult(
            label=layer.label,
            fingerprint=layer.fingerprint,
            bytes=0,
            sha256="",
            tensors=tuple(TensorResult(name=tensor.name) for tensor in layer.tensors),
            stamps=(),
            device="cpu",
            seconds=0.0,
        )
        for layer in plan.layers
    ]


def draw(models, recipe: str = RECIPE, **changes: str) -> str:
    """The card of a recipe, with other words for the first model."""
    config, plan = make_plan(models, recipe)
    models = (plan.models[0].model_copy(update=changes), *plan.models[1:])
    return draw_card(plan.model_copy(update={"models": models}), config, fake_results(plan))


def test_the_card_says_what_came_from_where(models, tmp_path):
    """Base, donor, layer map, what was dropped, how far from the base, and how to make it again."""
    run(models, tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    for text in (
        "# slerp llama + qwen3",
        "It is exactly a llama model of 4 layers, with the config and tokenizer of llama.",
        "- donor: qwen3 (qwen3, 6 layers)",
        "| component | layers | tensors | size | what | class | from | why |",
        "| attn\\_q | 0-3 | 4 | ",
        "Classes: A exact, C approximate.",
        "| output layer | llama | qwen3 |",
        "attn\\_k\\_norm",
        "## How far from the base",
        "`xmerge merge xmerge_config.yml OUT`",
        "Interpolating such weights is an experiment",
    ):
        assert text in card, text
    assert f"```yaml\n{RECIPE}```\n" in card


def test_a_merge_within_a_family_makes_no_cross_family_claim(models):
    """The limits that are told are the limits of this merge."""
    card = draw(models, "merge_method: passthrough\nmodels: [{model: llama}]\n")
    assert "of different families" not in card and "measure it on your own task" in card
    assert "Classes:" not in card
    assert "## Layer map" not in card


@given(st.text())
@example("a & b &lt; \\`*_[]<>|#~$ &#35;")
def test_escaped_text_is_one_line_that_reads_the_same_and_marks_nothing_up(text):
    """No sign of Markdown or HTML is left bare, and what a reader sees is the text without its invisible signs."""
    escaped = escape(text)
    assert "\n" not in escaped and escaped.isprintable()
    bare = re.sub(r"\\[\\*_\[\]#~$]|&#\d+;", "", escaped)
    assert not set(bare) & set("\\`*_[]<>|#~$&")
    shown = html.unescape(re.sub(r"\\(.)", r"\1", escaped))
    assert shown == " ".join("".join(sign if sign.isprintable() else " " for sign in text).split())


@given(st.lists(st.lists(st.text(), min_size=2, max_size=2), max_size=4))
def test_a_table_has_as_many_cells_as_it_was_given(rows):
    """No text can end its cell or its row."""
    lines = list(draw_table(("a", "b"), rows))
    assert len(lines) == len(rows) + 2
    assert {line.count("|") for line in lines} == {3}


@pytest.mark.parametrize("name", ["a\n---\ntags: [x]", "<script>x</script>", "![x](http://x)", "| a | b |", "\u202ex"])
def test_a_model_name_cannot_break_out_of_its_place(models, name):
    """Front matter, HTML, pictures, tables and hidden signs in a name come out as plain text."""
    card = draw(models, label=name, kind=name)
    assert card.count("\n---\n") == draw(models).count("\n---\n")
    assert "<script" not in card and card.count("![") == 1 and "\u202e" not in card
    assert yaml.safe_load(card.split("---\n")[1])["tags"] == ["merge", "xmerge"]


@pytest.mark.parametrize("repo", ["org/name", "1e3", "null", "2024-01-01"])
def test_a_repository_is_a_text_in_the_front_matter(models, repo):
    """A name that YAML would take for a number, a date or nothing stays a name."""
    card = draw(models, repo=repo, commit="0" * 40)
    metadata = yaml.safe_load(card.split("---\n")[1])
    assert metadata["base_model"] == [repo] and metadata["base_model_relation"] == "merge"


def test_the_metadata_is_that_of_all_sources(models):
    """Languages and data sets of all, each once; the base's task; one licence where all have it, else `other`."""
    llama = SourceCard(licence="mit", languages=("en", "no"), datasets=("org/a",), pipeline_tag="text2text-generation")
    qwen3 = SourceCard(licence="mit", languages=("zh", "en"), datasets=("org/a", "org/b"), pipeline_tag="x")
    said = read_metadata(draw_with(models, llama, qwen3))
    assert said["language"] == ["en", "no", "zh"]
    assert said["datasets"] == ["org/a", "org/b"]
    assert said["pipeline_tag"] == "text2text-generation" and said["license"] == "mit"
    said = read_metadata(draw_with(models, llama, SourceCard(licence="gemma")))
    assert said["license"] == "other" and "license_name" not in said
    assert "license" not in read_metadata(draw_with(models, SourceCard(), SourceCard()))


def test_the_licences_are_told_with_what_they_ask_for(models):
    """Each model's licence with its text, words to be shown, conflicts, and what is not known; no legal advice."""
    card = draw_with(models, SourceCard(licence="llama3"), SourceCard(licence="house-rules", unread=("LICENSE: big",)))
    assert card.index("**Built with Meta Llama 3**") < card.index("## What came from where")
    for text in (
        "- llama: Meta Llama 3 Community License, <https://www.llama.com/llama3/license/>\n",
        "- qwen3: house-rules\n",
        "Forbids this merge to be passed on: Meta Llama 3 Community License: section 1.b.v",
        "Of the licence of qwen3 nothing is known here",
        "- qwen3, LICENSE: big.",
        "not legal advice",
    ):
        assert text in card, text


def test_the_commits_of_the_sources_are_part_of_how_to_make_it_again(models):
    """A branch that a recipe names moves; the commit that it stood at does not."""
    card = draw(models, repo="org/llama", commit="0" * 40)
    assert f"`org/llama@{'0' * 40}`" in card.split("## How to make it again")[1]


def read_metadata(card: str) -> dict[str, object]:
    """What the Hub reads of a card."""
    metadata = yaml.safe_load(card.split("---\n")[1])
    assert isinstance(metadata, dict)
    return metadata


def draw_with(models, *cards: SourceCard) -> str:
    """The card of a merge whose sources have these cards."""
    config, plan = make_plan(models)
    given = tuple(model.model_copy(update={"card": card}) for model, card in zip(plan.models, cards, strict=True))
    return draw_card(plan.model_copy(update={"models": given}), config, fake_results(plan))


@given(st.integers(1, 12))
def test_no_configuration_can_close_the_fence_it_stands_in(ticks):
    """Backticks in the configuration's text are inside the fence, however many they are."""
    import tempfile
    from pathlib import Path

    with tempfile.TemporaryDirectory() as folder:
        recipe = f"{RECIPE}# {'`' * ticks}\n{'#' * 3} {'`' * ticks}\n"
        card = draw(write_models(Path(folder)), recipe)
    fence = re.search(r"^(`+)yaml$", card, re.MULTILINE)
    assert fence is not None
    assert len(fence[1]) == max(3, ticks + 1)
    assert card.split(f"{fence[1]}yaml\n")[1].startswith(recipe.rstrip("\n") + f"\n{fence[1]}\n")


def test_the_seed_of_the_command_line_is_part_of_how_to_make_it_again(models):
    """A seed that the configuration's text does not say is told beside the command."""
    config, plan = make_plan(models)
    card = draw_card(plan, config.model_copy(update={"random_seed": 7}), fake_results(plan))
    assert "`xmerge merge xmerge_config.yml OUT --seed 7`" in card


def test_a_configuration_without_a_text_is_pointed_to(models):
    """A configuration made in a program is in its file."""
    config, plan = make_plan(models)
    assert "# The configuration was given as data" in draw_card(
        plan, type(config)(**config.model_dump()), fake_results(plan)
    )
