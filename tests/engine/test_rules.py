"""Rules: statistics of a whole tensor, whole rows where they are wanted, and one rounding, in any blocks."""

from __future__ import annotations

import math
import tempfile
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from tests.engine.bench import Bench, draw, make, same_bits
from xmerge.engine import rules
from xmerge.engine.randomness import CounterDice
from xmerge.engine.reading import OpenSources
from xmerge.engine.rules import RuleMerger, StreamedTensor
from xmerge.errors import CheckpointError
from xmerge.methods import MergeMethod, list_methods
from xmerge.planning import memory

RULES = [method for method in list_methods() if method.is_rule]
IDS = [method.name for method in RULES]
FLOATS = [torch.bfloat16, torch.float16, torch.float32, torch.float64]
SETTINGS = settings(max_examples=25)
USUAL = {"weight": 0.5, "density": 0.6, "t": 0.3, "select_topk": 0.5, "rescale": True}
"""Values with which a method takes all of its statistics."""


def usual(method: MergeMethod, count: int) -> dict[str, Any]:
    """A value for each parameter, one for each input where it has one for each."""
    values = {each.name: USUAL.get(each.name, each.default) for each in method.parameters}
    return {
        each.name: (values[each.name],) * count if each.per_model else values[each.name] for each in method.parameters
    }


def draw_inputs(method: MergeMethod, shape: Sequence[int], dtype: torch.dtype = torch.float32) -> list[torch.Tensor]:
    """A base and two donors near it, or one if the method takes no more."""
    base = draw(0, math.prod(shape), torch.float32).view(tuple(shape))
    donors = range(1, 3 if method.inputs[1] is None else method.inputs[1])
    return [
        each.to(dtype)
        for each in (base, *(base + 0.3 * draw(n, base.numel(), torch.float32).view(base.shape) for n in donors))
    ]


def make_usual(method: MergeMethod, tensors: Sequence[torch.Tensor], block: int | None = None) -> torch.Tensor:
    """What a method makes of some tensors."""
    return make(method.name, tensors, block, **usual(method, len(tensors)))


@contextmanager
def streamed(tensors: Sequence[torch.Tensor], block: int, *, by_rows: bool = False) -> Iterator[StreamedTensor]:
    """Some tensors as a rule sees them."""
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder), tensors)
        plan = bench.plan("ram")
        with OpenSources(plan, plan.layers[0], bench.folders) as sources:
            merger = RuleMerger(plan, sources, torch.device("cpu"), block)
            yield merger.stream(plan.layers[0].tensors[0], by_rows=by_rows)


