"""The Hub: the real client against a server on 127.0.0.1."""

from __future__ import annotations

import errno
import json
import logging
import os
import shutil
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.hub.server import SIGNATURE, TOKEN, HubServer, connected, running
from xmerge import hub
from xmerge.errors import HubError, HubUnavailableError, StorageError

MODEL = "org/model"
ONE, TWO = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
INDEX = "model.safetensors.index.json"
FIRST_READ = 8 * 1024

# The client's own use of its HTTP library, in LFS uploads.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=<...>' to upload:DeprecationWarning")


def shard(tensors: int, *, data: int = 50_000, seed: int = 0) -> bytes:
    """The bytes of a safetensors file with so many tensors of equal size and `data` bytes each."""
    entries = {
        f"model.layers.{i}.self_attn.q_proj.weight": {
            "dtype": "U8",
            "shape": [data],
            "data_offsets": [i * data, (i + 1) * data],
        }
        for i in range(tensors)
    }
    header = json.dumps(entries).encode()
    return len(header).to_bytes(8, "little") + header + bytes([seed]) * (tensors * data)


def header_of(file: bytes) -> bytes:
    """The length and the JSON at the beginning of a safetensors file."""
    return file[: 8 + int.from_bytes(file[:8], "little")]


FILES = {
    "config.json": b'{"model_type": "llama"}',
    INDEX: b'{"weight_map": {}}',
    "generation_config.json": b"{}",
    "tokenizer.json": b'{"version": "1.0"}',
    "tokenizer_config.json": b"{}",
    "chat_template.jinja": b"{{ messages }}",
    "additional_chat_templates/tool_use.jinja": b"{{ tools }}",
    "README.md": b"---\nlicense: apache-2.0\n---\n# A model\n",
    "LICENSE": b"Apache License",
}
WEIGHTS = {ONE: shard(4), TWO: shard(100, data=5_000, seed=1)}
UNWANTED = {
    "pytorch_model.bin": b"pickle",
    "modeling_llama.py": b"import os",
    "tokenizer_llama.py": b"import os",
    "consolidated.pt": b"pickle",
    "images/picture.png": b"png",
    "onnx/config.json": b"{}",
    "tokenizer/merges.json": b"{}",
}


@pytest.fixture(scope="module")
def started() -> Iterator[HubServer]:
    """One server for all tests of this file; each gets it empty."""
    with running() as server:
        yield server


@pytest.fixture
def server(started: HubServer, tmp_path: Path) -> Iterator[HubServer]:
    """The server, empty, with the client of this process connected to it."""
    for record in (
        started.repositories,
        started.storage,
        started.served,
        started.faults,
        started.slept,
        started.ignored,
    ):
        record.clear()
    with connected(started, tmp_path / "home"):
        yield started


@pytest.fixture
def commit(server: HubServer) -> str:
    """The commit of a repository with two shards, all kinds of metadata, and files that nobody wants."""
    return server.add(MODEL, FILES | WEIGHTS | UNWANTED)


def go_offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """What HF_HUB_OFFLINE=1 does in a process that has imported the client already."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


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
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: SimpleNamespace(free=1_000))
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


def test_offline_nothing_is_uploaded(server: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Offline, an upload is refused before any request."""
    go_offline(monkeypatch)
    with pytest.raises(HubError, match="an upload needs the Hub, and it may not be asked"):
        upload(output(tmp_path))


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


# --- upload


def output(tmp_path: Path, **more: bytes) -> Path:
    """A finished output folder."""
    folder = tmp_path / "merged"
    folder.mkdir()
    files = {"config.json": b"{}", "README.md": b"# Merged\n", ONE: shard(3), TWO: shard(2)}
    for name, data in (files | more).items():
        (folder / name).write_bytes(data)
    return folder


def upload(
    folder: Path, repo: str = "org/merged", *, private: bool = True, branch: str | None = None
) -> hub.UploadedTo:
    """Upload with the defaults of these tests."""
    return hub.upload_folder(folder, repo, private=private, branch=branch, message="A merge")


