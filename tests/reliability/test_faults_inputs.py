"""Rows 1 to 16 and 28 of the table of faults in docs/reliability.md: what an input may be, and what then happens."""

from __future__ import annotations

import json
import os
import unicodedata
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.fake_checkpoints import write_fake
from tests.hub.server import HubServer, connected, running
from tests.small_merges import RECIPE, digest_files, load_weights, make_plan, run, write_model, write_models
from xmerge.checkpoints.checkpoint import INDEX_NAME, SINGLE_NAME
from xmerge.checkpoints.headers import MAX_HEADER_BYTES
from xmerge.errors import CheckpointError, ConfigError, InvalidMergeError, NonfiniteInputError, XmergeError
from xmerge.validation import verify

ONE, TWO = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
Q = "model.layers.1.self_attn.q_proj.weight"
Damage = Callable[[Path], object]


@pytest.fixture
def models(tmp_path):
    """The models of the recipe, whole."""
    return write_models(tmp_path)


def refuse(folder: Path, recipe: str = RECIPE) -> XmergeError:
    """What a merge is refused with; nothing is left of it, and nothing of the inputs is touched."""
    before = sorted(path.name for path in folder.iterdir())
    with pytest.raises(XmergeError) as caught:
        run(folder, recipe=recipe)
    assert sorted(path.name for path in folder.iterdir()) == before
    # What is wrong with a recipe is told with the valid values in the same sentence.
    assert caught.value.remedy or isinstance(caught.value, ConfigError)
    return caught.value


def refuse_at_plan(folder: Path, recipe: str = RECIPE) -> XmergeError:
    """The same, known from the plan."""
    with pytest.raises(XmergeError):
        make_plan(folder, recipe)
    return refuse(folder, recipe)


def write_header(path: Path, header: Any, data: int) -> None:
    """A shard with this header, as an object or as text, and so many bytes of data."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + bytes(data))


def entry(begin: int, end: int, *shape: int) -> dict[str, Any]:
    """An entry of a header, of bfloat16."""
    return {"dtype": "BF16", "shape": list(shape), "data_offsets": [begin, end]}


def split(folder: Path) -> dict[str, str]:
    """Put a model's weights into two shards with an index; the weight map."""
    weights = load_file(folder / SINGLE_NAME)
    (folder / SINGLE_NAME).unlink()
    names = sorted(weights)
    weight_map: dict[str, str] = {}
    for file, held in ((ONE, names[::2]), (TWO, names[1::2])):
        save_file({name: weights[name] for name in held}, folder / file, {"format": "pt"})
        weight_map |= dict.fromkeys(held, file)
    write_index(folder, weight_map, sum(each.nbytes for each in weights.values()))
    return weight_map


def write_index(folder: Path, weight_map: Any, total: Any = 0) -> None:
    """An index that says this."""
    (folder / INDEX_NAME).write_text(json.dumps({"metadata": {"total_size": total}, "weight_map": weight_map}))


def edit_config(folder: Path, **changes: Any) -> None:
    """Change a model's config.json."""
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize("size", [0, 1, 7])
def test_fault_01_a_file_without_a_header_is_refused_by_name_and_size(models, size):
    """A file of fewer than 8 bytes is named with its size, from the plan."""
    os.truncate(models / "qwen3" / SINGLE_NAME, size)
    error = refuse_at_plan(models)
    assert error.exit_code == 3
    assert error.what.startswith(f"qwen3/{SINGLE_NAME}") and f"it has {size} bytes" in str(error.why)


@pytest.mark.parametrize("length", [MAX_HEADER_BYTES + 1, 2**31, 2**63, 2**64 - 1])
def test_fault_02_a_header_that_is_too_long_is_refused_unread(models, length):
    """A length above the bound, or above the file's, is refused before anything of that length is held."""
    path = models / "qwen3" / SINGLE_NAME
    path.write_bytes(length.to_bytes(8, "little") + b"{}")
    if length < 2**40:
        # A hole, so that the file is as long as the header claims to be.
        os.truncate(path, length + 8)
    error = refuse_at_plan(models)
    assert error.exit_code == 3 and f"its header claims {length} bytes" in str(error.why)


