"""A local checkpoint: whole, or refused with what is wrong with it."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xmerge.checkpoints import Checkpoint, read_checkpoint
from xmerge.checkpoints.checkpoint import INDEX_NAME, SINGLE_NAME, read_json_object
from xmerge.checkpoints.headers import build_header
from xmerge.checkpoints.untrusted import LARGE, MAX_DEPTH, SMALL, UntrustedError, is_plain_shard_name, parse_object
from xmerge.errors import CheckpointError

ONE, TWO = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"


def write_shard(path: Path, *names: str) -> None:
    """A shard that holds tensors of these names, all zero."""
    header, entries = build_header((name, "BF16", (2, 3)) for name in names)
    path.write_bytes(header + bytes(12 * len(entries)))


def write_index(folder: Path, weight_map: Any) -> None:
    """An index that says this."""
    (folder / INDEX_NAME).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}), encoding="utf-8")


def write_single(folder: Path) -> None:
    """A whole checkpoint in one file."""
    (folder / "config.json").write_text('{"model_type": "llama"}', encoding="utf-8")
    write_shard(folder / SINGLE_NAME, "a", "b")


def write_sharded(folder: Path) -> None:
    """A whole checkpoint in two shards."""
    (folder / "config.json").write_text('{"model_type": "llama"}', encoding="utf-8")
    write_shard(folder / ONE, "a", "b")
    write_shard(folder / TWO, "c")
    write_index(folder, {"a": ONE, "b": ONE, "c": TWO})


def read(folder: Path) -> Checkpoint:
    """The checkpoint in a folder, under the name `org/m`."""
    return read_checkpoint(folder, "org/m")


def refuse(folder: Path) -> str:
    """What is said of a checkpoint that must be refused."""
    with pytest.raises(CheckpointError) as caught:
        read(folder)
    assert caught.value.exit_code == 3
    return str(caught.value)


def test_a_whole_checkpoint_is_known_by_its_headers(tmp_path: Path):
    """Every tensor of every shard is known with its file, its shape and the place of its bytes in that file."""
    write_sharded(tmp_path)
    checkpoint = read(tmp_path)
    assert checkpoint.config == {"model_type": "llama"}
    assert [shard.file for shard in checkpoint.shards] == [ONE, TWO]
    assert list(checkpoint.tensors) == ["a", "b", "c"]
    b = checkpoint.tensors["b"]
    assert (b.file, b.dtype, b.shape, b.nbytes) == (ONE, "BF16", (2, 3), 12)
    assert b.offset + b.nbytes == (tmp_path / ONE).stat().st_size


def test_one_file_or_many_are_the_same_tensors(tmp_path: Path):
    """A single file needs no index, and gives what shards with an index give."""
    write_single(tmp_path)
    assert list(read(tmp_path).tensors) == ["a", "b"]


def test_an_index_may_name_the_single_file(tmp_path: Path):
    """An index whose only shard is the single file describes that file and no other model."""
    write_single(tmp_path)
    write_index(tmp_path, {"a": SINGLE_NAME, "b": SINGLE_NAME})
    assert list(read(tmp_path).tensors) == ["a", "b"]


def test_files_that_the_index_does_not_name_do_not_count(tmp_path: Path):
    """A consolidated copy, or a shard of an earlier upload, is not part of the model."""
    write_sharded(tmp_path)
    write_shard(tmp_path / "consolidated.safetensors", "z")
    assert list(read(tmp_path).tensors) == ["a", "b", "c"]


def test_the_pin_changes_with_the_shards(tmp_path: Path):
    """Two readings of one checkpoint agree, and another header gives another pin."""
    write_sharded(tmp_path)
    pin = read(tmp_path).pin
    assert read(tmp_path).pin == pin
    write_shard(tmp_path / TWO, "d")
    write_index(tmp_path, {"a": ONE, "b": ONE, "d": TWO})
    assert read(tmp_path).pin != pin


def test_config_json_may_have_a_byte_order_mark(tmp_path: Path):
    """What a model's config.json says is read leniently: a mark that some editors write does not matter."""
    write_single(tmp_path)
    (tmp_path / "config.json").write_bytes(b"\xef\xbb\xbf" + b'{"model_type": "llama", "unheard_of": [NaN]}')
    assert read(tmp_path).config["model_type"] == "llama"


