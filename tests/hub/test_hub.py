"""The Hub: the real client against a server on 127.0.0.1."""

from __future__ import annotations

import errno
import logging
import os
import subprocess
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.hub.samples import (
    FILES,
    FIRST_READ,
    MODEL,
    ONE,
    TWO,
    UNWANTED,
    WEIGHTS,
    contents,
    go_offline,
    header_of,
    output,
    shard,
    upload,
)
from tests.hub.server import SIGNATURE, TOKEN, HubServer
from xmerge import hub
from xmerge.errors import HubError, HubUnavailableError, StorageError

# The client's own use of its HTTP library, in LFS uploads.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=<...>' to upload:DeprecationWarning")


# --- names


@given(st.one_of(st.text("aZ09-_./é \n", max_size=12), st.from_regex(r"[\w.-]{1,5}(/[\w.-]{1,5}){0,2}(\.git)?")))
def test_a_repository_name_is_what_the_client_accepts(text: str) -> None:
    """A text names a repository exactly if the Hub's own client takes it for one."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

    try:
        validate_repo_id(text)
    except HFValidationError:
        accepted = False
    else:
        accepted = True
    assert hub.is_repo_id(text) == accepted


@pytest.mark.parametrize("text", ["gpt2", "meta-llama/Llama-3.2-1B", "Qwen/Qwen3-0.6B", "a" * 96])
def test_names_of_models_are_repository_names(text: str) -> None:
    """Real models' names, with and without an owner, name repositories."""
    assert hub.is_repo_id(text)


@pytest.mark.parametrize(
    "text", ["", "./a", "../a", "a/../b", "/a/b", "a/b/c", "a--b", "a..b", "a.git", "~/a", "a" * 97]
)
def test_paths_are_no_repository_names(text: str) -> None:
    """What is a path, or what the Hub forbids, names no repository, and no request is made for it."""
    assert not hub.is_repo_id(text)
    with pytest.raises(HubError, match="not the name of a repository"):
        hub.pin_revision(text, None)


# --- pinning


def test_a_revision_is_pinned_to_its_commit(server: HubServer, commit: str) -> None:
    """No revision, the main branch and its commit all pin to that commit."""
    assert {hub.pin_revision(MODEL, revision) for revision in (None, "main", commit)} == {commit}


def test_a_branch_that_moves_after_the_pin_changes_nothing(server: HubServer, commit: str) -> None:
    """After the pin every file is that of the pinned commit, wherever the branch went."""
    pinned = hub.pin_revision(MODEL, "main")
    server.repositories[MODEL].commit({"config.json": b"{}", ONE: shard(9, seed=9), TWO: None})
    assert hub.pin_revision(MODEL, "main") != pinned
    assert hub.list_files(MODEL, pinned)[ONE] == len(WEIGHTS[ONE])
    assert hub.read_shard_headers(MODEL, pinned, [ONE])[ONE].header == header_of(WEIGHTS[ONE])
    assert (hub.fetch_metadata(MODEL, pinned) / "config.json").read_bytes() == FILES["config.json"]
    assert (hub.fetch_shards(MODEL, pinned, [TWO]) / TWO).read_bytes() == WEIGHTS[TWO]


def test_a_branch_is_no_pin(server: HubServer, commit: str) -> None:
    """Nothing is read by a revision that may move."""
    with pytest.raises(HubError, match="not pinned to a commit"):
        hub.fetch_metadata(MODEL, "main")
    assert server.served == []


# --- listing and metadata


def test_a_listing_has_every_file_with_its_size(server: HubServer, commit: str) -> None:
    """The listing is the commit's files, all of them, by name, with the bytes each has."""
    files = FILES | WEIGHTS | UNWANTED
    assert list(hub.list_files(MODEL, commit).items()) == [(name, len(files[name])) for name in sorted(files)]


def test_metadata_comes_without_weights_pickles_and_code(server: HubServer, commit: str) -> None:
    """What a plan needs is fetched whole; weights, pickles and code are not even asked for."""
    assert contents(hub.fetch_metadata(MODEL, commit)) == FILES
    assert not [name for name in WEIGHTS | UNWANTED if server.count(f"/{name}")]