@pytest.mark.parametrize("change", [-1, -1000, 1, 4096])
def test_fault_03_a_file_of_another_size_is_refused_with_both_sizes(models, change):
    """Data that is cut off or goes on is told as expected and actual size, with what to do."""
    path = models / "qwen3" / SINGLE_NAME
    size = path.stat().st_size
    expected = sum(each.nbytes for each in load_file(path).values())
    os.truncate(path, size + change)
    error = refuse_at_plan(models)
    assert error.exit_code == 3 and error.remedy == "fetch or write the file again."
    assert error.why == f"its tensors take {expected} bytes and it holds {expected + change} bytes of data."


@pytest.mark.parametrize(
    ("header", "why"),
    [
        ({"a": entry(0, 8, 4), "b": entry(4, 12, 4)}, "b overlaps the tensor before it."),
        ({"a": entry(0, 8, 4), "b": entry(10, 12, 1)}, "b leaves a hole before it."),
        ({"a": entry(8, 0, 4)}, "a (BF16 [4]) does not fit into its -8 bytes."),
        ({"a": entry(0, 12, 4)}, "a (BF16 [4]) does not fit into its 12 bytes."),
        ({"a": entry(0, 12, 2**62, 2**62, 6)}, f"a (BF16 {[2**62, 2**62, 6]}) does not fit into its 12 bytes."),
    ],
    ids=["overlap", "hole", "begin behind end", "size is not shape times dtype", "shape beyond 64 bits"],
)
def test_fault_04_a_layout_that_cannot_be_is_refused_by_tensor(models, header, why):
    """Overlap, hole, reversed offsets and a wrong size are each refused with the tensor's name."""
    write_header(models / "qwen3" / SINGLE_NAME, header, 12)
    error = refuse_at_plan(models)
    assert (error.exit_code, error.why) == (3, why)


def test_fault_05_a_key_that_stands_twice_is_refused_even_if_both_say_the_same(models):
    """Two equal entries of one tensor, or of one line of the index, are refused with the key."""
    said = json.dumps(entry(0, 2, 1))
    write_header(models / "qwen3" / SINGLE_NAME, f'{{"a": {said}, "a": {said}}}'.encode(), 2)
    assert refuse_at_plan(models).why == "its header has the key 'a' twice."
    write_model(models / "qwen3", "qwen3", seed=2, num_hidden_layers=6)
    split(models / "qwen3")
    path = models / "qwen3" / INDEX_NAME
    path.write_text(path.read_text().replace('"weight_map": {', f'"weight_map": {{"{Q}": "{ONE}", "{Q}": "{ONE}", '))
    assert f"has the key '{Q}' twice" in refuse_at_plan(models).what


def double(folder: Path, weight_map: dict[str, str]) -> str:
    """Write a tensor of the first shard into the second too."""
    name = next(name for name, file in weight_map.items() if file == ONE)
    weights = load_file(folder / TWO)
    save_file({**weights, name: load_file(folder / ONE)[name]}, folder / TWO, {"format": "pt"})
    return f"qwen3 holds {name} twice: in {ONE} and {TWO}."


def misplace(folder: Path, weight_map: dict[str, str]) -> str:
    """Let the index place tensors in shards that do not hold them."""
    names = sorted(weight_map)[:5]
    write_index(folder, weight_map | {name: TWO if weight_map[name] == ONE else ONE for name in names})
    return f"not in their shard: {', '.join(names[:3])} and 2 more."


def leave_out(folder: Path, weight_map: dict[str, str]) -> str:
    """Let the index say nothing of some tensors."""
    names = sorted(weight_map)[:2]
    write_index(folder, {name: file for name, file in weight_map.items() if name not in names})
    return f"not in the index: {', '.join(names)}."


