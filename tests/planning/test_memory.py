"""What memory a merge takes."""

from __future__ import annotations

import pytest

from xmerge.errors import PlanError
from xmerge.memory import LIMIT
from xmerge.planning.memory import BLOCK_ELEMENTS, WINDOW_BYTES, estimate_buffers, fit_workers, reads_ahead
from xmerge.planning.plan import Gain, MergePlan, Segment, Source

SLERP = "merge_method: slerp\nbase_model: base\nmodels: [{model: base}, {model: donor}]\nparameters: {t: 0.5}\n"
COPY = "merge_method: passthrough\nmodels: [{model: base}]\n"
N = 1000
ORDERS = {
    "one after another": (),
    "transposed": ((N, 1, N), (N, N, 1)),
    "columns in turns": ((N * N, 2, 1),),
    "rotated rows": ((N // 4, 4 * N, 4 * N), (2, N, 2 * N), (2, 2 * N, N), (N, 1, 1)),
}


def make_source(order: tuple[tuple[int, int, int], ...], elements: int = N * N) -> Source:
    """A source of one segment in an order."""
    segment = Segment(tensor="w", file="f", dtype="BF16", offset=0, elements=elements, order=order)
    return Source(model=1, pin="", segments=(segment,))


def test_memory_does_not_grow_with_the_model(bench):
    """Models of another width need the same buffers, and bytes that are only copied need none."""
    needed = []
    for width in (8, 64):
        for name in ("base", "donor"):
            bench.write(name, hidden_size=width)
        needed.append(estimate_buffers(bench.plan(SLERP)))
    assert needed[0] == needed[1] > 0
    assert estimate_buffers(bench.plan(COPY)) == 0


@pytest.mark.parametrize("order", ORDERS.values(), ids=ORDERS)
def test_only_what_lies_far_apart_is_read_ahead(order):
    """A transposed tensor is, one whose neighbours stay near each other is not."""
    assert reads_ahead(make_source(order), 2**17) == (order == ORDERS["transposed"])


def test_what_a_block_holds_as_a_whole_is_not_read_ahead():
    """A tensor no larger than a block is read at once anyway, and blocks as large as a window need none."""
    transposed = ORDERS["transposed"]
    assert not reads_ahead(make_source(transposed), N * N)
    assert not reads_ahead(make_source(transposed, 2**40), BLOCK_ELEMENTS["cuda"])


def replace_donors(plan: MergePlan, donor: Source) -> MergePlan:
    """The plan with another source in the place of every tensor's second one."""
    layers = []
    for layer in plan.layers:
        tensors = tuple(each.model_copy(update={"sources": (each.sources[0], donor)}) for each in layer.tensors)
        layers.append(layer.model_copy(update={"tensors": tensors}))
    return plan.model_copy(update={"layers": tuple(layers)})


@pytest.fixture
def plan(bench):
    """A plan whose tensors have two sources each."""
    for name in ("base", "donor"):
        bench.write(name)
    return bench.plan(SLERP)


def test_each_source_that_is_read_ahead_takes_a_window(plan):
    """The estimate has a window for every transposed source of the tensor that has most of them."""
    windowed = replace_donors(plan, make_source(ORDERS["transposed"]))
    assert estimate_buffers(windowed) == estimate_buffers(plan) + WINDOW_BYTES
    assert estimate_buffers(windowed, "cuda") == estimate_buffers(plan, "cuda")


def test_a_folded_gain_takes_the_same_on_every_device(plan):
    """What a gain is multiplied with is a piece of its own, however large a block is."""
    norm = Segment(tensor="norm", file="model.safetensors", dtype="F32", offset=0, elements=4096)
    gain = Gain(
        donor=norm, base=norm, base_model=0, base_pin="", donor_shift=0.0, base_shift=0.0, length=4096, stride=1
    )
    folded = replace_donors(plan, make_source(()).model_copy(update={"gain": gain}))
    more = [estimate_buffers(folded, device) - estimate_buffers(plan, device) for device in BLOCK_ELEMENTS]
    assert more[0] == more[1] > 8 * 4096


@pytest.fixture
def there_are(monkeypatch):
    """A function that says how much memory is available."""
    return lambda count: monkeypatch.setattr("xmerge.planning.memory.available_bytes", lambda: count)


def test_no_more_workers_than_their_buffers_fit(plan, there_are, monkeypatch):
    """As many layers are under way as asked for, unless memory or a person's limit has room for fewer."""
    needed = estimate_buffers(plan)
    there_are(None)
    assert fit_workers(plan, "cpu", 8) == 8
    there_are(needed * 3 + 1)
    assert [fit_workers(plan, "cpu", workers) for workers in (1, 3, 8)] == [1, 3, 3]
    monkeypatch.setenv(LIMIT, str(needed * 2))
    assert fit_workers(plan, "cpu", 8) == 2


def test_a_merge_that_only_copies_needs_no_room(bench, there_are):
    """Bytes that pass through are copied by the kernel, however little memory there is."""
    bench.write("base")
    there_are(0)
    assert fit_workers(bench.plan(COPY), "cpu", 4) == 4


def test_what_cannot_fit_is_refused_with_both_numbers(plan, there_are, monkeypatch):
    """A plan whose buffers have no room for one worker ends in exit 2, with needed and available bytes."""
    needed = estimate_buffers(plan)
    there_are(needed - 1)
    with pytest.raises(PlanError) as caught:
        fit_workers(plan, "cpu", 1)
    assert caught.value.exit_code == 2
    told = f"one layer under way takes {needed:,} bytes of buffers, and {needed - 1:,} are"
    assert caught.value.why == f"{told} available."
    there_are(needed * 2)
    monkeypatch.setenv(LIMIT, str(needed - 1))
    with pytest.raises(PlanError) as caught:
        fit_workers(plan, "cpu", 1)
    assert caught.value.why == f"{told} allowed by XMERGE_MEMORY."


def test_a_gpu_needs_main_memory_for_what_is_read(plan, there_are):
    """On a GPU the buffers of the arithmetic lie there, and main memory holds what comes from the files."""
    there_are(8 * BLOCK_ELEMENTS["cuda"] * 2)
    assert fit_workers(plan, "cuda", 4) == 2
