"""From the Hub to an output: which bytes of which shards a merge fetches, and that they make the same output."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.hub.samples import FIRST_READ, go_offline, header_of, read_files, split
from tests.hub.server import HubServer
from tests.small_merges import digest_files, list_tree, make_plan, run, write_model
from xmerge import hub
from xmerge.checkpoints.checkpoint import read_local_shard
from xmerge.errors import HubError, HubUnavailableError, NonfiniteInputError
from xmerge.fetching import fetch_model
from xmerge.planning import summarize_plan
from xmerge.planning.downloads import Download, FetchMode, list_downloads
from xmerge.planning.table import show_bytes
from xmerge.progress import Silence

SIZES: dict[str, Any] = {"hidden_size": 128, "intermediate_size": 512, "num_hidden_layers": 4}
SIZES |= {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 32}
DEEPER = SIZES | {"num_hidden_layers": 6, "intermediate_size": 640}
RECIPE = """\
merge_method: slerp
base_model: {base}
models:
- model: {base}
- model: {donor}
layer_map: proportional
parameters:
  t:
  - {{filter: q_proj, value: 0.3}}
  - {{filter: k_proj, value: 0.3}}
  - {{filter: v_proj, value: 0.3}}
  - {{filter: o_proj, value: 0.3}}
"""
ON_THE_HUB = RECIPE.format(base="org/llama", donor="org/qwen3")
HERE = RECIPE.format(base="./llama", donor="./qwen3")
FILES = ("donor-1.safetensors", "donor-2.safetensors", "donor-3.safetensors")


@dataclass
class Notes(Silence):
    """What a run has to say."""

    said: list[str] = field(default_factory=list)

    def note(self, text: str) -> None:
        """Keep it."""
        self.said.append(text)


def place_tensor(name: str) -> str:
    """Two shards of whole layers, attention and MLP together, and one of what no layer has."""
    layer = re.search(r"\.layers\.(\d+)\.", name)
    return FILES[int(layer[1]) // 3] if layer else FILES[2]


@pytest.fixture
def models(server: HubServer, tmp_path: Path) -> Path:
    """A Llama and a deeper Qwen3, here and on the Hub."""
    write_model(tmp_path / "llama", seed=1, stored="F32", **SIZES)
    write_model(tmp_path / "qwen3", "qwen3", seed=2, stored="F32", **DEEPER)
    server.add("org/llama", read_files(tmp_path / "llama"))
    server.add("org/qwen3", split(tmp_path / "qwen3", place_tensor))
    return tmp_path


def merge(models: Path, name: str = "out", recipe: str = ON_THE_HUB, **options: Any) -> dict[str, str]:
    """Merge; the digests of the output's weights."""
    run(models, models / name, recipe, **options)
    return {file: digest for file, digest in digest_files(models / name).items() if file.endswith(".safetensors")}


def donor_downloads(models: Path) -> list[Download]:
    """What the plan reads of the donor."""
    return [each for each in list_downloads(make_plan(models, ON_THE_HUB)[1]) if each.model == 1]


def sent_of_donor(server: HubServer) -> int:
    """Bytes that the server has sent of the donor's shards."""
    return sum(server.bytes_of(file) for file in FILES)


def header_bytes(server: HubServer) -> int:
    """What the donor's headers cost at most: they are asked for before their length is known."""
    (files,) = server.repositories["org/qwen3"].commits.values()
    return sum(len(header_of(files[file])) + FIRST_READ for file in FILES)


# --- which bytes


def test_a_donor_of_attention_costs_its_attention(server: HubServer, models: Path) -> None:
    """The bytes that are asked for are within 5 % of the bytes of the tensors that are used, and of the headers."""
    merge(models)
    (files,) = server.repositories["org/qwen3"].commits.values()
    plan = make_plan(models, ON_THE_HUB)[1]
    used, headers = plan.models[1].bytes_used, sum(len(header_of(files[file])) for file in FILES)
    whole = sum(len(files[file]) for file in FILES)
    assert used + headers <= sent_of_donor(server) <= 1.05 * (used + headers)
    assert used < whole / 4


def test_a_plan_costs_headers_and_says_what_a_merge_will_cost(server: HubServer, models: Path) -> None:
    """A plan fetches no weight, and the bytes that it names are those that the merge then fetches."""
    said = sum(each.bytes_fetched("auto") for each in donor_downloads(models))
    after_plan = sent_of_donor(server)
    assert after_plan <= header_bytes(server)
    merge(models)
    assert said <= sent_of_donor(server) - after_plan <= 1.01 * said


