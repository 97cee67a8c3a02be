"""Where a device has no memory left, the merge goes on with less of it, and says so."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
import torch

from tests.small_merges import RECIPE, digest_files, load_weights, run, write_models
from xmerge.engine import retreat
from xmerge.engine.results import TensorResult
from xmerge.engine.retreat import SMALLER, Step, list_steps
from xmerge.engine.rules import RuleMerger
from xmerge.engine.shard import ShardWriter
from xmerge.errors import StorageError
from xmerge.planning.memory import BLOCK_ELEMENTS
from xmerge.planning.plan import TensorPlan

CPU = torch.device("cpu")


def test_a_gpu_is_left_last():
    """Smaller and smaller blocks on the GPU, then the CPU; the CPU has nothing behind it."""
    gpu = torch.device("cuda:0")
    steps = list_steps(gpu)
    assert [step.device for step in steps] == [gpu] * len(SMALLER) + [CPU]
    assert [step.block for step in steps[:-1]] == sorted((step.block for step in steps[:-1]), reverse=True)
    assert steps[-1] == Step(CPU, BLOCK_ELEMENTS["cpu"]) and list_steps(CPU) == [steps[-1]]


@pytest.fixture
def small_memory(monkeypatch) -> Callable[..., None]:
    """A device that has room for so many bytes at a time, and says so as a GPU does."""

    def limit(most: int, error: Callable[[str], Exception] = torch.OutOfMemoryError) -> None:
        real = torch.empty

        def allocate(*size: Any, **options: Any) -> torch.Tensor:
            made = real(*size, dtype=options.get("dtype"), device="meta")
            if made.nbytes > most:
                raise error(f"CUDA out of memory. Tried to allocate {made.nbytes} bytes")
            return real(*size, **options)

        monkeypatch.setattr(torch, "empty", allocate)

    return limit


@pytest.fixture(autouse=True)
def three_steps(monkeypatch) -> None:
    """The way down with the CPU in the place of the GPU, in blocks that these models notice."""
    monkeypatch.setattr(retreat, "list_steps", lambda _: [Step(CPU, 2**20), Step(CPU, 2**14), Step(CPU, 2**10)])


def test_a_merge_goes_on_with_smaller_blocks(tmp_path, small_memory):
    """The first blocks that fit make the same bytes, and the report says for each layer where it gave way."""
    write_models(tmp_path)
    run(tmp_path, tmp_path / "whole")
    small_memory(2**20 + 2**14 * 8)
    report = run(tmp_path, tmp_path / "out").report
    same = [name for name in digest_files(tmp_path / "whole") if name.startswith("model")]
    assert same and all(digest_files(tmp_path / "out")[name] == digest_files(tmp_path / "whole")[name] for name in same)
    assert report is not None and report.ok
    told = [each.text for each in report.findings if each.code == "out_of_memory"]
    assert told == [
        f"layer {layer}: cpu ran out of memory at model.layers.{layer}.self_attn.k_proj.weight: "
        "blocks of 16,384 numbers on cpu from there on."
        for layer in range(4)
    ]


def test_the_last_step_is_the_last(tmp_path, small_memory):
    """Where nothing fits, the merge stops with what is needed, no output, and every finished layer kept."""
    write_models(tmp_path)
    small_memory(100)
    with pytest.raises(StorageError) as caught:
        run(tmp_path, store=tmp_path / "store")
    assert caught.value.exit_code == 6
    assert caught.value.why == "blocks of 1,024 numbers on cpu did not fit."
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("error", "passes"),
    [
        (torch.OutOfMemoryError, True),
        (MemoryError, True),
        (lambda _: RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate"), True),
        (lambda _: RuntimeError("something else"), False),
    ],
    ids=["gpu", "python", "torch on a cpu", "another fault"],
)
def test_only_a_want_of_memory_is_given_way_to(tmp_path, small_memory, error, passes):
    """Whoever says that there is no memory is believed; any other fault of torch is a fault."""
    write_models(tmp_path)
    small_memory(2**20, error)
    if passes:
        assert run(tmp_path).report is not None
        assert load_weights(tmp_path / "out")
        assert json.loads((tmp_path / "out" / "provenance.json").read_text())
    else:
        with pytest.raises(RuntimeError, match="something else"):
            run(tmp_path, recipe=RECIPE)


def test_a_tensor_that_was_half_written_is_written_again(tmp_path, monkeypatch):
    """Where memory ends in the middle of a tensor, all of it is made anew."""
    write_models(tmp_path)
    run(tmp_path, tmp_path / "whole")
    real, failed = RuleMerger.combine, list[str]()

    def fail_once(merger: RuleMerger, tensor: TensorPlan, shard: ShardWriter) -> TensorResult:
        result = real(merger, tensor, shard)
        if tensor.name not in failed:
            failed.append(tensor.name)
            raise torch.OutOfMemoryError("CUDA out of memory")
        return result

    monkeypatch.setattr(RuleMerger, "combine", fail_once)
    monkeypatch.setattr(retreat, "list_steps", lambda _: [Step(CPU, 2**17)] * 9)
    run(tmp_path)
    assert failed
    whole, out = load_weights(tmp_path / "whole"), load_weights(tmp_path / "out")
    assert all(torch.equal(out[name], weight) for name, weight in whole.items())
