"""The plan as a table: one row for each component and run of layers that is treated alike."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import groupby

from xmerge.methods import find_method
from xmerge.planning.plan import LayerPlan, MergePlan, TensorPlan

PLAN_COLUMNS = ("component", "layers", "tensors", "size", "what", "from", "why")
Row = tuple[str, ...]

UNITS = ("B", "kB", "MB", "GB", "TB")


def draw_plan(plan: MergePlan) -> list[Row]:
    """Rows of plain text under `PLAN_COLUMNS`."""
    entries = [(layer, tensor) for layer in plan.layers for tensor in layer.tensors]
    components = sorted(
        {tensor.component: number for number, (_, tensor) in reversed(list(enumerate(entries)))}.items(),
        key=lambda item: item[1],
    )
    rows = []
    for component, _ in components:
        mine = [(layer, tensor) for layer, tensor in entries if tensor.component == component]
        for alike, run in groupby(mine, key=lambda pair: _treatment(plan, pair[1])):
            rows.append(_draw_run(component, list(run), alike))
    return rows


def summarize_plan(plan: MergePlan) -> list[tuple[str, str]]:
    """Sizes and counts of the whole plan, as (name, value)."""
    counts = {
        decision: sum(tensor.decision == decision for tensor in plan.tensors)
        for decision in ("merge", "cast", "copy", "keep")
    }
    read = sum(layer.bytes_read for layer in plan.layers)
    copied = sum(layer.bytes_copied for layer in plan.layers)
    computed = sum(tensor.elements for tensor in plan.tensors if not tensor.is_copied)
    return [
        ("tensors", f"{len(plan.tensors)}: " + ", ".join(f"{count} {name}" for name, count in counts.items() if count)),
        ("layers", str(sum(layer.index is not None for layer in plan.layers))),
        ("read for arithmetic", show_bytes(read)),
        ("copied untouched", show_bytes(copied)),
        ("computed", f"{computed:,} numbers"),
        ("written", show_bytes(plan.bytes_written)),
        ("disk needed", show_bytes(plan.bytes_written)),
        ("fingerprint", plan.fingerprint),
    ]


def show_bytes(count: float) -> str:
    """`1.5 GB`: three figures and a decimal unit."""
    for unit in UNITS[:-1]:
        if count < 1000:
            return f"{count:.3g} {unit}" if unit != "B" else f"{count:.0f} B"
        count /= 1000
    return f"{count:.3g} {UNITS[-1]}"


def show_ranges(numbers: Iterable[int]) -> str:
    """`0-3, 7` for 0, 1, 2, 3, 7."""
    ranges: list[list[int]] = []
    for number in sorted(numbers):
        if ranges and number == ranges[-1][1] + 1:
            ranges[-1][1] = number
        else:
            ranges.append([number, number])
    return ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in ranges)


def _treatment(plan: MergePlan, tensor: TensorPlan) -> Row:
    words = {"merge": tensor.method, "cast": "cast", "copy": "copy", "keep": "keep"}
    names = [name for name, _ in tensor.parameters] if tensor.decision == "merge" else []
    labels = " + ".join(dict.fromkeys(plan.models[source.model].label for source in tensor.sources))
    steps = "; ".join(step for source in tensor.sources for step in source.steps)
    why = "; ".join(filter(None, [tensor.reason if tensor.decision != "merge" else "", steps, *tensor.dropped]))
    return (words[tensor.decision], ", ".join(names), labels, why)


def _draw_run(component: str, run: list[tuple[LayerPlan, TensorPlan]], alike: Row) -> Row:
    what, names, labels, why = alike
    layers = [layer.index for layer, _ in run if layer.index is not None]
    if names:
        what = f"{what} {', '.join(_show_values(run))}"
    where = show_ranges(layers) if layers else "-"
    return (component, where, str(len(run)), show_bytes(sum(tensor.nbytes for _, tensor in run)), what, labels, why)


def _show_values(run: list[tuple[LayerPlan, TensorPlan]]) -> Iterator[str]:
    first, last = run[0][1], run[-1][1]
    method = find_method(first.method)
    for (name, start), (_, end) in zip(first.parameters, last.parameters, strict=True):
        parameter = method.parameter(name)
        if parameter is not None and not parameter.per_model and start == end == parameter.default:
            continue
        if parameter is not None and "without effect" in parameter.range.text:
            continue
        shown = _show_value(start) if start == end else f"{_show_value(start)}..{_show_value(end)}"
        yield f"{name}={shown}"


def _show_value(value: float | tuple[float, ...]) -> str:
    return f"({', '.join(f'{each:.4g}' for each in value)})" if isinstance(value, tuple) else f"{value:.4g}"