# --- shards


def test_only_the_asked_shards_are_fetched(server: HubServer, commit: str) -> None:
    """The Hub serves the asked shard once and nothing of any other file."""
    folder = hub.fetch_shards(MODEL, commit, [TWO])
    assert contents(folder) == {TWO: WEIGHTS[TWO]}
    assert server.bytes_of(TWO) == len(WEIGHTS[TWO])
    assert {served.path.rpartition("/")[2] for served in server.served} == {TWO, commit}


def test_what_the_cache_has_is_not_fetched_again(server: HubServer, commit: str) -> None:
    """A second fetch asks for no file."""
    hub.fetch_shards(MODEL, commit, [ONE])
    hub.fetch_metadata(MODEL, commit)
    before = server.count("/resolve/")
    hub.fetch_shards(MODEL, commit, [ONE])
    hub.fetch_metadata(MODEL, commit)
    assert server.count("/resolve/") == before


def test_a_damaged_file_in_the_cache_is_fetched_again(server: HubServer, commit: str) -> None:
    """A cached shard of a wrong size does not count as fetched."""
    folder = hub.fetch_shards(MODEL, commit, [ONE])
    os.truncate((folder / ONE).resolve(), 100)
    assert (hub.fetch_shards(MODEL, commit, [ONE]) / ONE).read_bytes() == WEIGHTS[ONE]


def test_a_reset_in_mid_body_is_survived(server: HubServer, commit: str) -> None:
    """A connection that breaks in the middle of a shard costs time, never bytes of the result."""
    server.fail("GET /stored/", reset=True)
    assert (hub.fetch_shards(MODEL, commit, [ONE]) / ONE).read_bytes() == WEIGHTS[ONE]


def test_a_shard_that_comes_short_is_refused(server: HubServer, commit: str) -> None:
    """A transfer that ends early, and says that it was complete, leaves no file."""
    server.fail("GET /stored/", cut=7)
    with pytest.raises(HubError, match="a transfer from the Hub ended early") as refused:
        hub.fetch_shards(MODEL, commit, [ONE])
    assert refused.value.where == f"{ONE} in {MODEL}@{commit}"
    assert (hub.fetch_shards(MODEL, commit, [ONE]) / ONE).read_bytes() == WEIGHTS[ONE]


@pytest.mark.parametrize(
    "name",
    [
        "../config.safetensors",
        "/etc/passwd.safetensors",
        "sub/model.safetensors",
        "a\\b.safetensors",
        "https://example.org/model.safetensors",
        "pytorch_model.bin",
        "modeling_llama.py",
        ".safetensors",
        "model.safetensors\n",
        "",
    ],
)
@pytest.mark.parametrize("read", [hub.fetch_shards, hub.read_shard_headers])
def test_a_name_that_an_index_made_up_is_never_requested(
    server: HubServer, commit: str, name: str, read: Callable[..., object]
) -> None:
    """Of an index's names only plain ones of safetensors files are asked for."""
    with pytest.raises(HubError, match="not the plain name of a safetensors file"):
        read(MODEL, commit, [ONE, name])
    assert server.count("/resolve/") == 0


def test_a_shard_that_is_not_listed_is_refused_with_the_nearest(server: HubServer, commit: str) -> None:
    """A shard that the commit lacks is not asked for, and the error names the nearest that it has."""
    with pytest.raises(HubError, match="the repository has no such shard") as refused:
        hub.fetch_shards(MODEL, commit, ["model-00003-of-00002.safetensors"])
    assert "model-0000" in str(refused.value.remedy)
    assert server.count("/resolve/") == 0


