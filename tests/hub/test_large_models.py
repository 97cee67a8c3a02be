"""Models of 70 billion parameters on the Hub, whose weights the server only pretends to have: what a plan costs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Self, SupportsIndex

import pytest

from tests.fake_checkpoints import list_tensors, make_config
from tests.hub.samples import INDEX
from tests.hub.server import HubServer
from tests.small_merges import make_plan
from xmerge.architecture import list_families
from xmerge.checkpoints.headers import build_header
from xmerge.planning.downloads import list_downloads

SHARDS = 30
SIZES = {"hidden": 8192, "heads": 64, "kv_heads": 8, "head_dim": 128, "layers": 80}
RECIPE = """\
merge_method: slerp
base_model: org/llama-70b
models: [{model: org/llama-70b}, {model: org/qwen3-70b}]
parameters:
  t: [{filter: q_proj, value: 0.3}, {filter: k_proj, value: 0.3}, {filter: v_proj, value: 0.3},
    {filter: o_proj, value: 0.3}]
"""


class Hollow(bytes):
    """A file of which only the first bytes are real; the others read as zeros."""

    size: int

    def __new__(cls, first: bytes, size: int) -> Self:
        """A file of `size` bytes that begins with `first`."""
        made = super().__new__(cls, first)
        made.size = size
        return made

    def __len__(self) -> int:
        """The size that the file says it has."""
        return self.size

    def __getitem__(self, key: SupportsIndex | slice) -> Any:
        """A part of the file."""
        assert isinstance(key, slice)
        start, stop, _ = key.indices(self.size)
        real = super().__getitem__(slice(start, stop))
        return real + bytes(stop - start - len(real))


def make_repository(family: str, **sizes: int) -> dict[str, bytes]:
    """The files of a model in bfloat16 and 30 shards."""
    described = next(each for each in list_families() if each.family == family)
    config = make_config(described, SIZES | sizes)
    tensors = list(list_tensors(described, config))
    files: dict[str, bytes] = {"config.json": json.dumps(config).encode()}
    weight_map: dict[str, str] = {}
    for number in range(SHARDS):
        name = f"model-{number + 1:05d}-of-{SHARDS:05d}.safetensors"
        held = tensors[len(tensors) * number // SHARDS : len(tensors) * (number + 1) // SHARDS]
        header, placed = build_header((tensor, "BF16", shape) for tensor, shape in held)
        files[name] = Hollow(header, len(header) + placed[-1].end)
        weight_map |= {tensor: name for tensor, _ in held}
    return files | {INDEX: json.dumps({"weight_map": weight_map}).encode()}


@pytest.mark.slow
def test_a_plan_of_two_large_models_costs_less_than_a_megabyte(server: HubServer, tmp_path: Path) -> None:
    """Of 280 GB, a plan asks for configurations, indexes and headers alone."""
    server.add("org/llama-70b", make_repository("llama", ffn=28_672, vocab=128_256))
    server.add("org/qwen3-70b", make_repository("qwen3", ffn=29_568, vocab=151_936))
    plan = make_plan(tmp_path, RECIPE)[1]
    whole = sum(size for model in plan.models for _, size, _, _ in model.shards)
    sent = sum(served.sent for served in server.served)
    assert whole > 280e9
    assert sent < 1e6
    donor = [each for each in list_downloads(plan) if each.model == 1]
    assert sum(each.bytes_fetched("auto") for each in donor) == plan.models[1].bytes_used < whole / 2 / 4
