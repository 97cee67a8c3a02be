"""Parts of files: sets of bytes, files with holes and their journal, and ranges over a bad connection."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.hub.samples import FILES, FIRST_READ, MODEL, ONE, TWO, WEIGHTS, go_offline, header_of
from tests.hub.server import HubServer
from xmerge import hub
from xmerge.errors import CheckpointError, HubError, HubUnavailableError, Interrupted, StorageError
from xmerge.hub.ranges import ATTEMPTS, Range, pause
from xmerge.hub.sparse import NEAR, cut_pieces, join_ranges, open_sparse, subtract_ranges
from xmerge.interrupt import request_stop, stoppable

RANGES = st.lists(st.tuples(st.integers(0, 60), st.integers(1, 20)).map(lambda pair: Range(pair[0], sum(pair))))
HEADER = header_of(WEIGHTS[ONE])
SIZE = len(WEIGHTS[ONE])
PARTS = (Range(60_000, 70_000), Range(120_000, 120_100))
"""Far enough from each other and from the header to be fetched each for itself."""


def bytes_of(ranges: list[Range]) -> set[int]:
    """The places of all bytes."""
    return {place for each in ranges for place in range(*each)}


def fetch(folder: Path, commit: str, *parts: Range, file: str = ONE) -> bool:
    """Fetch parts of one shard."""
    return hub.fetch_ranges(MODEL, commit, {file: parts or PARTS}, folder)


def sent(server: HubServer, file: str = ONE) -> int:
    """Bytes that the server has sent of a shard, without its header, which is read first."""
    headers = min(FIRST_READ, len(WEIGHTS[file]))
    return server.bytes_of(file) - headers


# --- sets of bytes


@given(RANGES, st.integers(0, 5))
def test_joined_ranges_hold_the_same_bytes(ranges: list[Range], near: int) -> None:
    """Joining keeps every byte, adds none but those of gaps up to `near`, and leaves greater gaps between."""
    joined = join_ranges(ranges, near)
    added = bytes_of(joined) - bytes_of(ranges)
    assert bytes_of(ranges) <= bytes_of(joined)
    assert all(after.start > before.stop + near for before, after in itertools.pairwise(joined))
    assert near > 0 or not added
    assert all(bytes_of(ranges) & set(range(place - near, place + near + 1)) for place in added)


@given(RANGES, RANGES)
def test_what_is_left_is_what_the_others_lack(ranges: list[Range], others: list[Range]) -> None:
    """Subtracting ranges is subtracting their bytes."""
    assert bytes_of(subtract_ranges(ranges, others)) == bytes_of(ranges) - bytes_of(others)


@given(RANGES, st.integers(1, 30))
def test_pieces_hold_each_byte_once(ranges: list[Range], most: int) -> None:
    """Cutting changes no byte, repeats none, and leaves no piece above the limit."""
    joined = join_ranges(ranges)
    pieces = cut_pieces(joined, most)
    assert bytes_of(pieces) == bytes_of(joined)
    assert sum(piece.nbytes for piece in pieces) == sum(each.nbytes for each in joined)
    assert all(0 < piece.nbytes <= most for piece in pieces)


# --- files with holes


def write_parts(path: Path, *parts: Range) -> list[Range]:
    """Put parts of a shard where they belong; what was intact before."""
    with open_sparse(path, SIZE, HEADER) as (shard, intact):
        for part in parts:
            data = WEIGHTS[ONE][slice(*part)]
            shard.write(part.start, data)
            shard.note(part, hashlib.sha256(data).hexdigest())
        return intact


def test_a_file_with_holes_looks_like_its_shard(tmp_path: Path) -> None:
    """It has the shard's size, its header, and its bytes where some have come."""
    write_parts(tmp_path / ONE, *PARTS)
    data = (tmp_path / ONE).read_bytes()
    assert len(data) == SIZE
    assert header_of(data) == HEADER
    assert [data[slice(*part)] for part in PARTS] == [WEIGHTS[ONE][slice(*part)] for part in PARTS]


