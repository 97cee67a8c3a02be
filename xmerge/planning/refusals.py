"""What xmerge recognises in a configuration and does not do: refused before anything else is decided."""

from __future__ import annotations

from typing import Any

from xmerge.architecture import ResolvedArchitecture
from xmerge.checkpoints.checkpoint import read_json_object
from xmerge.config import MergeConfig, TokenizerConfig
from xmerge.errors import PlanError
from xmerge.sources import metadata_folder


def refuse_unsupported(config: MergeConfig, architecture: ResolvedArchitecture) -> None:
    """Refuse unknown families that differ, tokenizers that would have to be merged, and built-in chat templates.

    Raises:
        PlanError: Says what to do instead.
    """
    _refuse_strangers(config, architecture)
    _refuse_tokenizer_merge(config, architecture)
    template = config.chat_template
    if template is not None and "{" not in template:
        raise PlanError(
            f"'chat_template: {template}' names a built-in template, and xmerge has none.",
            where=config.source.locate("chat_template"),
            remedy="leave it out to keep the base's, or write the Jinja text itself.",
        )


def _refuse_strangers(config: MergeConfig, architecture: ResolvedArchitecture) -> None:
    target = architecture.target
    for model in architecture.models:
        if model.model_type == target.model_type or (model.family and target.family):
            continue
        unknown = model if model.family is None else target
        raise PlanError(
            f"{target.label} is a {target.kind} and {model.label} a {model.kind}, and there is no family file for "
            f"{unknown.model_type}.",
            where=config.source.name,
            why="what its tensors do is unknown; models of one model_type merge by name, others need a family file.",
            remedy="add a file to xmerge/families (CONTRIBUTING.md says how); `xmerge families` lists those there are.",
        )


def _refuse_tokenizer_merge(config: MergeConfig, architecture: ResolvedArchitecture) -> None:
    asked = config.tokenizer or (
        TokenizerConfig(source=config.tokenizer_source) if config.tokenizer_source is not None else None
    )
    if asked is None:
        return
    key = "tokenizer" if config.tokenizer is not None else "tokenizer_source"
    where = config.source.locate(key)
    if asked.tokens or asked.pad_to_multiple_of is not None:
        raise PlanError(
            "xmerge does not change a vocabulary, and 'tokens' and 'pad_to_multiple_of' ask for that.",
            where=where,
            remedy="leave them out; the output has the base's tokenizer and vocabulary.",
        )
    if asked.source not in ("base", "union") and asked.source != architecture.references[architecture.target_index]:
        raise PlanError(
            f"the output has the tokenizer of {architecture.target.label}, whose architecture it has, not of {asked.source}.",
            where=where,
            remedy="leave it out, or name that model in 'architecture'.",
        )
    first = None
    for model in architecture.models:
        vocabulary = _read_vocabulary(model.location, model.label)
        first = vocabulary if first is None else first
        if vocabulary is not None and vocabulary != first:
            raise PlanError(
                f"{architecture.models[0].label} and {model.label} have different vocabularies, and '{key}' asks to re-order "
                "embeddings from one to the other, which xmerge does not do.",
                where=where,
                remedy=f"leave '{key}' out: the output has the tokenizer of {architecture.target.label}.",
            )


def _read_vocabulary(location: Any, label: str) -> Any:
    path = metadata_folder(location) / "tokenizer.json"
    if not path.is_file():
        return None
    data = read_json_object(path, f"{label}/tokenizer.json")
    model = data.get("model")
    added = [(each.get("id"), each.get("content")) for each in data.get("added_tokens") or [] if isinstance(each, dict)]
    return (model.get("vocab") if isinstance(model, dict) else None, added)