def test_a_full_disk_is_told_before_anything_is_fetched(
    server: HubServer, commit: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the cache has no room for the shards, none is asked for."""
    monkeypatch.setattr("xmerge.hub.fetching.free_bytes", lambda _folder: 1_000)
    with pytest.raises(StorageError, match="no space left") as refused:
        hub.fetch_shards(MODEL, commit, [ONE])
    assert refused.value.why == f"{len(WEIGHTS[ONE]):,} bytes are to be fetched and the cache's disk has 1,000 free."
    assert server.count("/resolve/") == 0


@pytest.mark.parametrize(
    ("number", "text"),
    [(errno.ENOSPC, "no space left"), (errno.EACCES, "could not be written"), (errno.EIO, "could not")],
)
def test_a_failing_disk_is_not_taken_for_a_failing_hub(
    server: HubServer, commit: str, monkeypatch: pytest.MonkeyPatch, number: int, text: str
) -> None:
    """An error of the cache's disk is a StorageError, and no reason to try the Hub again."""

    def fail(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number), "/cache/blob")

    monkeypatch.setattr("huggingface_hub.file_download.http_get", fail)
    with pytest.raises(StorageError, match=text):
        hub.fetch_shards(MODEL, commit, [ONE])


# --- headers


def test_headers_cost_little_more_than_their_bytes(server: HubServer, commit: str) -> None:
    """Headers short and long come whole, and cost no more than themselves and 8 KiB each."""
    headers = hub.read_shard_headers(MODEL, commit, [TWO, ONE])
    assert list(headers) == [TWO, ONE]
    for name, file in WEIGHTS.items():
        assert headers[name] == hub.RemoteHeader(size=len(file), header=header_of(file))
        assert server.bytes_of(name) <= len(header_of(file)) + FIRST_READ
    assert len(header_of(WEIGHTS[ONE])) < FIRST_READ < len(header_of(WEIGHTS[TWO]))


def test_a_header_survives_json(server: HubServer, commit: str) -> None:
    """A header with its binary length can be stored as JSON and comes back the same."""
    header = hub.read_shard_headers(MODEL, commit, [ONE])[ONE]
    assert hub.RemoteHeader.model_validate_json(header.model_dump_json()) == header


def test_headers_of_cached_shards_are_read_there(server: HubServer, commit: str) -> None:
    """What lies in the cache is not requested again, not even its header."""
    hub.fetch_shards(MODEL, commit, [ONE, TWO])
    before = server.count("/resolve/")
    headers = hub.read_shard_headers(MODEL, commit, [ONE, TWO])
    assert {name: header.header for name, header in headers.items()} == {
        name: header_of(file) for name, file in WEIGHTS.items()
    }
    assert server.count("/resolve/") == before


@pytest.mark.parametrize("how", [{"reset": True}, {"whole": True, "times": 2}, {"reset": True, "times": 2}])
def test_headers_are_right_over_a_bad_connection(server: HubServer, commit: str, how: dict[str, Any]) -> None:
    """Broken connections and a server that ignores ranges change no header."""
    server.fail("GET /stored/", **how)
    assert hub.read_shard_headers(MODEL, commit, [TWO])[TWO].header == header_of(WEIGHTS[TWO])


@pytest.mark.parametrize(
    ("file", "why"),
    [
        (b"", "it has 0 bytes, too few for a header."),
        (b"1234567", "it has 7 bytes, too few for a header."),
        (bytes(100), "it has 100 bytes and its header would have 0; the limit is 25,000,000."),
        (
            (93).to_bytes(8, "little") + bytes(92),
            "it has 100 bytes and its header would have 93; the limit is 25,000,000.",
        ),
        (
            (2**40).to_bytes(8, "little") + bytes(92),
            "it has 100 bytes and its header would have 1,099,511,627,776; the limit is 25,000,000.",
        ),
    ],
    ids=["empty", "7 bytes", "no header", "longer than the file", "longer than the limit"],
)
def test_a_damaged_header_is_refused_before_it_is_requested(server: HubServer, file: bytes, why: str) -> None:
    """A header that cannot be is refused by its length alone."""
    commit = server.add("org/damaged", {"model.safetensors": file})
    with pytest.raises(HubError, match="not a safetensors file, or it is damaged") as refused:
        hub.read_shard_headers("org/damaged", commit, ["model.safetensors"])
    assert refused.value.why == why
    assert server.count("/resolve/") <= 1