Damage = Callable[[Path], object]


def cut(path: Path, length: int) -> None:
    """Leave the first bytes of a file."""
    os.truncate(path, length)


def put_folder(path: Path) -> None:
    """Put a folder in a file's place."""
    path.unlink()
    path.mkdir()


def put_pipe(path: Path) -> None:
    """Put a pipe in a file's place, which whoever opens it waits for."""
    path.unlink()
    os.mkfifo(path)


def split(folder: Path, *names: str) -> None:
    """Put shards in the single file's place."""
    (folder / SINGLE_NAME).unlink()
    for number, name in enumerate(names):
        write_shard(folder / name, f"t{number}")


SHARDED: dict[str, tuple[Damage, str]] = {
    "no config.json": (
        lambda folder: (folder / "config.json").unlink(),
        "org/m/config.json does not exist.\n  do: name a folder that holds a whole model.",
    ),
    "config.json is no JSON": (
        lambda folder: (folder / "config.json").write_text("{'a': 1}", encoding="utf-8"),
        "org/m/config.json is not JSON.\n  do: fetch the file again.",
    ),
    "config.json is no UTF-8": (
        lambda folder: (folder / "config.json").write_bytes(b'{"a": "\xe9"}'),
        "org/m/config.json is not JSON.\n  do: fetch the file again.",
    ),
    "config.json is bottomless": (
        lambda folder: (folder / "config.json").write_text("[" * 100_000, encoding="utf-8"),
        "org/m/config.json is not JSON.\n  do: fetch the file again.",
    ),
    "config.json is deep": (
        lambda folder: (folder / "config.json").write_text('{"a": ' + "[" * 101 + "]" * 101 + "}", encoding="utf-8"),
        "org/m/config.json is nested more than 100 deep.\n  do: fetch the file again.",
    ),
    "config.json holds half a character": (
        lambda folder: (folder / "config.json").write_text('{"a": "\\ud83d"}', encoding="utf-8"),
        "org/m/config.json holds half of a character.\n  do: fetch the file again.",
    ),
    "config.json is a list": (
        lambda folder: (folder / "config.json").write_text("[]", encoding="utf-8"),
        "org/m/config.json is not a JSON object.\n  do: fetch the file again.",
    ),
    "config.json is a folder": (
        lambda folder: put_folder(folder / "config.json"),
        "org/m/config.json cannot be read: Is a directory.",
    ),
    "config.json has no end": (
        lambda folder: cut(folder / "config.json", 25_000_001),
        "org/m/config.json takes more than 25,000,000 bytes.\n  do: fetch the file again.",
    ),
    "a shard is missing": (
        lambda folder: (folder / TWO).unlink(),
        f"org/m lacks 1 of its 2 shards: {TWO}.\n  do: fetch the missing files.",
    ),
    "a shard is a folder": (
        lambda folder: put_folder(folder / TWO),
        f"org/m/{TWO} cannot be read: Is a directory.",
    ),
    "a shard is empty": (
        lambda folder: cut(folder / TWO, 0),
        (
            f"org/m/{TWO} is damaged or no safetensors file.\n"
            "  why: it has 0 bytes; a safetensors file has at least 8.\n  do: fetch or write the file again."
        ),
    ),
    "a shard is cut off": (
        lambda folder: cut(folder / TWO, (folder / TWO).stat().st_size - 1),
        (
            f"org/m/{TWO} is damaged or no safetensors file.\n"
            "  why: its tensors take 12 bytes and it holds 11 bytes of data.\n  do: fetch or write the file again."
        ),
    ),
    "a shard has bytes behind its end": (
        lambda folder: cut(folder / TWO, (folder / TWO).stat().st_size + 1),
        (
            f"org/m/{TWO} is damaged or no safetensors file.\n"
            "  why: its tensors take 12 bytes and it holds 13 bytes of data.\n  do: fetch or write the file again."
        ),
    ),
    "a shard is a pointer of Git LFS": (
        lambda folder: (folder / TWO).write_text("version https://git-lfs.github.com/spec/v1\n", encoding="utf-8"),
        (
            f"org/m/{TWO} is damaged or no safetensors file.\n"
            f"  why: its header claims {int.from_bytes(b'version ', 'little')} bytes, and the file has 43.\n"
            "  do: fetch or write the file again."
        ),
    ),
    "a single file beside the shards": (
        lambda folder: write_shard(folder / SINGLE_NAME, "a"),
        (
            f"org/m holds both {SINGLE_NAME} and {INDEX_NAME}, which speaks of other files.\n"
            "  why: they may be two different models.\n  do: remove the one that is out of date."
        ),
    ),
    "no weight_map": (
        lambda folder: (folder / INDEX_NAME).write_text("{}", encoding="utf-8"),
        f"org/m/{INDEX_NAME} has no weight_map, and so names no shard.\n  do: fetch the file again.",
    ),
    "an empty weight_map": (
        lambda folder: write_index(folder, {}),
        f"org/m/{INDEX_NAME} has no weight_map, and so names no shard.\n  do: fetch the file again.",
    ),
    "an index that is a list": (
        lambda folder: (folder / INDEX_NAME).write_text("[]", encoding="utf-8"),
        f"org/m/{INDEX_NAME} is not a JSON object.\n  do: fetch the file again.",
    ),
    "the index names a tensor that its shard lacks": (
        lambda folder: write_index(folder, {"a": ONE, "b": TWO, "c": TWO, "d": TWO}),
        (
            "the index of org/m contradicts its shards.\n  why: not in their shard: b, d.\n"
            "  do: fetch index and shards of one and the same revision."
        ),
    ),
    "the index leaves tensors out": (
        lambda folder: write_index(folder, {"b": ONE, "c": TWO}),
        (
            "the index of org/m contradicts its shards.\n  why: not in the index: a.\n"
            "  do: fetch index and shards of one and the same revision."
        ),
    ),
    "a tensor stands in two shards": (
        lambda folder: write_shard(folder / TWO, "b", "c"),
        f"org/m holds b twice: in {ONE} and {TWO}.\n  do: fetch the whole model again.",
    ),
    "several tensors stand in two shards": (
        lambda folder: write_shard(folder / TWO, "a", "b", "c"),
        f"org/m holds a twice: in {ONE} and {TWO}, and 1 more so.\n  do: fetch the whole model again.",
    ),
    "the index places one tensor twice": (
        lambda folder: (folder / INDEX_NAME).write_text(
            f'{{"weight_map": {{"a": "{ONE}", "b": "{ONE}", "c": "{TWO}", "c": "{TWO}"}}}}', encoding="utf-8"
        ),
        f"org/m/{INDEX_NAME} has the key 'c' twice.\n  do: fetch the file again.",
    ),
    "the index names a tensor that cannot be printed": (
        lambda folder: write_index(folder, {"a": ONE, "b": ONE, "c": TWO, "\ud800\x1b": TWO}),
        (f"org/m/{INDEX_NAME} names '\\ud800\\x1b', which is no name for a tensor.\n  do: fetch the file again."),
    ),
    "the index holds more values than any": (
        lambda folder: (folder / INDEX_NAME).write_text('{"weight_map": [' + "0," * 750_000 + "0]}", encoding="utf-8"),
        f"org/m/{INDEX_NAME} holds more than 750,000 values.\n  do: fetch the file again.",
    ),
    "a shard is a pipe": (
        lambda folder: put_pipe(folder / TWO),
        f"org/m/{TWO} is a pipe or a device.\n  do: put the file itself in its place.",
    ),
    "config.json is a pipe": (
        lambda folder: put_pipe(folder / "config.json"),
        "org/m/config.json is a pipe or a device.\n  do: put the file itself in its place.",
    ),
}
SINGLE: dict[str, tuple[Damage, str]] = {
    "nothing": (
        lambda folder: (folder / SINGLE_NAME).unlink(),
        (
            f"org/m holds no weights.\n  why: neither {SINGLE_NAME} nor {INDEX_NAME} is there.\n"
            "  do: name a folder with a model's weights in safetensors, or fetch the whole model again."
        ),
    ),
    "pickle only": (
        lambda folder: (folder / SINGLE_NAME).rename(folder / "pytorch_model.bin"),
        (
            "org/m holds its weights as pickle files only: pytorch_model.bin.\n"
            "  why: unpickling runs code from the file, so xmerge never opens one.\n"
            "  do: load it with transformers and save it again with save_pretrained, which writes safetensors."
        ),
    ),
    "shards without an index": (
        lambda folder: split(folder, ONE, TWO),
        (
            f"org/m holds {ONE}, {TWO} but neither {SINGLE_NAME} nor {INDEX_NAME}.\n"
            "  do: fetch the index, or name a folder that transformers wrote."
        ),
    ),
    "many shards without an index": (
        lambda folder: split(folder, *(f"w{number}.safetensors" for number in range(1, 6))),
        (
            "org/m holds w1.safetensors, w2.safetensors, w3.safetensors and 2 more but neither "
            f"{SINGLE_NAME} nor {INDEX_NAME}.\n  do: fetch the index, or name a folder that transformers wrote."
        ),
    ),
}


