"""What the repositories of these tests hold."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from xmerge import hub
from xmerge.checkpoints.headers import build_header

MODEL = "org/model"
ONE, TWO = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
INDEX = "model.safetensors.index.json"
FIRST_READ = 8 * 1024
"""What a header costs at least: it is asked for before its length is known."""


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


def go_offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """What HF_HUB_OFFLINE=1 does in a process that has imported the client already."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


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


def read_files(folder: Path) -> dict[str, bytes]:
    """A folder's files, as a repository has them."""
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def split(folder: Path, place: Callable[[str], str]) -> dict[str, bytes]:
    """A checkpoint in one file as one in several, `place` saying which tensor goes where, with its index."""
    raw = (folder / "model.safetensors").read_bytes()
    length = 8 + int.from_bytes(raw[:8], "little")
    entries = {name: entry for name, entry in json.loads(raw[8:length]).items() if name != "__metadata__"}
    weight_map = {name: place(name) for name in entries}
    files = {name: data for name, data in read_files(folder).items() if name != "model.safetensors"}
    for file in sorted(set(weight_map.values())):
        held = [name for name in entries if weight_map[name] == file]
        header, placed = build_header((name, entries[name]["dtype"], entries[name]["shape"]) for name in held)
        data = bytearray(placed[-1].end)
        for entry in placed:
            begin, end = entries[entry.name]["data_offsets"]
            data[entry.begin : entry.end] = raw[length + begin : length + end]
        files[file] = header + bytes(data)
    index = {"metadata": {"total_size": len(raw) - length}, "weight_map": weight_map}
    return files | {INDEX: json.dumps(index).encode()}


def split_attention(folder: Path) -> dict[str, bytes]:
    """A checkpoint in two shards: attention, and the rest."""
    return split(folder, lambda name: f"{'attention' if 'self_attn' in name else 'rest'}.safetensors")