def test_a_header_above_the_limit_is_refused_though_the_file_has_it(
    server: HubServer, commit: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The limit holds however long the file is."""
    monkeypatch.setattr("xmerge.hub.reading.MAX_HEADER", 100)
    with pytest.raises(HubError, match="not a safetensors file"):
        hub.read_shard_headers(MODEL, commit, [ONE])


def test_a_header_that_comes_short_is_refused(server: HubServer, commit: str) -> None:
    """A range with fewer bytes than asked for is no header."""
    server.fail("GET /stored/", cut=5)
    with pytest.raises(HubError, match="ended early"):
        hub.read_shard_headers(MODEL, commit, [ONE])


# --- offline


def test_offline_everything_comes_from_the_cache(
    server: HubServer, commit: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was fetched once is there offline, without one request."""
    hub.pin_revision(MODEL, None)
    hub.fetch_metadata(MODEL, commit)
    hub.fetch_shards(MODEL, commit, [ONE])
    go_offline(monkeypatch)
    server.served.clear()
    assert {hub.pin_revision(MODEL, revision) for revision in (None, "main", commit)} == {commit}
    folder = hub.fetch_shards(MODEL, commit, [ONE])
    assert hub.fetch_metadata(MODEL, commit) == folder
    assert contents(folder) == FILES | {ONE: WEIGHTS[ONE]}
    assert hub.read_shard_headers(MODEL, commit, [ONE])[ONE].header == header_of(WEIGHTS[ONE])
    assert server.served == []


@pytest.mark.parametrize("revision", [None, "v1.0", "0" * 40, "../../../config.json", "../../config.json"])
def test_offline_a_revision_that_is_not_cached_is_named(
    server: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, revision: str | None
) -> None:
    """Offline, a revision nobody fetched is refused by its name."""
    go_offline(monkeypatch)
    for outside in ("config.json", "hub/config.json"):
        (tmp_path / "home" / outside).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "home" / outside).write_text("1" * 40)
    (tmp_path / "home" / "hub" / "models--org--model" / "refs").mkdir(parents=True)
    with pytest.raises(HubError) as refused:
        hub.pin_revision(MODEL, revision)
    assert str(refused.value) == (
        "this is not in the local cache, and the Hub may not be asked.\n"
        f"  at: revision '{revision or 'main'}' of {MODEL}\n"
        "  why: HF_HUB_OFFLINE is set.\n"
        "  do: unset HF_HUB_OFFLINE once to fetch it, or set HF_HUB_CACHE to a cache that has it."
    )


