"""Repositories that cannot be merged: refused as an input is, and nothing fetched beyond what was needed to know."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.fake_checkpoints import write_fake
from tests.hub.samples import FIRST_READ, INDEX, go_offline, read_files, split
from tests.hub.server import HubServer
from xmerge import hub
from xmerge.cli.main import main

SHARD = "model.safetensors"
RECIPE = """\
merge_method: slerp
base_model: org/base
models:
- model: org/base
- model: {donor}
parameters: {{t: 0.5}}
"""


@pytest.fixture
def llama(server: HubServer, tmp_path: Path) -> dict[str, bytes]:
    """A good model's files, which a repository may spoil; the base of the recipe has them as they are."""
    files = read_files(write_fake(tmp_path / "llama"))
    server.add("org/base", files)
    return files


def refuse(place: Path, capsys: pytest.CaptureFixture[str], command: str = "merge", donor: str = "org/bad") -> str:
    """What is said of a recipe whose donor is bad; the exit code is that of an input, and nothing appears."""
    (place / "recipe.yml").write_text(RECIPE.format(donor=donor), encoding="utf-8")
    words = [command, str(place / "recipe.yml"), *([str(place / "out")] if command == "merge" else [])]
    with pytest.raises(SystemExit) as ended:
        main(words)
    said = capsys.readouterr().err
    assert ended.value.code == 3, said
    assert sorted(path.name for path in place.iterdir()) == ["home", "llama", "recipe.yml"]
    return said


def asked_of(server: HubServer, repo: str) -> list[str]:
    """What was asked of a repository, beside its commit and its listing."""
    place = f"/{repo}/resolve/"
    files = [served.path.partition(place)[2].partition("/")[2] for served in server.served if place in served.path]
    return sorted(set(files))


def index_of(*files: str) -> bytes:
    """An index that places one tensor in each of these files."""
    return json.dumps({"weight_map": {f"tensor.{number}": file for number, file in enumerate(files)}}).encode()


PICKLES = ("pytorch_model.bin", "consolidated.00.pth", "model.ckpt")


@pytest.mark.parametrize("command", ["plan", "merge"])
@pytest.mark.parametrize("pickle", PICKLES)
def test_a_repository_of_pickles_is_refused_by_its_listing(
    server: HubServer, llama: dict[str, bytes], tmp_path: Path, capsys, command: str, pickle: str
) -> None:
    """Of pickle files no byte is asked for, and the error says how to convert them."""
    server.add("org/bad", {"config.json": llama["config.json"], pickle: b"pickle" * 9_000, "model.py": b"import os"})
    said = refuse(tmp_path, capsys, command)
    assert f"org/bad holds its weights as pickle files only: {pickle}." in said
    assert "save_pretrained" in said
    assert asked_of(server, "org/bad") == ["config.json"]


def test_a_repository_without_config_is_refused_by_its_listing(
    server: HubServer, llama: dict[str, bytes], tmp_path: Path, capsys
) -> None:
    """Without config.json, weights are not even looked at."""
    server.add("org/bad", {SHARD: llama[SHARD]})
    assert "org/bad/config.json does not exist" in refuse(tmp_path, capsys)
    assert asked_of(server, "org/bad") == []


def test_an_empty_repository_is_refused(server: HubServer, llama: dict[str, bytes], tmp_path: Path, capsys) -> None:
    """A repository with a card alone is no model."""
    server.add("org/bad", {"README.md": b"# Soon\n"})
    assert "org/bad/config.json does not exist" in refuse(tmp_path, capsys)
    assert asked_of(server, "org/bad") == []


@pytest.mark.parametrize(
    "file",
    [
        "../../org/private/model.safetensors",
        "/etc/passwd.safetensors",
        "https://example.org/model.safetensors",
        "http://127.0.0.1/model.safetensors",
        "org/private/model.safetensors",
        "..\\model.safetensors",
        "model.bin",
        "sub/model.safetensors",
        "",
    ],
)
def test_a_crafted_index_makes_no_request(
    server: HubServer, llama: dict[str, bytes], tmp_path: Path, capsys, file: str
) -> None:
    """An index that names another repository, an address or a path leads nowhere, and no header is read for it."""
    server.add("org/private", llama, private=True)
    server.add("org/bad", {"config.json": llama["config.json"], INDEX: index_of(SHARD, file), SHARD: llama[SHARD]})
    assert "a shard is a plain file name that ends in .safetensors" in refuse(tmp_path, capsys)
    assert asked_of(server, "org/bad") == ["config.json", INDEX]
    assert server.count("private") == 0


def test_an_index_of_files_that_are_not_there_is_refused(
    server: HubServer, llama: dict[str, bytes], tmp_path: Path, capsys
) -> None:
    """Shards that the commit does not have are named, and those that it has are not read."""
    server.add("org/bad", {"config.json": llama["config.json"], INDEX: index_of(SHARD, "a.safetensors"), SHARD: b""})
    assert "org/bad lacks 1 of its 2 shards: a.safetensors" in refuse(tmp_path, capsys)
    assert asked_of(server, "org/bad") == ["config.json", INDEX]


def test_a_quantised_repository_costs_its_header(
    server: HubServer, llama: dict[str, bytes], tmp_path: Path, capsys
) -> None:
    """A donor of packed weights is refused by name after its header, and no weight is asked for."""
    weights = {
        f"model.layers.{layer}.self_attn.{name}_proj.{part}": ("I32", (4, 4))
        for layer in range(4)
        for name in "qkvo"
        for part in ("qweight", "qzeros")
    }
    packed = write_fake(
        tmp_path / "home" / "packed",
        extra=weights,
        without=tuple(f"{name}_proj.weight" for name in "qkvo"),
        quantization_config={"quant_method": "gptq", "bits": 4},
    )
    server.add("org/bad", read_files(packed))
    said = refuse(tmp_path, capsys)
    assert "gptq" in said.lower()
    assert asked_of(server, "org/bad") == ["config.json", SHARD]
    assert server.bytes_of(SHARD) <= 2 * (FIRST_READ + FIRST_READ), "two headers"


@pytest.mark.parametrize(
    "url", ["hf://datasets/org/base", "hf://spaces/org/base", "hf://", "hf://org/base/model.safetensors"]
)
def test_an_address_of_something_else_is_not_asked_for(
    server: HubServer, llama: dict[str, bytes], tmp_path: Path, capsys, url: str
) -> None:
    """An address of a data set, a space or a file is refused by its text."""
    assert "this is not the address of a model on the Hub" in refuse(tmp_path, capsys, donor=url)
    assert server.count("datasets") == server.count("spaces") == server.count("/resolve/main") == 0


def test_offline_a_snapshot_of_some_shards_says_which_are_missing(
    server: HubServer, llama: dict[str, bytes], tmp_path: Path, capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Offline, a model of which another program has fetched one shard is refused with the names of the others."""
    from huggingface_hub import snapshot_download

    files = split(tmp_path / "llama", lambda name: f"{'a' if 'self_attn' in name else 'b'}.safetensors")
    for repo in ("org/base", "org/bad"):
        server.add(repo, files)
        snapshot_download(repo, allow_patterns=["*.json", "a.safetensors"])
    hub.fetch_shards("org/base", hub.pin_revision("org/base", None), ["b.safetensors"])
    go_offline(monkeypatch)
    server.served.clear()
    said = refuse(tmp_path, capsys)
    assert "this is not in the local cache, and the Hub may not be asked" in said
    assert "at: b.safetensors in org/bad@" in said
    assert server.served == []