@pytest.mark.parametrize("contradict", [double, misplace, leave_out], ids=lambda act: act.__name__)
def test_fault_06_shards_and_index_that_contradict_each_other_are_refused(models, contradict):
    """Never does the last one win: what is in two shards, in none or in no index is listed, and nothing merged."""
    weight_map = split(models / "qwen3")
    assert run(models, models.parent / f"{models.name} out").report is not None
    told = contradict(models / "qwen3", weight_map)
    error = refuse_at_plan(models)
    assert error.exit_code == 3 and told in f"{error.what} {error.why}"


HOSTILE_NAMES = (
    "../other/model.safetensors", "/etc/model.safetensors", "https://example.org/model.safetensors",
    "..\\other\\model.safetensors", "C:\\model.safetensors", "a/../../model.safetensors", "file:model.safetensors",
    ".model.safetensors", "model.safetensors\0", "model.safetensors\n", "config.json", "", "gone.safetensors",
)  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE_NAMES)
def test_fault_07_an_index_that_points_elsewhere_is_refused_and_nothing_there_opened(models, monkeypatch, name):
    """Whatever an index names that is no file beside it, no file is opened because of it."""
    write_model(models / "other", seed=5)
    weight_map = split(models / "qwen3")
    write_index(models / "qwen3", weight_map | {Q: name})
    opened = watch_opens(monkeypatch)
    error = refuse_at_plan(models)
    assert error.exit_code == 3
    assert {Path(path).parent.name for path in opened} <= {"llama", "qwen3"}
    assert "qwen3" not in {Path(path).parent.name for path in opened if path.endswith(".safetensors")}


def watch_opens(monkeypatch) -> list[str]:
    """Every path that is opened through the door to the disk, from now on."""
    from xmerge import disk

    opened: list[str] = []
    real = disk.open

    def note(path: Any, *rest: Any) -> int:
        opened.append(os.fspath(path))
        return real(path, *rest)

    monkeypatch.setattr(disk, "open", note)
    return opened


def test_fault_07_a_link_out_of_the_checkpoint_is_refused_and_not_followed(models, monkeypatch):
    """A shard, or a tokenizer that would go along into the output, is refused where it is a link to another folder."""
    secret = models.parent / f"{models.name} secret.json"
    secret.write_text("{}")
    (models / "llama" / "tokenizer.json").symlink_to(secret)
    opened = watch_opens(monkeypatch)
    error = refuse_at_plan(models)
    assert error.exit_code == 3 and error.what == "llama/tokenizer.json is a link that leads out of its folder."
    assert str(secret) not in opened and error.where == str(secret)


@pytest.fixture
def server(tmp_path) -> Iterator[HubServer]:
    """A Hub that counts what it is asked for."""
    with running() as started, connected(started, tmp_path / "home"):
        yield started


@pytest.mark.parametrize(
    "name", [*HOSTILE_NAMES, "org%2Fsecret/model.safetensors", "../../../secret/resolve/x.safetensors"]
)
def test_fault_07_a_crafted_index_on_the_hub_asks_for_nothing(models, server, name):
    """An index that names another repository's file is refused before any shard is requested, of any repository."""
    weight_map = split(models / "qwen3")
    write_index(models / "qwen3", weight_map | {Q: name})
    server.add("org/hostile", {path.name: path.read_bytes() for path in (models / "qwen3").iterdir()})
    server.add("org/secret", {SINGLE_NAME: b"0" * 100, "model.safetensors": b"1" * 100}, private=True)
    recipe = RECIPE.replace("model: qwen3", "model: org/hostile")
    before = sorted(path.name for path in models.iterdir())
    with pytest.raises(CheckpointError) as caught:
        run(models, recipe=recipe)
    assert caught.value.exit_code == 3
    # `home` is the cache of the Hub's client.
    assert sorted({path.name for path in models.iterdir()} - {"home"}) == sorted(set(before) - {"home"})
    assert not [served.path for served in server.served if ".safetensors" in served.path and "index" not in served.path]
    assert not [served.path for served in server.served if "secret" in served.path]