def test_what_has_come_is_known_again(tmp_path: Path) -> None:
    """A piece that was noted counts the next time, and the file is not touched for it."""
    assert write_parts(tmp_path / ONE, *PARTS) == []
    before = (tmp_path / ONE).stat().st_mtime_ns
    assert write_parts(tmp_path / ONE) == list(PARTS)
    assert (tmp_path / ONE).stat().st_mtime_ns == before


def test_a_changed_byte_makes_its_piece_missing(tmp_path: Path) -> None:
    """A piece that is not what the journal says does not count; the others do."""
    path = tmp_path / ONE
    write_parts(path, *PARTS)
    with path.open("r+b") as file:
        file.seek(PARTS[0].start + 7)
        file.write(b"\xff")
    assert write_parts(path) == [PARTS[1]]
    assert write_parts(path, PARTS[0]) == [PARTS[1]]
    assert write_parts(path) == [PARTS[1], PARTS[0]]


@pytest.mark.parametrize(
    "torn", [b"", b"[120", b"\xff\xfe\n", b"null\n", b'[-5, 9, "0"]\n', b'["a", 2, "0"]\n[1, 2]\n', b'[0, 9e9, "0"]\n']
)
def test_a_torn_journal_says_less_and_nothing_false(tmp_path: Path, torn: bytes) -> None:
    """What is no whole line of a journal is passed over, and what was noted after it is found again."""
    path, journal = tmp_path / ONE, tmp_path / f"{ONE}.journal"
    write_parts(path, *PARTS)
    journal.write_bytes(journal.read_bytes().splitlines(keepends=True)[0] + torn)
    assert write_parts(path, PARTS[1]) == [PARTS[0]]
    assert write_parts(path) == list(PARTS)


def test_another_header_begins_anew(tmp_path: Path) -> None:
    """Where the file is not one of this shard, nothing of it counts."""
    path = tmp_path / ONE
    write_parts(path, *PARTS)
    with open_sparse(path, SIZE, HEADER[:-1] + b" ") as (_, intact):
        assert intact == []
    assert set(path.read_bytes()[len(HEADER) :]) == {0}


def test_a_link_is_not_written_through(tmp_path: Path) -> None:
    """A link to a whole shard is replaced; the shard behind it stays as it is."""
    (tmp_path / "whole").write_bytes(b"another's")
    (tmp_path / ONE).symlink_to(tmp_path / "whole")
    write_parts(tmp_path / ONE, *PARTS)
    assert (tmp_path / "whole").read_bytes() == b"another's"
    assert not (tmp_path / ONE).is_symlink()


# --- over the wire


def test_only_the_asked_bytes_are_fetched(server: HubServer, commit: str, tmp_path: Path) -> None:
    """The server sends the header once, and of the rest exactly what was asked for."""
    assert fetch(tmp_path, commit)
    assert sent(server) == sum(part.nbytes for part in PARTS)
    data = (tmp_path / ONE).read_bytes()
    assert [data[slice(*part)] for part in PARTS] == [WEIGHTS[ONE][slice(*part)] for part in PARTS]


def test_what_has_come_is_not_fetched_again(server: HubServer, commit: str, tmp_path: Path) -> None:
    """A second fetch asks for what is new in it, and for nothing if there is nothing new."""
    fetch(tmp_path, commit, PARTS[0])
    before = server.bytes_of(ONE)
    fetch(tmp_path, commit, *PARTS)
    assert server.bytes_of(ONE) - before == PARTS[1].nbytes
    before = len(server.served)
    fetch(tmp_path, commit, *PARTS)
    assert len(server.served) == before


def test_near_parts_are_one_request(server: HubServer, commit: str, tmp_path: Path) -> None:
    """Two parts with few bytes between are asked for together."""
    fetch(tmp_path, commit, Range(60_000, 61_000), Range(61_000 + NEAR, 70_000))
    assert server.count(f"GET /{MODEL}/resolve/") == 2, "one for the header and one for both parts"


