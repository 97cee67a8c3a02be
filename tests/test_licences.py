"""Licences: what is known of them, and what follows for a merge of models under several."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.small_merges import RECIPE, make_plan, write_models
from xmerge.config import parse_config
from xmerge.errors import ConfigError, PlanError
from xmerge.licences import (
    find_licence,
    judge_licences,
    link_licence,
    list_licences,
    list_open_conflicts,
    name_notices,
    tell_licence,
)
from xmerge.source_cards import SourceCard

IDS = [licence.id for licence in list_licences()]
CARDS = st.builds(
    SourceCard,
    licence=st.sampled_from([None, "other", "unheard-of", *IDS]),
    licence_name=st.sampled_from([None, "qwen-research", "house rules"]),
    notices=st.lists(st.tuples(st.sampled_from(["LICENSE", "NOTICE"]), st.sampled_from(["a", "b"])), max_size=2).map(
        lambda pairs: tuple(dict(pairs).items())
    ),
)


def card(licence: str | None, name: str | None = None, link: str | None = None) -> SourceCard:
    """A card that says this of its licence and nothing else."""
    return SourceCard(licence=licence, licence_name=name, licence_link=link)


def test_every_known_licence_is_listed_once_with_a_reason_for_each_conflict():
    """No identifier or name stands twice, links are addresses, and what refuses says why."""
    calls = [name for licence in list_licences() for name in licence.calls]
    assert len(IDS) == len(set(IDS)) and len(calls) == len(set(calls))
    for licence in list_licences():
        assert licence.link.startswith("https://")
        assert (licence.refuses is None) == (licence.because is None)


@given(st.lists(CARDS, min_size=1, max_size=4), st.randoms())
def test_the_order_of_the_models_decides_no_conflict_and_no_duty(cards, random):
    """What is forbidden and what is to be done are those of the set of licences."""
    shuffled = random.sample(cards, len(cards))
    one, other = judge_licences(cards), judge_licences(shuffled)
    assert sorted(each.licence for each in one.conflicts) == sorted(each.licence for each in other.conflicts)
    assert sorted(one.duties) == sorted(other.duties)
    assert (one.carries_over, one.begins, one.display) == (other.carries_over, other.begins, other.display)


@given(CARDS, st.integers(1, 3))
def test_equal_licences_carry_over(one, times):
    """Models under one licence give a merge under it, with its name and link; models that name none, none."""
    verdict = judge_licences([one] * times)
    if one.licence is None or (one.licence == "other" and not one.licence_name):
        assert not verdict.carries_over
    else:
        assert (verdict.licence, verdict.name) == (one.licence, one.licence_name)
        assert verdict.carries_over


@pytest.mark.parametrize("second", [card("mit"), card(None), card("other", "mit"), card("other")])
def test_different_licences_give_other(second):
    """Where one model has another licence, or none, the merge has no licence of a known name."""
    verdict = judge_licences([card("apache-2.0"), second])
    assert verdict.licence == "other" and not verdict.carries_over


def test_two_licences_of_which_nothing_is_said_are_not_one():
    """`other` without a name and a link is no licence that two models could share."""
    assert not judge_licences([card("other"), card("other")]).carries_over
    assert judge_licences([card("other", "x"), card("other", "x")]).carries_over


@pytest.mark.parametrize(
    ("licences", "conflicts"),
    [
        (("llama3", "apache-2.0"), ["llama3"]),
        (("llama2", "llama3"), ["llama2", "llama3"]),
        (("llama3", "llama3"), []),
        (("llama3", None), ["llama3"]),
        (("llama3.1", "apache-2.0"), []),
        (("gemma", "llama3.2"), []),
        (("cc-by-nc-4.0", "mit"), []),
        (("cc-by-sa-4.0", "mit"), []),
        (("cc-by-sa-4.0", "gemma"), ["cc-by-sa-4.0"]),
        (("cc-by-nc-sa-4.0", "cc-by-sa-4.0"), ["cc-by-nc-sa-4.0", "cc-by-sa-4.0"]),
        (("cc-by-nc-nd-4.0", "cc-by-nc-nd-4.0"), ["cc-by-nc-nd-4.0"]),
        (("unheard-of", "mit"), []),
    ],
)
def test_known_conflicts(licences, conflicts):
    """What the table says of pairs of licences, whichever comes first."""
    for each in itertools.permutations(licences):
        assert sorted(found.licence for found in judge_licences([card(name) for name in each]).conflicts) == conflicts


def test_what_llama_asks_for_is_written_down():
    """The beginning of the name, the words to be shown and the notice; of two beginnings the longer one."""
    verdict = judge_licences([card("llama3.1"), card("llama3"), card("mit")])
    assert verdict.begins == ("Llama 3",)
    assert verdict.display == ("Built with Llama", "Built with Meta Llama 3")
    assert any("begins with “Llama”" in duty for duty in verdict.duties)
    assert any("Copyright © Meta Platforms" in duty for duty in verdict.duties)


def test_a_licence_is_known_by_the_name_that_cards_give_it():
    """`license: other` with a known `license_name` is that licence; a link of the card comes before ours."""
    research = card("other", "Qwen-Research")
    assert (found := find_licence(research)) and not found.commercial
    assert link_licence(research) == found.link
    assert link_licence(card("other", "x", "https://x.org/y")) == "https://x.org/y"
    assert link_licence(card("other", "x", "LICENSE")) is None
    assert [tell_licence(each) for each in (card(None), card("other", "house"), card("odd-1"))] == [
        "none is named",
        "house",
        "odd-1",
    ]


@given(st.lists(st.tuples(st.sampled_from(["a", "org/a", "org-a", "../x", "é"]), CARDS), min_size=1, max_size=4))
def test_every_notice_goes_along_under_a_name_of_its_own(sources):
    """No two copies share a name, every text is among them, and a name is never a path."""
    notices = name_notices(sources, judge_licences([source for _, source in sources]))
    names = [notice.copy_name for notice in notices]
    assert len(names) == len(set(names))
    assert not [name for name in names if "/" in name or name.startswith(".")]
    assert {(notice.file, notice.sha256) for notice in notices} == {
        pair for _, each in sources for pair in each.notices
    }


@pytest.fixture
def models(tmp_path):
    """The models of the recipe, under licences that do not go together."""
    write_models(tmp_path)
    for name, licence in (("llama", "llama3"), ("qwen3", "apache-2.0")):
        (tmp_path / name / "README.md").write_text(f"---\nlicense: {licence}\n---\n")
    return tmp_path


def test_a_publication_that_a_licence_forbids_is_refused_by_the_plan(models):
    """Which licence, which clause, where in the recipe, how to acknowledge it, and that it is no legal advice."""
    with pytest.raises(PlanError) as refused:
        make_plan(models, RECIPE + "publish: {repo: me/x}\n")
    for text in ("recipe.yml, line 13: publish", "section 1.b.v", "`acknowledge: [llama3]`", "not legal advice"):
        assert text in str(refused.value)
    make_plan(models, RECIPE + "publish: {repo: me/Llama-3-x, acknowledge: [llama3]}\n")
    make_plan(models)


@pytest.mark.parametrize(
    ("name", "warned"), [("x", True), ("Llama-x", True), ("Llama-3-x", False), ("llama3_x", False)]
)
def test_a_name_that_a_licence_does_not_want_is_warned_of(models, name, warned):
    """Upper and lower case and what stands between words do not count."""
    _, plan = make_plan(models, RECIPE + f"publish: {{repo: me/{name}, acknowledge: [llama3]}}\n")
    assert any("to begin with 'Llama 3'" in warning for warning in plan.warnings) == warned


def test_only_what_refuses_can_be_acknowledged():
    """A licence that forbids nothing, or that nobody knows, is refused with the nearest that can be."""
    with pytest.raises(ConfigError, match="did you mean 'llama3'"):
        parse_config(RECIPE + "publish: {repo: me/x, acknowledge: [llama-3]}\n", "recipe.yml")
    with pytest.raises(ConfigError, match="'mit' is no licence that is to be acknowledged"):
        parse_config(RECIPE + "publish: {repo: me/x, acknowledge: [mit]}\n", "recipe.yml")


def test_a_licence_that_changes_is_another_plan(models):
    """The cards of the models are part of what decides the output's bytes."""
    _, before = make_plan(models)
    (models / "llama" / "README.md").write_text("---\nlicense: llama2\n---\n")
    _, after = make_plan(models)
    assert before.fingerprint != after.fingerprint
    assert [layer.fingerprint for layer in before.layers] == [layer.fingerprint for layer in after.layers]
    assert list_open_conflicts(after.licensing.conflicts, ()) and not list_open_conflicts(
        after.licensing.conflicts, ("llama2",)
    )