@pytest.mark.parametrize(("damage", "told"), SHARDED.values(), ids=SHARDED)
def test_a_damaged_sharded_checkpoint_is_refused(tmp_path: Path, damage: Damage, told: str):
    """Whatever is missing, damaged or contradictory, the model and the file are named and what to do."""
    write_sharded(tmp_path)
    read(tmp_path)
    damage(tmp_path)
    assert refuse(tmp_path) == told


@pytest.mark.parametrize(("damage", "told"), SINGLE.values(), ids=SINGLE)
def test_a_folder_without_usable_weights_is_refused(tmp_path: Path, damage: Damage, told: str):
    """Where there are no weights that may be opened, that is told, and what there is instead."""
    write_single(tmp_path)
    damage(tmp_path)
    assert refuse(tmp_path) == told


@pytest.mark.parametrize(
    "name",
    [
        "../model.safetensors",
        "/etc/model.safetensors",
        "a/model.safetensors",
        "a\\model.safetensors",
        "https://example.org/model.safetensors",
        "C:model.safetensors",
        ".hidden.safetensors",
        "model.safetensors\n",
        "model\0.safetensors",
        "pytorch_model.bin",
        "",
        "a" * 513 + ".safetensors",
        3,
        None,
        ["model.safetensors"],
    ],
    ids=lambda name: repr(name)[:40],
)
def test_an_index_can_only_name_files_beside_it(tmp_path: Path, name: Any):
    """A shard that lies elsewhere, or is no safetensors file, is never opened, whatever the index says."""
    assert not is_plain_shard_name(name)
    write_sharded(tmp_path)
    write_index(tmp_path, {"a": ONE, "b": ONE, "c": name})
    told = refuse(tmp_path)
    assert told.startswith(f"org/m/{INDEX_NAME} places 'c' in ")
    assert told.endswith(
        "why: a shard is a plain file name that ends in .safetensors.\n"
        "  do: fetch the file again, from someone you trust."
    )