def test_a_reset_in_mid_body_costs_no_byte_twice(server: HubServer, commit: str, tmp_path: Path) -> None:
    """After a reset the rest is asked for, and not what has come."""
    hub.read_shard_headers(MODEL, commit, [ONE])
    server.fail("GET /stored/", reset=True, times=2)
    fetch(tmp_path, commit, PARTS[0])
    assert sent(server) == PARTS[0].nbytes
    assert (tmp_path / ONE).read_bytes()[slice(*PARTS[0])] == WEIGHTS[ONE][slice(*PARTS[0])]


@pytest.mark.parametrize("status", [429, 500, 503])
@pytest.mark.parametrize("at", ["/resolve/", "GET /stored/"])
def test_a_disturbance_is_waited_out_as_long_as_the_hub_asks(
    server: HubServer, commit: str, tmp_path: Path, status: int, at: str
) -> None:
    """After 429 and 5xx the same range is asked for again, not before the time that Retry-After names."""
    hub.read_shard_headers(MODEL, commit, [ONE])
    server.fail(at, status=status, headers={"Retry-After": "7"}, times=2)
    fetch(tmp_path, commit, PARTS[0])
    assert len(server.slept) == 2
    assert 7 <= min(server.slept) <= max(server.slept) <= 8


def test_a_retry_after_may_be_a_date(server: HubServer, commit: str, tmp_path: Path) -> None:
    """A date in Retry-After is waited for like a number of seconds."""
    hub.read_shard_headers(MODEL, commit, [ONE])
    when = format_datetime(datetime.now(UTC) + timedelta(seconds=60), usegmt=True)
    server.fail("/resolve/", status=503, headers={"Retry-After": when})
    fetch(tmp_path, commit, PARTS[0])
    assert 50 < server.slept[0] <= 61


def test_without_a_word_of_the_hubs_waits_grow_and_differ(server: HubServer, commit: str, tmp_path: Path) -> None:
    """Waits double, and no two of them are alike; after the last attempt the error is the one worth retrying."""
    hub.read_shard_headers(MODEL, commit, [ONE])
    server.fail("/resolve/", status=503, times=99)
    with pytest.raises(HubUnavailableError, match="could not answer for now"):
        fetch(tmp_path, commit, PARTS[0])
    assert len(server.slept) == ATTEMPTS - 1
    for attempt, seconds in enumerate(server.slept):
        assert 0.5 * 2**attempt <= seconds <= 2**attempt
    assert len({seconds / 2**attempt for attempt, seconds in enumerate(server.slept)}) == ATTEMPTS - 1


def test_a_wait_that_is_too_long_is_passed_on(server: HubServer, commit: str, tmp_path: Path) -> None:
    """A Hub that wants to be left alone for an hour is; the person is told, and may come back."""
    hub.read_shard_headers(MODEL, commit, [ONE])
    server.fail("/resolve/", status=429, headers={"Retry-After": "3600"}, times=99)
    with pytest.raises(HubUnavailableError) as refused:
        fetch(tmp_path, commit, PARTS[0])
    assert refused.value.remedy == "run again in 3600 seconds."
    assert server.slept == []


@pytest.mark.parametrize(
    ("status", "code", "told"),
    [
        (401, None, "private and may not be seen"),
        (403, "GatedRepo", "accept the licence"),
        (403, None, "refused the request (status 403)"),
        (404, "EntryNotFound", "no such file"),
        (404, "RevisionNotFound", "no such revision"),
        (412, None, "refused the request (status 412)"),
    ],
)
def test_a_refusal_is_not_asked_again(
    server: HubServer, commit: str, tmp_path: Path, status: int, code: str | None, told: str
) -> None:
    """Whatever the Hub refuses for good is asked for once, and the error says what to do."""
    hub.read_shard_headers(MODEL, commit, [ONE])
    server.served.clear()
    server.fail("/resolve/", status=status, headers={"X-Error-Code": code} if code else {}, times=99)
    with pytest.raises(HubError) as refused:
        fetch(tmp_path, commit, PARTS[0])
    assert told in str(refused.value)
    assert refused.value.remedy
    assert not isinstance(refused.value, HubUnavailableError)
    assert (len(server.served), server.slept) == (1, [])