def test_offline_missing_shards_are_named(server: HubServer, commit: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Offline, the shards that the cache lacks are named, where a listing is known."""
    from huggingface_hub import snapshot_download

    snapshot_download(MODEL, revision=commit, allow_patterns=["config.json"])
    go_offline(monkeypatch)
    with pytest.raises(HubError, match="not in the local cache") as refused:
        hub.fetch_shards(MODEL, commit, [ONE, TWO])
    assert refused.value.where == f"{ONE}, {TWO} in {MODEL}@{commit}"
    with pytest.raises(HubError, match="not in the local cache"):
        hub.read_shard_headers(MODEL, commit, [ONE])


# --- refusals and disturbances


def test_a_private_repository_is_told_like_a_missing_one(server: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a token, a private and a missing repository are refused in the same words."""
    server.add("org/private", FILES, private=True)
    monkeypatch.delenv("HF_TOKEN")
    for repo in ("org/private", "org/missing"):
        with pytest.raises(HubError) as refused:
            hub.pin_revision(repo, None)
        assert str(refused.value) == (
            "there is no such repository on the Hub, or it is private and may not be seen.\n"
            f"  at: {repo}\n"
            "  why: the Hub gives the same answer in both cases.\n"
            "  do: check the spelling; for a private one run `hf auth login`, or set HF_TOKEN."
        )
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert hub.pin_revision("org/private", None)


@pytest.mark.parametrize("revision", ["v9", "0" * 40])
def test_a_missing_revision_is_refused_by_name(server: HubServer, commit: str, revision: str) -> None:
    """A branch that is not there and a commit that is not there are both named."""
    with pytest.raises(HubError, match="the repository has no such revision") as refused:
        hub.pin_revision(MODEL, revision)
    assert refused.value.where == f"{MODEL}@{revision}"
    assert not isinstance(refused.value, HubUnavailableError)


@pytest.mark.parametrize("read", [hub.fetch_shards, hub.read_shard_headers])
def test_a_gated_model_says_where_to_accept_its_licence(server: HubServer, read: Callable[..., object]) -> None:
    """A gated model is refused with its page and the command to run, and is not tried again."""
    commit = server.add("org/gated", WEIGHTS, gated=True)
    with pytest.raises(HubError) as refused:
        read("org/gated", commit, [ONE])
    assert str(refused.value) == (
        "this model is gated: its authors let only those in who accepted its licence.\n"
        f"  at: {ONE} in org/gated@{commit}\n"
        f"  do: accept the licence on the model's page, {server.endpoint}/org/gated, "
        "then run `hf auth login` with that account."
    )
    assert server.slept == []


def test_an_expired_token_is_told(server: HubServer, commit: str) -> None:
    """A token that the Hub does not take any more is told apart from a missing repository."""
    server.fail(
        "GET /api/models", status=401, headers={"X-Error-Message": "Invalid credentials in Authorization header"}
    )
    with pytest.raises(HubError, match="did not accept the token") as refused:
        hub.pin_revision(MODEL, None)
    assert refused.value.remedy == "run `hf auth login`, or set HF_TOKEN, with a token that is still valid."


@pytest.mark.parametrize("status", [403, 400, 451])
def test_any_other_refusal_says_what_the_hub_said(server: HubServer, commit: str, status: int) -> None:
    """A refusal that nobody foresaw keeps its status and the Hub's words, and is not worth a retry."""
    server.fail("GET /api/models", status=status, headers={"X-Error-Message": "Not today."})
    with pytest.raises(HubError) as refused:
        hub.pin_revision(MODEL, None)
    assert str(refused.value).startswith(
        f"the Hub refused the request (status {status}).\n  at: {MODEL}\n  why: Not today.\n  do: check the token"
    )
    assert not isinstance(refused.value, HubUnavailableError)


@pytest.mark.parametrize("status", [429, 500, 502, 503, 504])
@pytest.mark.parametrize(
    ("step", "match"),
    [
        ("pin", "GET /api/models/org/model"),
        ("list", "/tree/"),
        ("header", "/resolve/"),
        ("shard", "HEAD /org/model/resolve/"),
        ("body", "GET /stored/"),
    ],
)
def test_a_disturbance_is_told_apart_from_a_refusal(
    server: HubServer, commit: str, status: int, step: str, match: str
) -> None:
    """Whatever step meets 429 or 5xx that does not end, the error is the one worth retrying."""
    steps: dict[str, Callable[[], object]] = {
        "pin": lambda: hub.pin_revision(MODEL, None),
        "list": lambda: hub.list_files(MODEL, commit),
        "header": lambda: hub.read_shard_headers(MODEL, commit, [ONE]),
        "shard": lambda: hub.fetch_shards(MODEL, commit, [ONE]),
        "body": lambda: hub.fetch_shards(MODEL, commit, [ONE]),
    }
    server.fail(match, status=status, headers={"Retry-After": "7"}, times=99)
    with pytest.raises(HubUnavailableError) as refused:
        steps[step]()
    assert refused.value.what == f"the Hub could not answer for now (status {status})."
    assert refused.value.remedy == "run again in 7 seconds."


@pytest.mark.parametrize("status", [429, 503])
def test_a_disturbance_that_ends_is_waited_out(server: HubServer, commit: str, status: int) -> None:
    """The client waits as long as the Hub asks, and then goes on."""
    server.fail("/tree/", status=status, headers={"Retry-After": "7"}, times=2)
    assert hub.list_files(MODEL, commit)
    assert len(server.slept) == 2
    assert min(server.slept) >= 7


@pytest.mark.parametrize("status", [429, 503])
def test_a_pin_waits_as_well(server: HubServer, commit: str, status: int) -> None:
    """The first question to a busy Hub is asked again too, after the time that it names."""
    server.fail("GET /api/models/org/model", status=status, headers={"Retry-After": "7"}, times=2)
    assert hub.pin_revision(MODEL, None) == commit
    assert [7 <= seconds <= 8 for seconds in server.slept] == [True, True]


def test_a_hub_that_cannot_be_reached_is_told(server: HubServer, commit: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where nothing listens, the error says so, names the way to work offline, and is worth a retry."""
    for name in ("ENDPOINT", "HUGGINGFACE_CO_URL_TEMPLATE"):
        monkeypatch.setattr(f"huggingface_hub.constants.{name}", "http://127.0.0.1:9/{repo_id}/{revision}/{filename}")
    with pytest.raises(HubUnavailableError) as refused:
        hub.pin_revision(MODEL, None)
    assert str(refused.value) == (
        "the Hub could not be reached.\n"
        f"  at: {MODEL}\n"
        "  why: no connection could be made.\n"
        "  do: check the network and the proxy; with HF_HUB_OFFLINE=1 only what is in the local cache is used."
    )


@pytest.mark.parametrize("match", ["GET /api/models/org/model", "GET /stored/"])
def test_a_connection_that_keeps_breaking_is_worth_a_retry(server: HubServer, commit: str, match: str) -> None:
    """A connection that breaks every time is a disturbance, not a refusal."""
    server.fail(match, reset=True, times=99)
    with pytest.raises(HubUnavailableError, match="the connection to the Hub broke"):
        hub.read_shard_headers(MODEL, hub.pin_revision(MODEL, None), [TWO])


def test_a_server_that_is_no_hub_is_told(server: HubServer, commit: str) -> None:
    """An answer that is not the Hub's protocol names the address to check."""
    server.fail("GET /api/models", cut=9)
    with pytest.raises(HubError, match="could not make sense of an answer") as refused:
        hub.pin_revision(MODEL, None)
    assert "check HF_ENDPOINT" in str(refused.value)


# --- secrets


@pytest.mark.parametrize(
    "how", [{}, {"status": 503, "times": 99}, {"status": 403}, {"reset": True, "times": 99}, {"cut": 3}]
)
def test_no_token_and_no_signed_address_is_ever_shown(
    server: HubServer,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
    how: dict[str, Any],
) -> None:
    """At DEBUG, in success and in failure, logs, output and tracebacks hold no token and no signature."""
    caplog.set_level(logging.DEBUG)
    caplog.set_level(logging.DEBUG, logger="huggingface_hub")
    caplog.set_level(logging.DEBUG, logger="httpx2")
    caplog.set_level(logging.DEBUG, logger="httpcore2")
    commit = server.add(MODEL, FILES | WEIGHTS)
    shown = []
    for step in (
        lambda: hub.read_shard_headers(MODEL, commit, [ONE, TWO]),
        lambda: hub.fetch_shards(MODEL, commit, [ONE, TWO]),
        lambda: upload(output(tmp_path), private=True),
    ):
        if how:
            server.fail("/stored/", **how)
        try:
            shown.append(repr(step()))
        except (HubError, StorageError):
            shown.append(traceback.format_exc())
        server.faults.clear()
    shown += [caplog.text, *capfd.readouterr()]
    # The client tells of an address when it asks there again.
    assert "/stored/" in caplog.text or how.get("status") != 503
    assert not [text for text in shown if SIGNATURE in text or TOKEN in text]


# --- the front door


@pytest.mark.slow
def test_importing_costs_nothing() -> None:
    """The module can be imported without the client and its HTTP library."""
    code = "import sys, xmerge.hub; print(sorted({'huggingface_hub', 'httpx', 'httpx2', 'tqdm'} & set(sys.modules)))"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout == "[]\n"


@pytest.mark.slow
def test_a_fresh_process_uses_the_hub_that_its_environment_names(started: HubServer, tmp_path: Path) -> None:
    """HF_ENDPOINT, HF_HUB_CACHE and HF_TOKEN are all that a process needs to be told."""
    commit = started.add(MODEL, FILES | WEIGHTS, private=True)
    code = f"from xmerge import hub; print(hub.fetch_shards({MODEL!r}, hub.pin_revision({MODEL!r}, None), [{ONE!r}]))"
    environment = os.environ | started.environment(tmp_path)
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, env=environment)
    assert ran.stderr == ""
    folder = Path(ran.stdout.strip())
    assert folder == tmp_path / "hub" / "models--org--model" / "snapshots" / commit
    assert contents(folder) == {ONE: WEIGHTS[ONE]}