def test_a_plan_says_what_comes_of_which_files(server: HubServer, models: Path) -> None:
    """The summary names bytes and files of each repository, and the room that parts take beside the output."""
    plan = make_plan(models, ON_THE_HUB)[1]
    used, whole = plan.models[1].bytes_used, (models / "llama" / "model.safetensors").stat().st_size
    summary = dict(summarize_plan(plan))
    assert summary["download of org/llama"] == f"{show_bytes(whole)}; all of model.safetensors"
    assert summary["download of org/qwen3"] == f"{show_bytes(used)}; tensors of {FILES[0]}, {FILES[1]}"
    assert summary["disk needed"] == show_bytes(plan.bytes_written + used)
    merge(models, fetch="shards")
    summary = dict(summarize_plan(make_plan(models, ON_THE_HUB)[1]))
    assert summary["download of org/qwen3"] == "0 B; 2 of 2 files are in the cache"
    assert summary["disk needed"] == show_bytes(plan.bytes_written)


def test_planning_again_asks_the_hub_for_the_commit_alone(
    server: HubServer, models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In another process, only the branches are looked up again; and offline, not even they."""
    from xmerge.sources import _read_remote

    first = make_plan(models, ON_THE_HUB)[1]
    for asked in (["/api/models/org/llama", "/api/models/org/qwen3"], []):
        server.served.clear()
        _read_remote.cache_clear()
        assert make_plan(models, ON_THE_HUB)[1] == first
        assert sorted({served.path for served in server.served}) == asked
        go_offline(monkeypatch)


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["auto", "shards", "tensors"])
def test_however_it_is_fetched_the_output_is_the_same(server: HubServer, models: Path, mode: FetchMode) -> None:
    """Whole shards or parts of them make the weights that local models make, and nothing is left but the output."""
    here = merge(models, "here", HERE)
    assert merge(models, "there", fetch=mode) == here
    assert not [path for path in list_tree(models) if ".xmerge" in path]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("mode", "whole"),
    [("auto", {0: True, 1: False}), ("shards", {0: True, 1: True}), ("tensors", {0: False, 1: False})],
)
def test_the_mode_decides_what_is_fetched(
    server: HubServer, models: Path, mode: FetchMode, whole: tuple[bool, bool]
) -> None:
    """`shards` leaves whole shards in the cache, `tensors` none, and `auto` those of which half or more is used."""
    merge(models, fetch=mode)
    for each in list_downloads(make_plan(models, ON_THE_HUB)[1]):
        assert each.cached is whole[each.model]
        assert each.is_fetched_whole(mode) is whole[each.model]


def test_a_cached_shard_is_used_in_place(server: HubServer, models: Path) -> None:
    """Of a shard that the cache has nothing is asked for again, and it is linked to, not copied."""
    commit = hub.pin_revision("org/qwen3", None)
    hub.fetch_shards("org/qwen3", commit, FILES[:1])
    before = server.bytes_of(FILES[0])
    plan = make_plan(models, ON_THE_HUB)[1]
    folder = fetch_model(plan, 1, models / "parts", "tensors").folder
    assert server.bytes_of(FILES[0]) == before
    assert (folder / FILES[0]).is_symlink()
    assert os.path.samefile(folder / FILES[0], hub.fetch_shards("org/qwen3", commit, FILES[:1]) / FILES[0])
    assert not (folder / FILES[1]).is_symlink()
    assert merge(models) == merge(models, "here", HERE)


@pytest.mark.parametrize("family", ["phi3", "internlm2"])
def test_a_conversion_reads_no_byte_that_was_not_fetched(server: HubServer, models: Path, family: str) -> None:
    """Blocks of fused tensors, one after another or group by group, are all there when only parts are fetched."""
    write_model(models / family, family, seed=3, stored="F32", **SIZES | {"head_dim": None})
    server.add(f"org/{family}", read_files(models / family))
    here = merge(models, "here", RECIPE.format(base="./llama", donor=f"./{family}"))
    there = merge(models, "there", RECIPE.format(base="./llama", donor=f"org/{family}"), fetch="tensors")
    assert there == here
    assert server.bytes_of("model.safetensors") < (models / family / "model.safetensors").stat().st_size / 2


@pytest.mark.parametrize(
    "how", ["org/qwen3@main", "hf://org/qwen3", "hf://models/org/qwen3@main", "hf://org/qwen3@refs%2Fpr%2F1"]
)
def test_every_way_to_name_a_repository_is_one_plan(server: HubServer, models: Path, how: str) -> None:
    """Names and addresses of one commit make plans of one fingerprint."""
    there = server.repositories["org/qwen3"]
    there.branches["refs/pr/1"] = there.branches["main"]
    named = make_plan(models, RECIPE.format(base="org/llama", donor=how))[1]
    assert named.fingerprint == make_plan(models, ON_THE_HUB)[1].fingerprint
    assert named.models[1].label == "org/qwen3"


# --- when something goes wrong


def test_a_server_without_ranges_gives_whole_shards_and_that_is_said(server: HubServer, models: Path) -> None:
    """Where the server ignores ranges the merge is made of whole shards, and a note says so."""
    make_plan(models, ON_THE_HUB)
    server.fail("GET /stored/", whole=True, times=99)
    notes = Notes()
    assert merge(models, reporter=notes) == merge(models, "here", HERE)
    assert notes.said == ["the Hub's server gives no parts of files: whole shards of org/qwen3 are fetched."]
    assert all(each.cached for each in donor_downloads(models))


def test_a_branch_that_moves_during_a_fetch_changes_nothing(server: HubServer, models: Path) -> None:
    """Whatever is pushed while a merge fetches, its output is that of the commits that were planned with."""
    write_model(models / "other", "qwen3", seed=9, stored="F32", **DEEPER)
    other = split(models / "other", place_tensor)
    moved: list[str] = []
    there = server.repositories["org/qwen3"]
    server.fail(f"/{FILES[1]}", times=2)  # Its header.
    server.fail(f"/{FILES[1]}", act=lambda: moved.append(there.commit(dict(other))))
    assert merge(models) == merge(models, "here", HERE)
    assert moved == [there.branches["main"]]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("how", "kind"),
    [
        ({"status": 401}, HubError),
        ({"status": 403, "headers": {"X-Error-Code": "GatedRepo"}}, HubError),
        ({"status": 404}, HubError),
        ({"status": 412}, HubError),
        ({"status": 429, "headers": {"Retry-After": "1"}}, HubUnavailableError),
        ({"status": 500}, HubUnavailableError),
        ({"reset": True}, HubUnavailableError),
        ({"cut": 9}, HubError),
        ({"shifted": 64}, HubError),
    ],
    ids=["401", "gated", "404", "412", "429", "500", "reset", "cut", "shifted"],
)
def test_a_fault_leaves_no_output_and_the_next_run_goes_on(
    server: HubServer, models: Path, monkeypatch: pytest.MonkeyPatch, how: dict[str, Any], kind: type[HubError]
) -> None:
    """After any fault nothing has appeared, what had come is kept, and a second run makes the output of the rest."""
    make_plan(models, ON_THE_HUB)
    hub.fetch_shards("org/llama", hub.pin_revision("org/llama", None), ["model.safetensors"])
    headers = sent_of_donor(server)
    match = "/org/qwen3/resolve/" if "status" in how else "/stored/"
    # One part after another: those of two layers come before the fault.
    monkeypatch.setattr("xmerge.hub.pieces.AT_ONCE", 1)
    server.fail(f"/{FILES[0]}", times=4)
    server.fail(match, **how, times=99)
    with pytest.raises(kind) as refused:
        merge(models)
    assert type(refused.value) is kind
    assert not (models / "out").exists()
    server.faults.clear()
    assert merge(models) == merge(models, "here", HERE)
    used = sum(each.used for each in donor_downloads(models))
    # Of four parts, the one that failed in the middle and the one behind it may have been sent in vain.
    wasted = 0 if "status" in how else used / 2
    assert sent_of_donor(server) - headers <= 1.01 * used + wasted


def test_wrong_bytes_of_a_whole_shard_reach_no_output(server: HubServer, models: Path) -> None:
    """A shard that is fetched whole and has another SHA-256 stops the merge; the next one fetches it again."""
    make_plan(models, ON_THE_HUB)
    server.fail("/model.safetensors", garbled=True, times=99)
    with pytest.raises(HubError, match="does not hold the bytes"):
        merge(models)
    assert not (models / "out").exists()
    server.faults.clear()
    assert merge(models) == merge(models, "here", HERE)


def test_a_changed_part_is_fetched_again(server: HubServer, models: Path) -> None:
    """A part that changed on the disk since it was fetched is fetched again, and it alone."""
    plan = make_plan(models, ON_THE_HUB)[1]
    path = fetch_model(plan, 1, models / "parts").folder / FILES[0]
    good = path.read_bytes()
    before = server.bytes_of(FILES[0])
    place = donor_downloads(models)[0].ranges[0]
    path.write_bytes(good[: place.start] + bytes([good[place.start] ^ 1]) + good[place.start + 1 :])
    fetch_model(plan, 1, models / "parts")
    assert path.read_bytes() == good
    assert 0 < server.bytes_of(FILES[0]) - before < sum(each.nbytes for each in donor_downloads(models)[0].ranges)


def test_a_number_in_a_linked_shard_is_named(server: HubServer, models: Path) -> None:
    """NaN in a whole shard beside parts of others is told with its element, as in a local model."""
    weight = "model.layers.0.self_attn.q_proj.weight"
    path = models / "qwen3" / "model.safetensors"
    _, entries, start = read_local_shard(path, path.name)
    with path.open("r+b") as file:
        file.seek(start + next(entry.begin for entry in entries if entry.name == weight) + 5 * 4)
        file.write(b"\x00\x00\xc0\x7f")
    commit = server.add("org/qwen3", split(models / "qwen3", place_tensor))
    hub.fetch_shards("org/qwen3", commit, FILES[:1])
    with pytest.raises(NonfiniteInputError, match=f"org/qwen3 holds NaN or infinity in {weight}, at element 5"):
        merge(models)