def test_a_folder_that_is_not_there_is_refused(tmp_path: Path):
    """A folder that vanished is named."""
    assert (
        refuse(tmp_path / "gone") == "org/m/config.json does not exist.\n  do: name a folder that holds a whole model."
    )


def link(folder: Path, name: str, target: Path) -> None:
    """Put a link in a file's place."""
    (folder / name).unlink()
    (folder / name).symlink_to(target)


@pytest.mark.parametrize("name", ["config.json", INDEX_NAME, TWO])
def test_a_link_that_leads_out_of_the_checkpoint_is_refused(tmp_path: Path, name: str):
    """No file of a checkpoint brings in another of the machine's, however good that one is."""
    model, other = tmp_path / "model", tmp_path / "other"
    for folder in (model, other):
        folder.mkdir()
        write_sharded(folder)
    link(model, name, Path("..") / "other" / name)
    assert refuse(model) == (
        f"org/m/{name} is a link that leads out of its folder.\n  at: {other / name}\n"
        "  why: a link in a checkpoint could bring any file of this machine into the output.\n"
        "  do: put the file itself in the link's place."
    )


def test_a_link_inside_the_checkpoint_is_followed(tmp_path: Path):
    """A file may lie in a folder of the checkpoint's own, and the checkpoint itself may be a link."""
    model = tmp_path / "model"
    (model / "deep").mkdir(parents=True)
    write_sharded(model)
    (model / TWO).rename(model / "deep" / TWO)
    (model / TWO).symlink_to(Path("deep") / TWO)
    (tmp_path / "alias").symlink_to(model)
    assert list(read(tmp_path / "alias").tensors) == ["a", "b", "c"]


