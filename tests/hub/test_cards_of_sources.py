"""Cards and licences of models on the Hub: small files, fetched by commit."""

from __future__ import annotations

import pytest

from tests.hub.samples import FILES, MODEL, UNWANTED, WEIGHTS, go_offline
from tests.hub.server import HubServer
from xmerge import hub
from xmerge.source_cards import MOST_BYTES, read_source_card
from xmerge.sources import Location


def locate(commit: str) -> Location:
    """The model of these tests at a commit."""
    return Location(reference=MODEL, label=MODEL, repo=MODEL, commit=commit)


def test_only_card_and_notices_are_fetched(server: HubServer) -> None:
    """Neither weights nor the tokenizer, and nothing large; what was not fetched is told."""
    large = {"NOTICE": b"x" * (MOST_BYTES + 1)}
    commit = server.add(MODEL, FILES | WEIGHTS | UNWANTED | large)
    card = read_source_card(locate(commit))
    assert card.licence == "apache-2.0"
    assert [name for name, _ in card.notices] == ["LICENSE"]
    assert card.unread == ("NOTICE: it has 1,000,001 bytes",)
    fetched = {served.path.rpartition("/")[2] for served in server.served if f"/resolve/{commit}/" in served.path}
    assert fetched == {"README.md", "LICENSE"}


def test_a_card_is_that_of_the_commit(server: HubServer) -> None:
    """A branch that moves on to another licence changes nothing."""
    commit = server.add(MODEL, FILES | WEIGHTS)
    server.repositories[MODEL].commit({"README.md": b"---\nlicense: mit\n---\n"})
    assert read_source_card(locate(commit)).licence == "apache-2.0"


def test_offline_a_card_that_is_not_cached_counts_as_unread(server: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """The merge goes on, and the output's card says that nothing is known; cached cards are read."""
    commit = server.add(MODEL, FILES | WEIGHTS)
    hub.list_files(MODEL, commit)
    hub.fetch_metadata(MODEL, commit, ("LICENSE",))
    go_offline(monkeypatch)
    card = read_source_card(locate(commit))
    assert card.licence is None and [name for name, _ in card.notices] == ["LICENSE"]
    assert card.unread == ("README.md: it is not in the local cache, and the Hub may not be asked",)