@pytest.mark.parametrize(
    "name",
    [
        "",
        "a\0b",
        "../../a",
        "/etc/a",
        "a b",
        "a\x1b[31m",
        "a" * 10_000,
        unicodedata.normalize("NFD", "gewïcht"),
        "\u202ea",
    ],
    ids=range(9),
)
def test_fault_08_an_odd_name_of_a_tensor_is_refused_and_shown_harmlessly(models, name):
    """A name that is empty, a path, unprintable, not ASCII or without end is refused in one short printable line."""
    write_header(models / "qwen3" / SINGLE_NAME, {name: entry(0, 2, 1)}, 2)
    error = refuse_at_plan(models)
    assert error.exit_code == 3 and str(error.why).endswith("is no name for a tensor.")
    assert all(line.isprintable() and len(line) < 200 for line in str(error).splitlines())


@pytest.mark.parametrize("said", [1, None, "many", 2**70])
def test_fault_09_a_wrong_total_size_is_told_and_the_right_one_written(models, said):
    """Nobody relies on the index's total_size: a merge writes the right one, and verify warns of a wrong one."""
    weight_map = split(models / "llama")
    write_index(models / "llama", weight_map, said)
    report = verify(models / "llama", trial=False)
    assert report.ok and [each.code for each in report.findings] == ["wrong_total_size"]
    run(models)
    written = json.loads((models / "out" / INDEX_NAME).read_text())["metadata"]["total_size"]
    assert written == sum(each.nbytes for each in load_weights(models / "out").values())


def spoil(folder: Path, name: str, value: float) -> None:
    """Put a number into the middle of a tensor."""
    weights = load_file(folder / SINGLE_NAME)
    weights[name].view(-1)[7] = value
    save_file(weights, folder / SINGLE_NAME, {"format": "pt"})


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_fault_10_a_number_that_is_none_follows_the_recipe(models, value):
    """NaN or infinity in an input stops the merge, or the base's tensor is kept and told, as the recipe says."""
    spoil(models / "qwen3", "model.layers.2.self_attn.q_proj.weight", value)
    with pytest.raises(NonfiniteInputError) as caught:
        run(models)
    assert caught.value.exit_code == 3 and not (models / "out").exists()
    assert caught.value.what.endswith("in model.layers.2.self_attn.q_proj.weight, at element 7.")
    report = run(models, recipe=f"{RECIPE}on_nonfinite: base\n").report
    assert report is not None and [each.code for each in report.findings] == ["kept_base"]
    assert torch.equal(load_weights(models / "out")[Q], load_weights(models / "llama")[Q])


def test_fault_11_an_overflow_is_named_before_anything_appears(models):
    """What the output's dtype cannot hold is refused with tensor, method and dtype, and no output appears."""
    recipe = (
        "merge_method: linear\nmodels: [{model: llama, parameters: {weight: 60000}}, "
        "{model: llama, parameters: {weight: 1}}]\nparameters: {normalize: false}\nout_dtype: float16\n"
    )
    with pytest.raises(InvalidMergeError) as caught:
        run(models, recipe=recipe)
    assert caught.value.exit_code == 4
    assert "overflows F16" in caught.value.what and "linear gives a number that F16" in str(caught.value.why)
    assert not (models / "out").exists()


