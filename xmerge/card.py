"""The model card: what the output is, what came from where, and how to make it again."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from xmerge.planning.plan import MergePlan
from xmerge.planning.table import PLAN_COLUMNS, draw_plan, show_ranges

if TYPE_CHECKING:
    from xmerge.config import MergeConfig
    from xmerge.engine.results import LayerResult

CARD_NAME = "README.md"


def write_card(folder: Path, plan: MergePlan, config: MergeConfig, results: Sequence[LayerResult]) -> None:
    """Write the card of an assembled output."""
    (folder / CARD_NAME).write_text(draw_card(plan, config, results), encoding="utf-8")


def draw_card(plan: MergePlan, config: MergeConfig, results: Sequence[LayerResult]) -> str:
    """The card's Markdown, with the Hub's metadata in front; the same merge gives the same text."""
    return "\n".join(
        [
            *_draw_metadata(plan),
            f"# {escape(plan.title)}",
            "",
            *_draw_summary(plan),
            "## What came from where",
            "",
            *draw_table(PLAN_COLUMNS, draw_plan(plan)),
            "",
            *_draw_layer_map(plan),
            *_draw_losses(plan),
            *_draw_perturbation(plan, results),
            "## How to make it again",
            "",
            "```yaml",
            (config.source.text or "# the configuration was given as data; see xmerge_config.yml\n").rstrip("\n"),
            "```",
            "",
            f"`xmerge merge xmerge_config.yml OUT`, plan fingerprint `{plan.fingerprint}`.",
            "`provenance.json` says for every tensor what was done to it, and has the digest of every shard.",
            "",
            "## Limits",
            "",
            *_draw_limits(plan),
            "",
        ]
    )


def draw_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """A Markdown table of plain texts."""
    yield f"| {' | '.join(columns)} |"
    yield f"|{' --- |' * len(columns)}"
    for row in rows:
        yield f"| {' | '.join(escape(cell) for cell in row)} |"


def escape(text: str) -> str:
    """Text from a checkpoint or a configuration, made harmless in Markdown."""
    flat = " ".join(text.split())
    for sign in "\\`*_[]<>|#~$":
        flat = flat.replace(sign, f"&#{ord(sign)};") if sign in "<>|`" else flat.replace(sign, f"\\{sign}")
    return flat


def _draw_metadata(plan: MergePlan) -> Iterator[str]:
    repos = [model.repo for model in plan.models if model.repo]
    yield "---"
    if repos:
        yield "base_model:"
        yield from (f"- {repo}" for repo in repos)
        yield "base_model_relation: merge"
    yield "library_name: transformers"
    yield "pipeline_tag: text-generation"
    yield "tags:"
    yield "- merge"
    yield "- xmerge"
    yield "---"


def _draw_summary(plan: MergePlan) -> Iterator[str]:
    target = plan.models[plan.target]
    layers = sum(layer.index is not None for layer in plan.layers)
    donors = [model for index, model in enumerate(plan.models) if index != plan.target]
    yield (
        f"A merge by `{plan.method}`, made with xmerge. It is exactly a {target.kind} model of {layers} layers, with the "
        f"config and tokenizer of {escape(target.label)}."
    )
    yield ""
    for model, part in [(target, "architecture"), *((donor, "donor") for donor in donors)]:
        commit = f" at `{model.commit}`" if model.commit else ""
        yield f"- {part}: {escape(model.label)} ({model.kind}, {model.layers} layers){commit}"
    yield ""


def _draw_layer_map(plan: MergePlan) -> Iterator[str]:
    """Which layers met, where that is not simply the same numbers."""
    if all(layer in (None, index) for index, meeting in enumerate(plan.layer_map) for layer in meeting):
        return
    yield "## Layer map"
    yield ""
    rows = [
        (str(index), *("-" if layer is None else str(layer) for layer in meeting))
        for index, meeting in enumerate(plan.layer_map)
    ]
    yield from draw_table(("output layer", *(escape(model.label) for model in plan.models)), rows)
    yield ""


def _draw_losses(plan: MergePlan) -> Iterator[str]:
    dropped = [
        f"{model.label}: {', '.join(model.dropped)} dropped, the target has no such tensor."
        for model in plan.models
        if model.dropped
    ]
    absent: dict[str, list[int]] = {}
    for layer in plan.layers:
        for tensor in layer.tensors:
            for reason in tensor.dropped:
                absent.setdefault(f"{tensor.component}: {reason}", []).extend(
                    [] if layer.index is None else [layer.index]
                )
    kept = [f"{text}{f' (layers {show_ranges(layers)})' if layers else ''}." for text, layers in absent.items()]
    lines = [*plan.warnings, *dropped, *kept, *(f"config.json, {edit}" for edit in plan.config_edits)]
    if lines:
        yield "## Dropped, kept, changed"
        yield ""
        yield from (f"- {escape(line)}" for line in lines)
        yield ""


def _draw_perturbation(plan: MergePlan, results: Sequence[LayerResult]) -> Iterator[str]:
    """For each merged component the range of cosines to the base: what the parameters have really done."""
    measured: dict[str, list[tuple[float, float]]] = {}
    for layer, result in zip(plan.layers, results, strict=True):
        for tensor, outcome in zip(layer.tensors, result.tensors, strict=True):
            if outcome.cosine is not None and outcome.norm_ratio is not None:
                measured.setdefault(tensor.component, []).append((outcome.cosine, outcome.norm_ratio))
    if not measured:
        return
    yield "## How far from the base"
    yield ""
    rows = [
        (component, _range([c for c, _ in values]), _range([r for _, r in values]))
        for component, values in measured.items()
    ]
    yield from draw_table(("component", "cosine to the base", "norm over the base's"), rows)
    yield ""


def _draw_limits(plan: MergePlan) -> Iterator[str]:
    kinds = {model.kind for model in plan.models}
    if len(kinds) > 1:
        yield (
            "The models are of different families and were trained apart. Interpolating such weights is an experiment: in a "
            "controlled test it behaved like adding noise of the same size. Measure before you rely on it."
        )
    else:
        yield "A merge says nothing about quality: measure it on your own task before you rely on it."


def _range(values: Sequence[float]) -> str:
    low, high = f"{min(values):.3f}", f"{max(values):.3f}"
    return low if low == high else f"{low} to {high}"