def test_what_is_uploaded_comes_back_byte_for_byte(
    server: HubServer, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """An upload makes, silently, a private repository with the folder's files; no token goes to the storage."""
    folder = output(tmp_path)
    sent = upload(folder)
    assert capfd.readouterr() == ("", "")
    assert sent == hub.UploadedTo(
        repo="org/merged",
        branch="main",
        commit=hub.pin_revision("org/merged", None),
        private=True,
        url=f"{server.endpoint}/org/merged/tree/{sent.commit}",
    )
    assert server.repositories["org/merged"].private
    hub.fetch_metadata(sent.repo, sent.commit)
    back = hub.fetch_shards(sent.repo, sent.commit, [ONE, TWO])
    assert contents(back) == contents(folder)
    assert not [served for served in server.served if served.path.startswith("/stored/") and served.authorized]


def test_uploading_the_same_again_changes_nothing(server: HubServer, tmp_path: Path) -> None:
    """A second upload of the same folder gives the same commit and sends no weights."""
    folder = output(tmp_path)
    first = upload(folder)
    puts = server.count("PUT ")
    assert upload(folder) == first
    assert server.count("PUT ") == puts


def test_shards_of_an_earlier_upload_do_not_stay(server: HubServer, tmp_path: Path) -> None:
    """After an upload the branch has the folder's weights and no others; other files stay."""
    there = {"model-00003-of-00003.safetensors": shard(1), INDEX: b"{}", "picture.png": b"png"}
    server.add("org/merged", there, private=True)
    sent = upload(output(tmp_path))
    assert set(hub.list_files("org/merged", sent.commit)) == {"config.json", "README.md", ONE, TWO, "picture.png"}


def test_a_branch_is_made_and_the_main_branch_left_alone(server: HubServer, tmp_path: Path) -> None:
    """An upload to a branch makes it where it is missing, twice the same, and does not touch main."""
    main = server.add("org/merged", {"README.md": b"# Mine\n"}, private=True)
    folder = output(tmp_path)
    sent = upload(folder, branch="candidate")
    assert upload(folder, branch="candidate") == sent
    assert server.repositories["org/merged"].branches == {"main": main, "candidate": sent.commit}


def test_a_push_in_between_fails_and_does_not_mix(server: HubServer, tmp_path: Path) -> None:
    """If the branch moves during the upload, the upload fails and the other's commit stands as it was."""
    server.add("org/merged", {"README.md": b"# Mine\n"}, private=True)
    other = server.repositories["org/merged"]
    server.fail("PUT /stored/", act=lambda: other.commit({"other.txt": b"theirs"}))
    with pytest.raises(HubError, match="the branch was changed by someone else") as refused:
        upload(output(tmp_path))
    assert refused.value.why == "A commit has happened since. Please refresh and try again."
    assert set(other.commits[other.branches["main"]]) == {"README.md", "other.txt"}


def test_a_private_upload_does_not_go_to_a_public_repository(server: HubServer, tmp_path: Path) -> None:
    """An upload that is to be private is refused where an existing repository is public."""
    main = server.add("org/merged", {"README.md": b"# Mine\n"})
    with pytest.raises(HubError, match="exists and is public"):
        upload(output(tmp_path))
    assert server.repositories["org/merged"].branches == {"main": main}
    assert not upload(tmp_path / "merged", private=False).private


def test_a_bare_name_belongs_to_the_tokens_account(server: HubServer, tmp_path: Path) -> None:
    """A name without an owner is answered with its owner."""
    assert upload(output(tmp_path), "merged").repo == "tester/merged"


def test_a_file_that_did_not_arrive_is_told(server: HubServer, tmp_path: Path) -> None:
    """An upload is done when the Hub lists every file in its size, and not before."""
    server.ignored.append(TWO)
    with pytest.raises(HubError, match="does not have the size") as refused:
        upload(output(tmp_path))
    assert str(refused.value.where).startswith(f"{TWO} in org/merged@")


def test_a_link_out_of_the_folder_is_not_published(server: HubServer, tmp_path: Path) -> None:
    """A folder that links to a file elsewhere is refused before any request."""
    (tmp_path / "secret").write_text("secret")
    folder = output(tmp_path)
    (folder / "notes.txt").symlink_to(tmp_path / "secret")
    with pytest.raises(HubError, match="a link to a place outside"):
        upload(folder)
    assert server.served == []


def test_an_empty_folder_is_not_published(server: HubServer, tmp_path: Path) -> None:
    """Nothing to upload is an error, not an empty commit."""
    (tmp_path / "empty").mkdir()
    with pytest.raises(HubError, match="has no files"):
        upload(tmp_path / "empty")


def test_an_upload_without_a_token_says_how_to_get_one(
    server: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a token nothing is made, and the error names the command."""
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(HubError) as refused:
        upload(output(tmp_path))
    assert str(refused.value) == (
        "the Hub did not accept the token, or none was sent.\n"
        "  at: org/merged\n"
        "  do: run `hf auth login`, or set HF_TOKEN, with a token that may write to this repository."
    )


def test_an_account_that_may_not_write_is_told(server: HubServer, tmp_path: Path) -> None:
    """A repository of someone else's is refused with the Hub's words."""
    server.fail("POST /api/repos/create", status=403, headers={"X-Error-Message": "You don't have the rights."})
    with pytest.raises(HubError, match="this account may not write") as refused:
        upload(output(tmp_path))
    assert refused.value.why == "You don't have the rights."


@pytest.mark.parametrize("match", ["POST /api/repos/create", "/preupload/", "PUT /stored/", "/commit/main"])
def test_a_disturbed_upload_is_worth_a_retry_and_shows_nothing(server: HubServer, tmp_path: Path, match: str) -> None:
    """Whatever step of an upload is disturbed, main has nothing of it, and a second try completes it."""
    folder = output(tmp_path)
    server.fail(match, status=503, times=99)
    with pytest.raises(HubUnavailableError, match="could not answer for now"):
        upload(folder)
    there = server.repositories.get("org/merged")
    assert there is None or set(there.commits[there.branches["main"]]) == {".gitattributes"}
    server.faults.clear()
    sent = upload(folder)
    assert server.repositories["org/merged"].branches["main"] == sent.commit


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
    assert "/stored/" in caplog.text or not how
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