@pytest.mark.parametrize("dtype", ["I64", "U8", "F8_E4M3", "BOOL"])
def test_fault_12_numbers_that_are_no_weights_are_never_combined(models, dtype):
    """A tensor of whole numbers or tiny floats is refused with the reason where it is merged, and passes elsewhere."""
    name = "model.layers.2.self_attn.q_proj.weight"
    shape = tuple(load_file(models / "qwen3" / SINGLE_NAME)[name].shape)
    write_fake(models / "qwen3", "qwen3", num_hidden_layers=6, intermediate_size=16, extra={name: (dtype, shape)})
    error = refuse_at_plan(models)
    assert error.exit_code == 3 and f"qwen3 holds {name} packed" in error.what
    without_q = RECIPE.replace("  - {filter: q_proj, value: 0.3}\n", "")
    assert run(models, recipe=without_q).report is not None


def test_fault_12_packed_weights_are_refused_by_their_kind(models):
    """What a quantised model holds packed is refused by its kind, with what to do."""
    edit_config(models / "qwen3", quantization_config={"quant_method": "gptq", "bits": 4})
    packed = "model.layers.2.self_attn.q_proj"
    parts = {
        f"{packed}.qweight": ("I32", (1, 16)),
        f"{packed}.scales": ("F16", (1, 16)),
        f"{packed}.qzeros": ("I32", (1, 2)),
    }
    write_fake(
        models / "qwen3", "qwen3", num_hidden_layers=6, intermediate_size=16, extra=parts,
        without=f"{packed}.weight", quantization_config={"quant_method": "gptq", "bits": 4, "group_size": -1},
    )  # fmt: skip
    error = refuse_at_plan(models)
    assert error.exit_code in (2, 3) and "gptq" in str(error).lower()


def test_fault_13_shapes_that_cannot_cross_are_refused_or_kept_as_the_recipe_says(models):
    """A donor of another width is refused with both shapes, or the plan shows the base's tensor and why."""
    write_model(models / "qwen3", "qwen3", seed=2, num_hidden_layers=6, hidden_size=12)
    error = refuse_at_plan(models)
    assert error.exit_code == 2 and "12" in str(error) and "8" in str(error)
    plan = make_plan(models, f"{RECIPE}on_mismatch: base\n")[1]
    kept = [each for each in plan.tensors if each.reason.startswith("it does not fit")]
    assert len(kept) == 16 and all(each.decision == "keep" for each in kept)
    assert any("does not fit" in warning for warning in plan.warnings)


@pytest.mark.parametrize("tied", [True, False])
def test_fault_14_heads_and_norms_are_the_base_s(models, tied):
    """A head or norm that only one side has is decided by the base, and no tensor is written that it lacks."""
    write_model(models / "llama", seed=1, tie_word_embeddings=tied)
    write_model(models / "qwen3", "qwen3", seed=2, num_hidden_layers=6, tie_word_embeddings=not tied)
    run(models)
    made = set(load_weights(models / "out"))
    assert ("lm_head.weight" in made) is not tied
    assert made == set(load_weights(models / "llama")) and not any("k_norm" in name for name in made)
    provenance = json.loads((models / "out" / "provenance.json").read_text())
    assert any("attn_k_norm" in foreign for foreign in provenance["models"][1]["foreign"])


@pytest.mark.parametrize("pairs", ["[[0, 9]]", "[[9, 0]]", "[[0, 1], [0, 2]]", "[[0, -1]]", "[[0, 1, 2]]"])
def test_fault_15_a_layer_map_that_names_what_is_not_there_is_refused(models, pairs):
    """Out of range, repeated or malformed pairs are refused from the plan, with the line."""
    error = refuse_at_plan(models, RECIPE.replace("layer_map: proportional", f"layer_map: {pairs}"))
    assert error.exit_code == 2 and "layer_map" in str(error)


@pytest.mark.parametrize("layers", ["[3, 9]", "[4, 2]", "[1, 1]", "[0]"])
def test_fault_15_a_layer_range_that_is_not_there_is_refused(models, layers):
    """A slice that goes beyond a model, backwards or nowhere is refused from the plan, with the line."""
    recipe = (
        "merge_method: passthrough\nslices:\n- sources: [{model: llama, layer_range: [0, 2]}]\n"
        f"- sources: [{{model: llama, layer_range: {layers}}}]\n"
    )
    error = refuse_at_plan(models, recipe)
    assert error.exit_code == 2 and "recipe.yml, line 4" in str(error)


