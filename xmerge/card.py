"""The model card: what the output is, what came from where, and how to make it again."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

from xmerge.architecture.differences import CLASS_NAMES
from xmerge.distances import PICTURE_NAME, Cell, choose_rows, list_cells, measure_distance
from xmerge.files import write_text
from xmerge.licences import NO_ADVICE, find_licence, link_licence, tell_licence
from xmerge.lost_biases import list_bias_losses
from xmerge.planning.plan import MergePlan
from xmerge.planning.table import PLAN_COLUMNS, draw_plan, show_ranges
from xmerge.provenance import CONFIG_COPY_NAME, PROVENANCE_NAME, tell_from_output
from xmerge.source_cards import CARD_NAME

if TYPE_CHECKING:
    from xmerge.config import MergeConfig
    from xmerge.engine.results import LayerResult

_ESCAPES = str.maketrans({sign: f"&#{ord(sign)};" for sign in "&<>|`"} | {sign: f"\\{sign}" for sign in "\\*_[]#~$"})


def write_card(folder: Path, plan: MergePlan, config: MergeConfig, results: Sequence[LayerResult]) -> None:
    """Write the card of an assembled output."""
    write_text(folder / CARD_NAME, draw_card(plan, config, results))


def draw_card(plan: MergePlan, config: MergeConfig, results: Sequence[LayerResult]) -> str:
    """The card's Markdown, with the Hub's metadata in front; the same merge gives the same text."""
    return "\n".join(
        [
            *_draw_metadata(plan),
            f"# {escape(plan.title)}",
            "",
            *_draw_display(plan),
            *_draw_summary(plan),
            "## What came from where",
            "",
            *_draw_treatment(plan),
            *_draw_layer_map(plan),
            *_draw_losses(plan, config, results),
            *_draw_distances(plan, results),
            *_draw_licences(plan),
            "## How to make it again",
            "",
            *_draw_recipe(config),
            "",
            f"`xmerge merge {CONFIG_COPY_NAME} OUT{_show_seed(config)}`, plan fingerprint `{plan.fingerprint}`.",
            f"Made with xmerge {metadata.version('xmerge')} and random seed {config.random_seed}.",
            *_draw_commits(plan),
            f"`{PROVENANCE_NAME}` says for every tensor what was done to it, and has the digest of every other file.",
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
    """Text from a checkpoint or a configuration, made harmless in Markdown: one line that is nothing but text."""
    shown = "".join(sign if sign.isprintable() else " " for sign in text)
    return " ".join(shown.split()).translate(_ESCAPES)


def _draw_recipe(config: MergeConfig) -> Iterator[str]:
    """The configuration as it was given, in a fence that nothing in it can close."""
    text = config.source.text or f"# The configuration was given as data; {CONFIG_COPY_NAME} has it.\n"
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    yield f"{fence}yaml"
    yield text.rstrip("\n")
    yield fence


def _show_seed(config: MergeConfig) -> str:
    """The option that a run needs to draw the same numbers, where the file says another seed."""
    if not config.source.text:
        return ""
    from xmerge.config import parse_stages

    said = parse_stages(config.source.text, config.source.name, config.source.folder)[-1].random_seed
    return "" if said == config.random_seed else f" --seed {config.random_seed}"


def _draw_metadata(plan: MergePlan) -> Iterator[str]:
    """What the Hub reads: JSON texts are YAML's too, and nothing in them has another meaning."""
    cards, licensing = [origin.card for origin in plan.origins], plan.licensing
    target = plan.models[plan.target].card
    yield "---"
    repos = [origin.repo for origin in plan.origins if origin.repo]
    if repos:
        yield from _draw_list("base_model", repos)
        yield "base_model_relation: merge"
    yield "library_name: transformers"
    yield f"pipeline_tag: {json.dumps(target.pipeline_tag or 'text-generation')}"
    yield from _draw_list("language", [each for card in cards for each in card.languages])
    yield from _draw_list("datasets", [each for card in cards for each in card.datasets])
    said = {"license": licensing.licence, "license_name": licensing.name, "license_link": licensing.link}
    yield from (f"{key}: {json.dumps(value)}" for key, value in said.items() if value)
    yield from _draw_list("tags", ["merge", "xmerge"])
    yield "---"


def _draw_list(key: str, values: Sequence[str]) -> Iterator[str]:
    if values:
        yield f"{key}:"
        yield from (f"- {json.dumps(value)}" for value in dict.fromkeys(values))


def _draw_display(plan: MergePlan) -> Iterator[str]:
    """The words that licences want to be seen."""
    for words in plan.licensing.display:
        yield f"**{words}**"
        yield ""


def _draw_summary(plan: MergePlan) -> Iterator[str]:
    target = plan.models[plan.target]
    layers = sum(layer.index is not None for layer in plan.layers)
    donors = [model for index, model in enumerate(plan.models) if index != plan.target]
    yield (
        f"A merge by `{plan.method}`, made with xmerge. It is exactly a {escape(target.kind)} model of {layers} "
        f"layers, with the config and tokenizer of {escape(target.label)}."
    )
    yield ""
    for model, part in [(target, "architecture"), *((donor, "donor") for donor in donors)]:
        commit = f" at `{model.commit}`" if model.commit else ""
        yield f"- {part}: {escape(model.label)} ({escape(model.kind)}, {model.layers} layers){commit}"
    yield ""


