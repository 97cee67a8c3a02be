"""What xmerge recognises in a configuration and does not do: refused with what to do instead."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from xmerge.architecture import ResolvedArchitecture, ResolvedModel
from xmerge.architecture.differences import CLASS_NAMES
from xmerge.checkpoints.checkpoint import read_json_object
from xmerge.checkpoints.untrusted import LARGE
from xmerge.config import MergeConfig, TokenizerConfig, locate_mention
from xmerge.errors import PlanError
from xmerge.planning.decisions import Fault
from xmerge.planning.plan import LayerPlan
from xmerge.planning.unknown import tell_unknown
from xmerge.sources import metadata_folder

REASONS_SHOWN = 12


def refuse_unsupported(config: MergeConfig, architecture: ResolvedArchitecture) -> None:
    """Refuse models that nothing is known of, and built-in chat templates.

    Raises:
        PlanError: Says what to do instead.
    """
    _refuse_unknown(config, architecture)
    template = config.chat_template
    if template is not None and "{" not in template:
        told = f"'chat_template: {template}' names a built-in template, and xmerge has none."
        raise PlanError(
            told if template.strip() else "'chat_template' is empty.",
            where=config.source.locate("chat_template"),
            remedy="leave it out to keep the base's, or write the Jinja text itself.",
        )


def refuse_strangers(target: ResolvedModel, model: ResolvedModel, where: str | None = None) -> None:
    """Refuse a model of another type than the target's where nobody knows what the tensors of one of them do.

    Raises:
        PlanError: Names both kinds, and how a family is added.
    """
    if model.model_type == target.model_type or (model.family and target.family):
        return
    unknown = model if model.family is None else target
    raise PlanError(
        f"{target.label} is a {target.kind} and {model.label} a {model.kind}, and {tell_unknown(unknown)}.",
        where=where,
        why="what its tensors do is unknown; models of one model_type merge by name, others need a family file.",
        remedy="add a file to xmerge/families (docs/adding-a-family.md shows how); `xmerge families` lists those there "
        "are.",
    )


def refuse_misfits(
    config: MergeConfig, architecture: ResolvedArchitecture, misfits: Sequence[Fault], fitting: Sequence[str]
) -> None:
    """Refuse what was asked to be merged and does not fit, all of it at once.

    Args:
        config: What asks for it.
        architecture: The models.
        misfits: What does not fit.
        fitting: The filters for what does.

    Raises:
        PlanError: Lists every misfit once, with its class and what each model has.
    """
    if not misfits:
        return
    told = [
        Fault(each.tensor, f"class {each.grade}, {CLASS_NAMES[each.grade]}: {each.reason}", each.where)
        for each in misfits
    ]
    differ = "shapes differ" if all(each.grade == "D" for each in misfits) else "tensors do not do the same"
    donors = [model.label for model in architecture.models if model is not architecture.target]
    way_out = (
        f"filter the parameters to what fits ({_list_some(fitting)})"
        if fitting
        else f"choose another donor, because no matrix in the layers of {' and '.join(donors)} fits (`xmerge compat` "
        "says what crosses between two models)"
    )
    raise PlanError(
        f"{_count(misfits)} cannot be merged as asked, {misfits[0].tensor} first.",
        where=config.source.locate(*misfits[0].where),
        why=f"the models' {differ}:{_list_reasons(told)}",
        remedy=f"{way_out}, or set 'on_mismatch: base' to keep the base's there.",
    )


def refuse_doubled_gains(config: MergeConfig, layers: Sequence[LayerPlan]) -> None:
    """Refuse to fold the gain of a norm into what reads it where the norm itself is merged as well.

    Raises:
        PlanError: Names the tensor and the norm.
    """
    if "input_norm" not in config.folds:
        return
    for layer in layers:
        own = {
            (source.model, segment.tensor)
            for tensor in layer.tensors
            if tensor.decision in ("keep", "convert")
            for source in tensor.sources
            for segment in source.segments
        }
        for tensor in layer.tensors:
            for gain in (source.gain for source in tensor.sources):
                if gain is not None and (gain.base_model, gain.base.tensor) not in own:
                    raise PlanError(
                        f"{tensor.name} is divided by the gain of {gain.base.tensor}, and the output does not keep "
                        "that norm.",
                        where=config.source.locate("folds"),
                        why="'input_norm' works the donor's gain into what reads it; with the norm merged too it would "
                        "count twice.",
                        remedy="filter the norms out of the merge, or take input_norm out of 'folds'.",
                    )


def refuse_gaps(config: MergeConfig, architecture: ResolvedArchitecture, gaps: Sequence[Fault]) -> None:
    """Refuse an output with tensors that no model has.

    Raises:
        PlanError: Lists every gap once.
    """
    if gaps:
        label = architecture.target.label
        raise PlanError(
            f"{_count(gaps)} can be filled by no model that meets there, {gaps[0].tensor} first.",
            where=config.source.locate(*gaps[0].where),
            why=f"the output is a {architecture.target.kind} like {label}, which has them:{_list_reasons(gaps)}",
            remedy=f"add a source of {label} there, or let another model give the 'architecture'.",
        )


def refuse_tokenizer_merge(
    config: MergeConfig, architecture: ResolvedArchitecture, layers: Sequence[LayerPlan]
) -> None:
    """Refuse a tokenizer that would have to be merged, or embeddings that would have to be re-ordered for it.

    Raises:
        PlanError: Says what to do instead.
    """
    asked = config.tokenizer or (TokenizerConfig(source=config.tokenizer_source) if config.tokenizer_source else None)
    if asked is None:
        return
    key = "tokenizer" if config.tokenizer is not None else "tokenizer_source"
    where, label = config.source.locate(key), architecture.target.label
    if asked.tokens or asked.pad_to_multiple_of is not None:
        raise PlanError(
            "xmerge does not change a vocabulary, and 'tokens' and 'pad_to_multiple_of' ask for that.",
            where=where,
            remedy=f"leave them out; the output has the tokenizer and the vocabulary of {label}.",
        )
    if asked.source not in ("base", "union", *architecture.references):
        raise PlanError(
            f"'{key}' names {asked.source}, which is no model of this configuration.",
            where=where,
            remedy=f"leave it out; the output has the tokenizer of {label}, whose architecture it has.",
        )
    if asked.source not in ("base", "union") and asked.source != architecture.references[architecture.target_index]:
        raise PlanError(
            f"the output has the tokenizer of {label}, whose architecture it has, not of {asked.source}.",
            where=where,
            remedy="leave it out, or name that model in 'architecture'.",
        )
    # A donor whose embeddings stay out has no say in the base's vocabulary; in a union every model has.
    union = asked.source == "union"
    givers = {
        source.model for layer in layers if layer.index is None for each in layer.tensors for source in each.sources
    }
    own = _read_vocabulary(architecture.target)
    for index, model in enumerate(architecture.models):
        theirs = _read_vocabulary(model) if union or index in givers else None
        if theirs is not None and own is not None and theirs != own:
            raise PlanError(
                f"{label} and {model.label} have different vocabularies.",
                where=where,
                why=f"'{key}' asks to re-order embeddings from one to the other, which xmerge does not do.",
                remedy=f"leave '{key}' out: the output has the tokenizer of {label}"
                + (", and filter the embeddings out of the merge." if index in givers else "."),
            )


def _refuse_unknown(config: MergeConfig, architecture: ResolvedArchitecture) -> None:
    for model, reference in zip(architecture.models, architecture.references, strict=True):
        refuse_strangers(architecture.target, model, locate_mention(config, reference))


def _count(faults: Sequence[Fault]) -> str:
    return "1 tensor of the output" if len(faults) == 1 else f"{len(faults)} tensors of the output"


def _list_reasons(faults: Sequence[Fault]) -> str:
    counted = list(Counter(fault.reason for fault in faults).items())
    shown = "".join(f"\n    {reason} (tensors: {count})" for reason, count in counted[:REASONS_SHOWN])
    return shown + (f"\n    and {len(counted) - REASONS_SHOWN} more" if len(counted) > REASONS_SHOWN else "")


def _list_some(filters: Sequence[str]) -> str:
    shown = ", ".join(filters[:REASONS_SHOWN])
    return f"{shown} and {len(filters) - REASONS_SHOWN} more" if len(filters) > REASONS_SHOWN else shown


def _read_vocabulary(model: ResolvedModel) -> Any:
    """Which token has which number; None where there is no tokenizer.json to read it from."""
    path = metadata_folder(model.location) / "tokenizer.json"
    if not path.is_file():
        return None
    data = read_json_object(path, f"{model.label}/tokenizer.json", LARGE)
    tokens = data.get("model")
    listed = data.get("added_tokens")
    added = [each for each in listed if isinstance(each, dict)] if isinstance(listed, list) else []
    vocabulary = tokens.get("vocab") if isinstance(tokens, dict) else None
    return vocabulary, [(each.get("id"), each.get("content")) for each in added]