@given(
    shape=st.lists(st.integers(1, 9), min_size=0, max_size=3), block=st.sampled_from([1, 5, 64]), by_rows=st.booleans()
)
@SETTINGS
def test_the_blocks_of_a_tensor_are_the_tensor(shape: list[int], block: int, by_rows: bool):
    """The blocks stand behind each other, hold every number of every input once, and are whole rows where wanted."""
    inputs = [draw(number, math.prod(shape), torch.bfloat16).view(shape) for number in range(3)]
    row = shape[-1] if shape and by_rows else 1
    found: list[list[torch.Tensor]] = [[] for _ in inputs]
    done = 0
    with streamed(inputs, block, by_rows=by_rows) as tensor:
        assert (tensor.shape, tensor.elements, tensor.count) == (tuple(shape), math.prod(shape), 3)
        for each in tensor.blocks():
            assert each.start == done
            assert [x.dtype for x in each.inputs] == [torch.float32] * 3
            assert all(x.shape == ((x.numel() // row, row) if by_rows else (x.numel(),)) for x in each.inputs)
            assert each.base.numel() <= max(block, row)
            for parts, x in zip(found, each.inputs, strict=True):
                parts.append(x.reshape(-1).clone())
            done += each.base.numel()
    for parts, x in zip(found, inputs, strict=True):
        assert torch.equal(torch.cat(parts), x.float().reshape(-1))


@given(elements=st.integers(0, 200), block=st.sampled_from([1, 7, 4096]), seed=st.integers(0, 99))
@SETTINGS
def test_a_total_is_the_sum_in_float64(elements: int, block: int, seed: int):
    """Totals are those of the whole tensor in float64, counts exact; of no numbers, 0."""
    inputs = [draw(seed, elements, torch.float32) * 1e4, draw(seed + 1, elements, torch.float32)]
    with streamed(inputs, block) as tensor:
        sums = tensor.total(lambda each: [each.base, each.inputs[1], each.base > 0])
    assert sums == pytest.approx([float(x.double().sum()) for x in inputs] + [int((inputs[0] > 0).sum())], rel=1e-12)
    assert sums[2] == int(sums[2])


FEW = st.sampled_from([0.0, -0.0, 1e-45, 1e-39, 0.5, 0.5000001, 1.0, 3e38])
"""Numbers that are often equal, and some that float32 can hardly hold."""


@given(
    values=st.lists(FEW | st.floats(0, 1, width=32), max_size=60),
    other=st.lists(FEW, max_size=60),
    ks=st.lists(st.integers(0, 70), min_size=1, max_size=4),
    block=st.sampled_from([1, 7, 64]),
)
@settings(max_examples=150)
def test_the_largest_are_those_of_a_stable_sort(values: list[float], other: list[float], ks: list[int], block: int):
    """Exactly the k largest are selected, of equal ones the first, with the k-th as threshold, as often as asked."""
    size = min(len(values), len(other))
    tensors = [torch.tensor(each[:size], dtype=torch.float32) for each in (values, other)]
    wanted = [(number % 2, k) for number, k in enumerate(ks)]
    with streamed(tensors, block) as tensor:
        selections = tensor.largest(lambda each: each.inputs, wanted)
        for _ in range(2):
            masks = [
                torch.cat([selection.mask(each.inputs[which], each.start) for each in tensor.blocks()])
                for selection, (which, _) in zip(selections, wanted, strict=True)
            ]
    for selection, mask, (which, k) in zip(selections, masks, wanted, strict=True):
        order = tensors[which].argsort(descending=True, stable=True)
        expected = torch.zeros(size, dtype=torch.bool)
        expected[order[:k]] = True
        assert mask.tolist() == expected.tolist()
        kept = min(k, size)
        assert selection.threshold == (tensors[which][order[kept - 1]] if kept else math.inf)


@pytest.mark.parametrize("k", [0, 1, 500, 999, 1000])
def test_of_equal_numbers_the_first_are_selected(k: int):
    """Where all numbers are equal the first k are taken, whatever the blocks."""
    with streamed([torch.full((1000,), 0.25)], 64) as tensor:
        (selection,) = tensor.largest(lambda each: each.inputs, [(0, k)])
        mask = torch.cat([selection.mask(each.base, each.start) for each in tensor.blocks()])
    assert mask.tolist() == [True] * k + [False] * (1000 - k)


@pytest.mark.parametrize("method", RULES, ids=IDS)
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("number", [0, 1])
def test_an_input_that_is_no_number_is_named(tmp_path: Path, method: MergeMethod, bad: float, number: int):
    """NaN or infinity in any input is refused with the model, the tensor and the place of the first."""
    tensors = draw_inputs(method, (10, 10))
    tensors[number].view(-1)[[57, 93]] = bad
    bench = Bench(tmp_path, tensors)
    with pytest.raises(CheckpointError) as caught:
        bench.combine(bench.plan(method.name, **usual(method, len(tensors))), 8)
    assert str(caught.value) == (
        f"model{number} holds NaN or infinity in piece9, at element 57.\n"
        "  at: for out of the output\n"
        "  do: repair the model, leave the tensor out with a filter, or say 'on_nonfinite: base'."
    )


def test_large_finite_numbers_are_nobodys_fault():
    """Numbers that are all finite pass, even where their sum is not."""
    x = torch.full((40,), 3e38)
    assert same_bits(make("nearswap", [x, x], 8, t=1.0), x)


@pytest.mark.parametrize("method", RULES, ids=IDS)
@pytest.mark.parametrize("dtype", FLOATS)
def test_the_output_has_the_base_s_dtype_after_one_rounding(method: MergeMethod, dtype: torch.dtype):
    """Whatever the dtype, the result is that of the same numbers in float32, rounded once."""
    tensors = draw_inputs(method, (6, 20), torch.bfloat16)
    wide = make_usual(method, [each.float() for each in tensors])
    assert same_bits(make_usual(method, [each.to(dtype) for each in tensors]), wide.to(dtype))


@pytest.mark.parametrize("method", RULES, ids=IDS)
def test_a_model_merged_with_itself_keeps_every_bit(method: MergeMethod):
    """Equal inputs come back bit for bit, zeros with their signs."""
    x = draw(3, 60).view(6, 10)
    x[0, :3], x[1, :3] = 0.0, -0.0
    count = 3 if method.inputs[1] is None else method.inputs[1]
    assert same_bits(make_usual(method, [x] * count, 7), x)


@pytest.mark.parametrize("method", RULES, ids=IDS)
@pytest.mark.parametrize("shape", [(0,), (3, 0), (0, 4), (1,), (), (1, 1), (1, 9), (9, 1)])
def test_small_tensors_are_merged_like_others(method: MergeMethod, shape: tuple[int, ...]):
    """Tensors of no number, of one and of one row come out in their own shape, finite, the same in any blocks."""
    tensors = draw_inputs(method, shape)
    made = make_usual(method, tensors)
    assert (made.shape, made.dtype) == (shape, torch.float32)
    assert torch.isfinite(made).all()
    assert same_bits(make_usual(method, tensors, 1), made)


@pytest.mark.parametrize("method", RULES, ids=IDS)
@pytest.mark.parametrize("shape", [(2, 400), (40, 20), (3, 5, 16)])
def test_the_size_of_blocks_decides_nothing(method: MergeMethod, shape: tuple[int, ...]):
    """Matrices in blocks shorter than a row, of a few rows and of all give the same numbers."""
    tensors = draw_inputs(method, shape)
    whole = make_usual(method, tensors)
    for block in (7, 64):
        torch.testing.assert_close(make_usual(method, tensors, block), whole, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("method", RULES, ids=IDS)
def test_what_is_told_of_a_tensor_is_what_became_of_it(tmp_path: Path, method: MergeMethod):
    """Cosine and norm ratio to the base, and the share of changed numbers, are those of the tensor that was written."""
    tensors = draw_inputs(method, (20, 30))
    tensors[1][0] = tensors[0][0]
    bench = Bench(tmp_path, tensors)
    made, result = bench.combine(bench.plan(method.name, **usual(method, len(tensors))), 64)
    y, base = made.double().view(-1), tensors[0].double().view(-1)
    assert result.cosine == pytest.approx(float(torch.nn.functional.cosine_similarity(y, base, dim=0)), abs=1e-5)
    assert result.norm_ratio == pytest.approx(float(y.norm() / base.norm()), rel=5e-5)
    assert result.changed == pytest.approx(float((y != base).double().mean()), rel=1e-5)
    assert result.coefficients == ()


@pytest.mark.parametrize("method", RULES, ids=IDS)
def test_the_plan_says_how_much_is_read(tmp_path: Path, method: MergeMethod, monkeypatch: pytest.MonkeyPatch):
    """The bytes that are read are those of the plan, for values with which all statistics are taken."""
    read, original = [], OpenSources.read

    def count(self: OpenSources, model: int, segment: Any, at: int, view: memoryview) -> None:
        read.append(len(view))
        original(self, model, segment, at, view)

    monkeypatch.setattr(OpenSources, "read", count)
    tensors = draw_inputs(method, (20, 30))
    bench = Bench(tmp_path, tensors)
    plan = bench.plan(method.name, **usual(method, len(tensors)))
    bench.combine(plan, 64)
    assert sum(read) == plan.layers[0].tensors[0].bytes_read > 0


class LiveBytes(TorchDispatchMode):
    """The most bytes that torch's tensors have taken at one time, of those made since it was entered."""

    def __init__(self) -> None:
        super().__init__()
        self._live: dict[int, int] = {}
        self.most = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = function(*args, **(kwargs or {}))
        for each in torch.utils._pytree.tree_leaves(made):
            if isinstance(each, torch.Tensor):
                self._watch(each.untyped_storage())
        return made

    def _watch(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        if key not in self._live:
            self._live[key] = storage.nbytes()
            weakref.finalize(storage, self._live.pop, key)
            self.most = max(self.most, sum(self._live.values()))


@pytest.mark.slow
@pytest.mark.parametrize("method", RULES, ids=IDS)
@pytest.mark.parametrize("block", [2**13, 2**19], ids=["a row longer than a block", "a row as long as a block"])
@pytest.mark.parametrize("donors", [1, 4])
def test_memory_stays_below_what_the_plan_says(
    tmp_path: Path, method: MergeMethod, block: int, donors: int, monkeypatch: pytest.MonkeyPatch
):
    """Buffers and what a rule computes with never take more than was estimated before anything was read."""
    count = min(donors + 1, method.inputs[1] or donors + 1)
    tensors = [draw(number, 2**19, torch.float32).view(1, -1) for number in range(count)]
    monkeypatch.setitem(memory.BLOCK_ELEMENTS, "cpu", block)
    bench = Bench(tmp_path, tensors)
    plan = bench.plan(method.name, **usual(method, count))
    with LiveBytes() as live:
        bench.combine(plan, block)
    assert 0 < live.most <= memory.estimate_buffers(plan)


DRAWING = [method for method in RULES if method.draws]


@pytest.mark.parametrize("method", DRAWING, ids=[method.name for method in DRAWING])
@pytest.mark.parametrize("room", [0, 40, 2**20], ids=["no mask is kept", "some are", "all are"])
def test_what_is_drawn_does_not_depend_on_the_room_for_it(method: MergeMethod, room: int):
    """A mask that was kept is the one that would be drawn again."""
    inputs = draw_inputs(method, (30, 11))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rules, "MASK_BYTES", room)
        assert same_bits(make_usual(method, inputs, 64), make_usual(method, inputs))


@pytest.mark.parametrize("method", DRAWING, ids=[method.name for method in DRAWING])
def test_what_there_is_room_for_is_drawn_once(method: MergeMethod):
    """The second reading of the inputs recalls the masks of the first."""
    drawn: list[int] = []
    with pytest.MonkeyPatch.context() as patch:
        for name in ("keep", "keep_by_rank"):
            patch.setattr(CounterDice, name, _count_calls(getattr(CounterDice, name), drawn))
        make_usual(method, draw_inputs(method, (30, 11)), 110)
    assert len(drawn) == 2 * 3


def _count_calls(function: Any, calls: list[int]) -> Any:
    def counted(*args: Any) -> Any:
        calls.append(1)
        return function(*args)

    return counted
