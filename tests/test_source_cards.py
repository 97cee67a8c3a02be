"""Cards of sources: what can be used of them is, and nothing they hold can do harm."""

from __future__ import annotations

import re

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from tests.fake_checkpoints import write_fake
from xmerge.errors import CheckpointError
from xmerge.source_cards import MOST_BYTES, SourceCard, describe_card, parse_front_matter, read_source_card
from xmerge.sources import Location

PLAIN = re.compile(r"[\w .+()~%/@=:-]*", re.ASCII)


def locate(folder) -> Location:
    """A model in a folder."""
    return Location(reference=str(folder), label="model", folder=folder)


def test_a_card_is_read_as_it_is_written(tmp_path):
    """Licence, languages, data sets and task; `no` is a language, and a licence never a number."""
    folder = write_fake(tmp_path / "model")
    (folder / "README.md").write_text(
        "---\nlicense: other\nlicense_name: House Rules\nlicense_link: https://x.org/a_b\n"
        "language: [en, no]\ndatasets: org/data\npipeline_tag: text-generation\ntags: [x]\n---\n# A\n"
    )
    (folder / "LICENSE.txt").write_text("text")
    (folder / "LICENSE.py").write_text("code")
    card = read_source_card(locate(folder))
    assert card.model_dump(exclude={"notices"}) == {
        "licence": "other",
        "licence_name": "House Rules",
        "licence_link": "https://x.org/a_b",
        "languages": ("en", "no"),
        "datasets": ("org/data",),
        "pipeline_tag": "text-generation",
        "unread": (),
    }
    assert [name for name, _ in card.notices] == ["LICENSE.txt"]


def test_a_model_without_a_card_says_nothing(tmp_path):
    """No card and no licence is no error."""
    assert read_source_card(locate(write_fake(tmp_path / "model"))) == SourceCard()


VALUES = st.recursive(st.text(max_size=30), lambda inner: st.lists(inner, max_size=3), max_leaves=6)


@given(st.dictionaries(st.sampled_from(["license", "license_name", "license_link", "language", "datasets"]), VALUES))
def test_nothing_of_a_card_that_is_carried_over_means_anything_to_markdown_or_yaml(said):
    """Whatever stands in the metadata, what is kept is short, plain, and as it was given; the rest is told."""
    card = describe_card(said)
    kept = [card.licence, card.licence_name, card.licence_link, *card.languages, *card.datasets]
    for text in filter(None, kept):
        assert PLAIN.fullmatch(text) and len(text) < 420
        assert yaml.safe_load(f'- "{text}"') == [text]
    given = [each for value in said.values() for each in (value if isinstance(value, list) else [value])]
    assert set(filter(None, kept)) <= {each for each in given if isinstance(each, str)}


@given(st.text())
def test_any_front_matter_is_a_mapping_or_refused(text):
    """No text in the place of the metadata ends in anything but a mapping or one kind of error."""
    try:
        said = parse_front_matter(f"---\n{text}\n---\n")
    except ValueError as error:
        said = {"refused": str(error)}
    assert isinstance(said, dict)
    assert said.get("refused", "its metadata is no").startswith("its metadata is no")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("---\n[a]\n---\n", "its metadata is no mapping"),
        ("---\na: [\n---\n", "its metadata is no YAML"),
        (f"---\na: {'[' * 600}\n---\n", "its metadata is no YAML"),
        (f"---\na: {'x' * 64_000}\n---\n", "its metadata has 64,004 characters"),
        ("---\nlicense: '<script>'\n---\n", "of 'license', 1 of 1 could not be used"),
        ("---\nlicense: [mit, apache-2.0]\n---\n", "'license' says several things at once"),
        ("x" * (MOST_BYTES + 1), "it has 1,000,001 bytes"),
    ],
)
def test_a_card_that_cannot_be_used_is_told(tmp_path, text, told):
    """The merge goes on without it, and the output's card says so."""
    folder = write_fake(tmp_path / "model")
    (folder / "README.md").write_text(text)
    card = read_source_card(locate(folder))
    assert card.licence is None
    assert len(card.unread) == 1 and card.unread[0].startswith("README.md: ") and told in card.unread[0]


def test_a_link_out_of_the_model_is_no_notice(tmp_path):
    """A licence that is a link to another place could bring any file of this machine into the output."""
    folder = write_fake(tmp_path / "model")
    (tmp_path / "secret").write_text("secret")
    (folder / "LICENSE").symlink_to(tmp_path / "secret")
    with pytest.raises(CheckpointError, match="leads out of its folder"):
        read_source_card(locate(folder))
