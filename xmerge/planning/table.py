"""The plan as a table: one row for each component and run of layers that is treated alike."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from typing import get_args

from xmerge.methods import find_method
from xmerge.planning.downloads import list_downloads
from xmerge.planning.memory import estimate_buffers
from xmerge.planning.plan import Decision, LayerPlan, MergePlan, TensorPlan

PLAN_COLUMNS = ("component", "layers", "tensors", "size", "what", "class", "from", "why")
Row = tuple[str, ...]
Run = list[tuple[LayerPlan, TensorPlan]]

UNITS = ("B", "kB", "MB", "GB", "TB")


def draw_plan(plan: MergePlan) -> list[Row]:
    """Rows of plain text under `PLAN_COLUMNS`."""
    runs: dict[str, dict[Row, Run]] = {}
    for layer in plan.layers:
        for tensor in layer.tensors:
            alike = runs.setdefault(tensor.component, {})
            alike.setdefault(_treatment(plan, tensor), []).append((layer, tensor))
    return [_draw_run(component, run, row) for component, alike in runs.items() for row, run in alike.items()]


def summarize_plan(plan: MergePlan) -> list[tuple[str, str]]:
    """Sizes and counts of the whole plan, as (name, value)."""
    tensors = plan.tensors
    # Whole shards go to the Hub cache, which may be on another disk.
    parts = sum(each.bytes_fetched("auto") for each in list_downloads(plan) if not each.is_fetched_whole("auto"))
    counts = Counter(tensor.decision for tensor in tensors)
    told = ", ".join(f"{counts[decision]} {decision}" for decision in get_args(Decision) if counts[decision])
    return [
        ("tensors", f"{len(tensors)}: {told}"),
        ("layers", str(sum(layer.index is not None for layer in plan.layers))),
        ("read for arithmetic", show_bytes(sum(layer.bytes_read for layer in plan.layers))),
        ("copied untouched", show_bytes(sum(layer.bytes_copied for layer in plan.layers))),
        ("computed", f"{sum(tensor.elements for tensor in tensors if not tensor.is_copied):,} numbers"),
        ("written", show_bytes(plan.bytes_written)),
        ("disk needed", show_bytes(plan.bytes_written + parts)),
        ("memory", f"{show_bytes(estimate_buffers(plan))} of buffers for each worker on a CPU, beside torch itself"),
        *_tell_downloads(plan),
        ("fingerprint", plan.fingerprint),
    ]


def tell_layer_map(plan: MergePlan) -> Iterator[str]:
    """Which layers of each model meet which of the output, where they are not the same: `B: 0-1 <- 0-1, 2-3 <- 3-4`."""
    for index, model in enumerate(plan.models):
        met = [(layer, row[index]) for layer, row in enumerate(plan.layer_map) if row[index] is not None]
        if all(layer == other for layer, other in met):
            continue
        runs = [list(run) for _, run in groupby(met, key=lambda pair: (pair[1] or 0) - pair[0])]
        told = ", ".join(
            f"{show_ranges(layer for layer, _ in run)} <- {show_ranges(other or 0 for _, other in run)}" for run in runs
        )
        yield f"{model.label}: {told}"


def show_bytes(count: float) -> str:
    """`1.5 GB`: three figures and a decimal unit."""
    for unit in UNITS[:-1]:
        if count < 1000:
            return f"{count:.3g} {unit}" if unit != "B" else f"{count:.0f} B"
        count /= 1000
    return f"{count:.3g} {UNITS[-1]}"


def show_ranges(numbers: Iterable[int]) -> str:
    """`0-3, 7` for 0, 1, 2, 3, 7, each number once."""
    ranges: list[list[int]] = []
    for number in sorted(set(numbers)):
        if ranges and number == ranges[-1][1] + 1:
            ranges[-1][1] = number
        else:
            ranges.append([number, number])
    return ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in ranges)


def tell_layers(numbers: Iterable[int]) -> str:
    """`layers 0-3, 7`, or `layer 7`."""
    told = show_ranges(numbers)
    return f"layer {told}" if told.isdigit() else f"layers {told}"


def _tell_downloads(plan: MergePlan) -> Iterator[tuple[str, str]]:
    """For each model on the Hub, what a merge would fetch of it, and of which files."""
    for index, downloads in groupby(list_downloads(plan), key=lambda each: each.model):
        shards = list(downloads)
        missing = [each for each in shards if not each.cached]
        told = [show_bytes(sum(each.bytes_fetched("auto") for each in missing))]
        for words, whole in (("all of", True), ("tensors of", False)):
            files = [each.file for each in missing if each.is_fetched_whole("auto") is whole]
            more = f" and {len(files) - 3} more" if len(files) > 3 else ""
            told += [f"{words} {', '.join(files[:3])}{more}"] if files else []
        told += [f"{len(shards) - len(missing)} of {len(shards)} files are in the cache"] if missing != shards else []
        yield f"download of {plan.models[index].label}", "; ".join(told)


def _treatment(plan: MergePlan, tensor: TensorPlan) -> Row:
    """What is done to a tensor, apart from the values of parameters: tensors treated alike share a row."""
    merged = tensor.decision == "merge"
    names = [name for name, _ in tensor.parameters] if merged else []
    labels = " + ".join(dict.fromkeys(plan.models[source.model].label for source in tensor.sources))
    steps = [step for source in tensor.sources for step in source.steps]
    why = [*([] if merged else [tensor.reason]), *steps, *tensor.dropped]
    what = tensor.method if merged else tensor.decision
    crossing = any(source.model != plan.target for source in tensor.sources)
    fit = tensor.fit if crossing else "-"
    return (what, ", ".join(names), fit, labels, "; ".join(dict.fromkeys(why)))


def _draw_run(component: str, run: Run, alike: Row) -> Row:
    what, names, fit, labels, why = alike
    if names:
        what = f"{what} {', '.join(_show_values([tensor for _, tensor in run]))}".rstrip()
    layers = [layer.index for layer, _ in run if layer.index is not None]
    where = show_ranges(layers) if layers else "-"
    size = show_bytes(sum(tensor.nbytes for _, tensor in run))
    return (component, where, str(len(run)), size, what, fit, labels, why)


def _show_values(tensors: Sequence[TensorPlan]) -> Iterator[str]:
    """`t=0.1..0.5`: the values of each parameter that is not as it always is."""
    method = find_method(tensors[0].method)
    for position, (name, _) in enumerate(tensors[0].parameters):
        values = [value for value, _ in groupby(tensor.parameters[position][1] for tensor in tensors)]
        parameter = method.parameter(name)
        idle = parameter is not None and "without effect" in parameter.range.text
        if idle or (parameter is not None and not parameter.per_model and values == [parameter.default]):
            continue
        columns = list(zip(*(value if isinstance(value, tuple) else (value,) for value in values), strict=True))
        shown = [_show_span(column) for column in columns]
        yield f"{name}=({', '.join(shown)})" if isinstance(values[0], tuple) else f"{name}={shown[0]}"


def _show_span(values: Sequence[float]) -> str:
    """`0.1..0.5` for values that only rise or only fall, `0.1 to 0.5` for others between these two."""
    first, last, low, high = (f"{value:.4g}" for value in (values[0], values[-1], min(values), max(values)))
    if low == high:
        return low
    if list(values) in (sorted(values), sorted(values, reverse=True)):
        return f"{first}..{last}"
    return f"{low} to {high}"