CONFIGS: dict[str, Damage] = {
    "absent": lambda path: path.unlink(),
    "huge number": lambda path: edit_config(path.parent, num_hidden_layers=10**400),
    "two thousand million heads": lambda path: edit_config(path.parent, num_key_value_heads=2**31 - 1),
    "contradicts the tensors": lambda path: edit_config(path.parent, hidden_size=64),
    "contradicts the layers": lambda path: edit_config(path.parent, num_hidden_layers=3),
    "no JSON": lambda path: path.write_text("model_type: qwen3"),
    "nested without end": lambda path: path.write_text('{"a":' * 100_000),
    "a word for a number": lambda path: edit_config(path.parent, num_attention_heads="four"),
    "of an unknown type": lambda path: edit_config(path.parent, model_type="unheard_of", architectures=["Unheard"]),
}


@pytest.mark.parametrize("damage", CONFIGS.values(), ids=CONFIGS)
def test_fault_16_a_config_json_that_cannot_be_believed_is_refused(models, damage):
    """A config.json that is absent, absurd or contradicts the weights is refused by name, and no code is run for it."""
    damage(models / "qwen3" / "config.json")
    error = refuse_at_plan(models)
    assert error.exit_code in (2, 3)
    assert "qwen3" in str(error) or "unheard_of" in str(error)


def test_fault_16_a_mark_before_the_text_and_keys_of_others_do_not_matter(models):
    """A byte order mark, and keys that no one knows, leave a config.json as good as it was."""
    run(models, models / "usual")
    path = models / "qwen3" / "config.json"
    edit_config(path.parent, unheard_of={"deep": [None]}, auto_map={"AutoConfig": "evil.Evil"})
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    (path.parent / "evil.py").write_text("raise SystemExit('code of a checkpoint was run')")
    run(models)
    shards = [name for name in digest_files(models / "out") if name.endswith(".safetensors")]
    assert shards and all(digest_files(models / "out")[name] == digest_files(models / "usual")[name] for name in shards)


def test_fault_28_a_shard_that_is_not_what_was_written_is_found(models):
    """One flipped bit anywhere in an output's weights is found by its digest, and nothing of it is called whole."""
    run(models)
    path = sorted((models / "out").glob("*.safetensors"))[2]
    content = bytearray(path.read_bytes())
    content[-9] ^= 16
    path.write_bytes(content)
    report = verify(models / "out", trial=False)
    assert not report.ok and "wrong_digest" in {each.code for each in report.findings}


def test_fault_28_a_download_of_another_size_is_never_merged(models, server):
    """Bytes that are not of the size that is listed are refused; what comes whole the next time is merged."""
    for name in ("llama", "qwen3"):
        server.add(f"org/{name}", {path.name: path.read_bytes() for path in (models / name).iterdir()})
    recipe = RECIPE.replace("model: qwen3", "model: org/qwen3")
    server.fail(f"/{SINGLE_NAME}", cut=100, times=50)
    with pytest.raises(CheckpointError) as caught:
        run(models, recipe=recipe)
    assert caught.value.exit_code == 3 and not (models / "out").exists()
    server.faults.clear()
    run(models, recipe=recipe)
    run(models, models / "local")
    assert load_weights(models / "out").keys() == load_weights(models / "local").keys()
    assert all(
        torch.equal(load_weights(models / "out")[name], weight)
        for name, weight in load_weights(models / "local").items()
    )


def test_the_rows_of_this_file_are_all_there():
    """Every row from 1 to 16, and 28, has a test that carries its number."""
    rows = {name.split("_")[2] for name in globals() if name.startswith("test_fault_")}
    assert rows == {f"{row:02d}" for row in (*range(1, 17), 28)}