@pytest.mark.parametrize(
    ("how", "told"),
    [
        ({"cut": 7}, "a transfer from the Hub ended early"),
        ({"shifted": 9}, "another part of a file than it was asked for"),
    ],
)
def test_what_is_not_what_was_asked_for_does_not_count(
    server: HubServer, commit: str, tmp_path: Path, how: dict[str, Any], told: str
) -> None:
    """A part that comes short or is another one is refused, and fetched again by the next run."""
    hub.read_shard_headers(MODEL, commit, [ONE])
    server.fail("GET /stored/", **how)
    with pytest.raises(HubError, match=told):
        fetch(tmp_path, commit, PARTS[0])
    assert (tmp_path / f"{ONE}.journal").read_text() == ""
    fetch(tmp_path, commit, PARTS[0])
    assert (tmp_path / ONE).read_bytes()[slice(*PARTS[0])] == WEIGHTS[ONE][slice(*PARTS[0])]


def test_a_file_of_another_size_is_refused(server: HubServer, commit: str, tmp_path: Path) -> None:
    """Where the storage holds a file of another size than the listing says, no part of it is taken."""
    hub.read_shard_headers(MODEL, commit, [ONE])
    server.repositories[MODEL].commits[commit][ONE] = WEIGHTS[ONE] + b"more"
    with pytest.raises(HubError, match="does not have the size") as refused:
        fetch(tmp_path, commit, PARTS[0])
    assert refused.value.why == f"the repository says {SIZE:,} bytes, and there are {SIZE + 4:,}."


def test_a_server_that_ignores_ranges_is_noticed(server: HubServer, commit: str, tmp_path: Path) -> None:
    """A server that begins to send the whole shard is told from one that gives parts; nothing counts as fetched."""
    hub.read_shard_headers(MODEL, commit, [ONE])
    server.fail("GET /stored/", whole=True, times=99)
    assert fetch(tmp_path, commit) is False
    assert (tmp_path / f"{ONE}.journal").read_text() == ""


def test_one_refused_part_ends_the_others(server: HubServer, commit: str, tmp_path: Path) -> None:
    """When one part is refused the others are not fetched to their end, and what has come is kept."""
    hub.read_shard_headers(MODEL, commit, [ONE, TWO])
    fetch(tmp_path, commit, PARTS[0])
    server.served.clear()
    server.fail("/resolve/", status=403, times=99)
    many = [Range(place, place + 10) for place in range(20_000, 500_000, 20_000)]
    with pytest.raises(HubError, match="refused the request"):
        fetch(tmp_path, commit, *many, file=TWO)
    assert len(server.served) < len(many)
    assert (tmp_path / f"{ONE}.journal").read_text() != ""