def test_a_snapshot_of_the_cache_is_links_into_the_cache(tmp_path: Path):
    """The Hub's cache keeps files under their digests and names them by links: those are followed, and no others."""
    snapshot = tmp_path / "hub" / "models--org--m" / "snapshots" / ("0" * 40)
    blobs = tmp_path / "hub" / "models--org--m" / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    write_sharded(snapshot)
    (snapshot / TWO).rename(blobs / "123")
    (snapshot / TWO).symlink_to(Path("../../blobs/123"))
    assert list(read(snapshot).tensors) == ["a", "b", "c"]
    (blobs / "123").rename(tmp_path / "123")
    link(snapshot, TWO, tmp_path / "123")
    assert "leads out of its folder" in refuse(snapshot)


json_like = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 3) | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(st.text(max_size=3), json_like, max_size=3), st.booleans())
def test_an_object_is_read_as_it_was_written(data: dict[str, Any], unique: bool):
    """Reading gives what was written, whether keys must be unique or not."""
    assert parse_object(json.dumps(data).encode(), unique=unique) == data


@pytest.mark.parametrize("unique", [True, False])
@pytest.mark.parametrize("depth", [1, MAX_DEPTH, MAX_DEPTH + 1, 3000, 500_000])
def test_depth_has_one_bound(depth: int, unique: bool):
    """What is nested no deeper than the bound is read, and anything deeper refused, however deep it is."""
    raw = b'{"a":' * depth + b"1" + b"}" * depth
    if depth <= MAX_DEPTH:
        assert parse_object(raw, unique=unique)
    else:
        with pytest.raises(UntrustedError):
            parse_object(raw, unique=unique)


def test_the_bounds_are_sizes_of_real_files():
    """A tokenizer may be larger than a header, and both are read to their bound and no further."""
    for bounds in (SMALL._replace(values=4), LARGE._replace(values=4)):
        assert parse_object(b'{"a": [1, 2, 3]}', bounds) == {"a": [1, 2, 3]}
        with pytest.raises(UntrustedError, match="holds more than 4 values"):
            parse_object(b'{"a": [1, 2, 3, 4]}', bounds)
    with pytest.raises(UntrustedError, match="takes more than 3 bytes"):
        parse_object(b"{  }", SMALL._replace(nbytes=3))
    # One wide character makes all of a text wide.
    assert parse_object('{"a": "é"}'.encode(), SMALL._replace(nbytes=44)) == {"a": "é"}
    with pytest.raises(UntrustedError, match="takes more than 43 bytes"):
        parse_object('{"a": "é"}'.encode(), SMALL._replace(nbytes=43))
    assert SMALL.values < LARGE.values and SMALL.nbytes < LARGE.nbytes


def test_the_last_of_two_keys_counts_where_they_need_not_be_unique(tmp_path: Path):
    """A config.json is read as every JSON library reads it."""
    (tmp_path / "config.json").write_text('{"a": 1, "a": 2}')
    assert read_json_object(tmp_path / "config.json", "config.json") == {"a": 2}