def _draw_treatment(plan: MergePlan) -> Iterator[str]:
    """The plan as a table, and what the letters of its classes mean, as far as they stand there."""
    rows = draw_plan(plan)
    yield from draw_table(PLAN_COLUMNS, rows)
    yield ""
    found = {row[PLAN_COLUMNS.index("class")] for row in rows}
    classes = [f"{sign} {name}" for sign, name in CLASS_NAMES.items() if sign in found]
    if classes:
        yield f"Classes: {', '.join(classes)}."
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


def _draw_losses(plan: MergePlan, config: MergeConfig, results: Sequence[LayerResult]) -> Iterator[str]:
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
    warnings = [tell_from_output(warning, config) for warning in plan.warnings]
    biases = [str(loss) for loss in list_bias_losses(plan, results) if loss.matters]
    replaced = [
        f"{layer.label}, {outcome.name}: the base's, because {outcome.replaced}."
        for layer, result in zip(plan.layers, results, strict=True)
        for outcome in result.tensors
        if outcome.replaced
    ]
    lines = [*warnings, *replaced, *biases, *dropped, *kept, *(f"config.json, {edit}" for edit in plan.config_edits)]
    if lines:
        yield "## Dropped, kept, changed"
        yield ""
        yield from (f"- {escape(line)}" for line in lines)
        yield ""


def _draw_distances(plan: MergePlan, results: Sequence[LayerResult]) -> Iterator[str]:
    """What the parameters have really done: for each merged component, how far its tensors are from the base's."""
    measured: dict[str, list[tuple[float, float, float]]] = {}
    for layer, result in zip(plan.layers, results, strict=True):
        for tensor, outcome in zip(layer.tensors, result.tensors, strict=True):
            distance = measure_distance(outcome)
            if distance is not None and outcome.cosine is not None and outcome.norm_ratio is not None:
                measured.setdefault(tensor.component, []).append((distance, outcome.cosine, outcome.norm_ratio))
    yield "## How far from the base"
    yield ""
    if measured:
        rows = [(component, *map(_range, zip(*values, strict=True))) for component, values in measured.items()]
        yield from draw_table(("component", "distance", "cosine to the base", "norm over the base's"), rows)
        yield ""
        yield "Distance: the norm of what was changed over the norm of the base's tensor."
        yield ""
    yield f"![The distance of every component in every layer]({PICTURE_NAME})"
    yield ""
    yield from _tell_picture(list_cells(plan, results))


def _tell_picture(cells: Mapping[str, Mapping[int, Cell]]) -> Iterator[str]:
    left_out = len(cells) - len(choose_rows(cells))
    more = f" {left_out} more components are not drawn." if left_out else ""
    yield (
        "A column for each layer, in the order of the shards; grey: the base's; orange: a donor's, not compared with "
        f"the base; of several tensors in one place the farthest counts.{more}"
    )
    yield ""


def _draw_licences(plan: MergePlan) -> Iterator[str]:
    """Whose words are to be kept to, where anything is known of them."""
    licensing = plan.licensing
    yield "## Licences"
    yield ""
    for origin in plan.origins:
        link = link_licence(origin.card)
        # Of an address nothing is left that could end it: the form of links is checked where cards are read.
        yield f"- {escape(origin.label)}: {escape(tell_licence(origin.card))}{f', <{link}>' if link else ''}"
    conflicts = [f"Forbids this merge to be passed on: {conflict.text}." for conflict in licensing.conflicts]
    unnamed = [
        f"Of the licence of {origin.label} nothing is known here: read it, or ask its authors."
        for origin in plan.origins
        if find_licence(origin.card) is None
    ]
    unread = [f"{origin.label}, {text}." for origin in plan.origins for text in origin.card.unread]
    copies = [
        f"{notice.copy_name} is the file {notice.file} of {plan.models[notice.model].label}." for notice in plan.notices
    ]
    lines = [*conflicts, *licensing.duties, *unnamed, *unread, *copies]
    yield from (f"- {escape(line)}" for line in lines)
    yield ""
    yield NO_ADVICE
    yield ""


def _draw_commits(plan: MergePlan) -> Iterator[str]:
    """The commits that branches of the configuration stood at."""
    pinned = [f"`{origin.repo}@{origin.commit}`" for origin in plan.origins if origin.repo]
    if pinned:
        yield f"The commits it was made from: {', '.join(pinned)}."


def _draw_limits(plan: MergePlan) -> Iterator[str]:
    kinds = {model.kind for model in plan.models}
    if len(kinds) > 1:
        yield (
            "The models are of different families and were trained apart. Interpolating such weights is an experiment: "
            "in a controlled test it behaved like adding noise of the same size. Measure before you rely on it."
        )
    else:
        yield "A merge says nothing about quality: measure it on your own task before you rely on it."


def _range(values: Sequence[float]) -> str:
    low, high = f"{min(values):.3f}", f"{max(values):.3f}"
    return low if low == high else f"{low} to {high}"