def test_offline_parts_come_from_an_earlier_fetch(
    server: HubServer, commit: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Offline, what has come is used, and the shard that something is missing of is named."""
    fetch(tmp_path, commit, PARTS[0])
    go_offline(monkeypatch)
    assert fetch(tmp_path, commit, PARTS[0])
    with pytest.raises(HubError, match="not in the local cache") as refused:
        fetch(tmp_path, commit, *PARTS)
    assert refused.value.where == f"{ONE} in {MODEL}@{commit}"


def test_a_full_disk_is_told_before_any_part_is_fetched(
    server: HubServer, commit: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where there is no room for the parts, none is asked for."""
    hub.read_shard_headers(MODEL, commit, [ONE])
    server.served.clear()
    monkeypatch.setattr("xmerge.hub.pieces.free_bytes", lambda _folder: 9_000)
    with pytest.raises(StorageError, match="too little space") as refused:
        fetch(tmp_path, commit)
    assert refused.value.why == "10,100 bytes are needed and 9,000 are free."
    assert server.served == []


@pytest.fixture
def stopping() -> Iterator[None]:
    """A run that was told to stop."""
    with stoppable():
        request_stop()
        yield


def test_a_stop_ends_a_fetch(server: HubServer, commit: str, tmp_path: Path, stopping: None) -> None:
    """After a signal no part is fetched to its end."""
    with pytest.raises(Interrupted):
        fetch(tmp_path, commit)


def test_a_stop_ends_a_wait(stopping: None) -> None:
    """After a signal nobody waits for the Hub's next hour."""
    with pytest.raises(Interrupted):
        pause(3600)


# --- whole shards


def test_wrong_bytes_are_fetched_once_more(server: HubServer, commit: str) -> None:
    """A shard whose SHA-256 is not the one that the Hub names does not stay in the cache."""
    server.fail("GET /stored/", garbled=True)
    assert (hub.fetch_shards(MODEL, commit, [ONE]) / ONE).read_bytes() == WEIGHTS[ONE]
    assert server.bytes_of(ONE) == 2 * SIZE


def test_bytes_that_stay_wrong_are_refused(server: HubServer, commit: str, tmp_path: Path) -> None:
    """Nothing of a file with other bytes is left, in the cache or anywhere, and the next run fetches it."""
    server.fail("GET /stored/", garbled=True, times=2)
    with pytest.raises(HubError, match="does not hold the bytes") as refused:
        hub.fetch_shards(MODEL, commit, [ONE])
    assert refused.value.where == f"{ONE} in {MODEL}@{commit}"
    assert not [path for path in (tmp_path / "home").rglob("*") if path.is_file() and path.stat().st_size == SIZE]
    assert (hub.fetch_shards(MODEL, commit, [ONE]) / ONE).read_bytes() == WEIGHTS[ONE]


# --- what is remembered


def test_a_commit_is_asked_about_once(server: HubServer, commit: str) -> None:
    """Listing and headers of a commit, once read, are read again without a request."""
    first = hub.list_files(MODEL, commit), hub.read_shard_headers(MODEL, commit, [ONE, TWO])
    before = len(server.served)
    assert (hub.list_files(MODEL, commit), hub.read_shard_headers(MODEL, commit, [ONE, TWO])) == first
    assert len(server.served) == before


@pytest.mark.parametrize("damage", [b"", b"{", b"[]", b"\xff"])
def test_a_memory_that_is_damaged_is_asked_for_again(
    server: HubServer, commit: str, tmp_path: Path, damage: bytes
) -> None:
    """What the cache remembers wrongly or in part is not believed."""
    first = hub.list_files(MODEL, commit), hub.read_shard_headers(MODEL, commit, [ONE])
    kept = sorted((tmp_path / "home" / "hub" / "models--org--model" / "xmerge").rglob("*.json"))
    assert len(kept) == 2
    for path in kept:
        path.write_bytes(damage)
    assert (hub.list_files(MODEL, commit), hub.read_shard_headers(MODEL, commit, [ONE])) == first


def test_offline_a_shard_without_its_header_is_named(
    server: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Offline, a snapshot that holds some shards only is read as far as it goes, and all that is missing is named."""
    third = "model-00003-of-00003.safetensors"
    commit = server.add(MODEL, FILES | WEIGHTS | {third: WEIGHTS[ONE]})
    hub.fetch_shards(MODEL, commit, [ONE])
    go_offline(monkeypatch)
    assert hub.read_shard_headers(MODEL, commit, [ONE])[ONE].header == HEADER
    with pytest.raises(HubError, match="not in the local cache") as refused:
        hub.read_shard_headers(MODEL, commit, [ONE, TWO, third])
    assert refused.value.where == f"{TWO}, {third} in {MODEL}@{commit}"


def test_a_header_that_is_damaged_on_its_way_is_not_remembered(server: HubServer, commit: str) -> None:
    """A header that came damaged is refused, and read again by the next run."""
    server.fail("GET /stored/", garbled=True)
    with pytest.raises(CheckpointError, match="damaged"):
        hub.read_shard_headers(MODEL, commit, [ONE])
    assert hub.read_shard_headers(MODEL, commit, [ONE])[ONE].header == HEADER
