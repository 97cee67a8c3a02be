"""The single checks: each compares something said with something found, and gives findings."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from xmerge.architecture import Family, ResolvedModel
from xmerge.architecture.models import config_dtype, expect_tensors
from xmerge.checkpoints import MERGEABLE_DTYPES, Checkpoint, torch_name_of
from xmerge.checkpoints.checkpoint import INDEX_NAME, read_json_object
from xmerge.validation.findings import Finding

Expected = Mapping[str, tuple[tuple[int, ...], str | None]]
"""name -> (shape, dtype or None where any float dtype will do)."""

HEAD_ROLE = "output"
_LAYER = re.compile(r"\.(\d+)\.")


def check_tensors(expected: Expected, checkpoint: Checkpoint, owner: str) -> Iterator[Finding]:
    """Every tensor that is foreign, missing, misshapen or of another dtype than expected.

    Args:
        expected: What there should be.
        checkpoint: What there is.
        owner: Whose set of tensors that is, for people.
    """
    for name in sorted(set(checkpoint.tensors) - set(expected)):
        yield Finding(
            code="foreign_tensor",
            text=f"{_place(name)}'{name}' is foreign: {owner} has no such tensor.",
            remedy="choose a base whose family has it, or leave it out of the merge.",
            tensor=name,
            layer=_layer(name),
        )
    for name in sorted(set(expected) - set(checkpoint.tensors)):
        yield Finding(
            code="missing_tensor",
            text=f"{_place(name)}'{name}' is missing: {owner} has it.",
            remedy="make the checkpoint again.",
            tensor=name,
            layer=_layer(name),
        )
    for name in sorted(set(expected) & set(checkpoint.tensors)):
        yield from _check_tensor(name, expected[name], checkpoint, owner)


def check_family(checkpoint: Checkpoint, family: Family, axes: Mapping[str, int], *, tied: bool) -> Iterator[Finding]:
    """Every tensor that the family does not have with this config.json, every one that lacks, and wrong shapes.

    A layer that should not be there, or is not, is one finding and not one for each of its tensors.
    """
    config, owner = family.language_config(checkpoint.config), f"{family.family} with this config.json"
    stated = set(range(axes["layers"]))
    beginnings = family.layer_beginnings
    present = {
        layer
        for layer in map(_layer, [name for name in checkpoint.tensors if name.startswith(beginnings)])
        if layer is not None
    }
    present -= set(range(axes["layers"], axes["layers"] + family.count_further_layers(config, axes)))
    if present != stated:
        yield _wrong_layers(axes["layers"], axes["layers"], len(present))
    known = expect_tensors(family, axes)
    expected: dict[str, tuple[tuple[int, ...], str | None]] = {
        name: (place.template.shape(axes), None)
        for name, place in known.items()
        if (place.layer is None or place.layer in present)
        and (place.template.exists(config, tied=tied) or (place.template.maybe and name in checkpoint.tensors))
    }
    for finding in check_tensors(expected, checkpoint, owner):
        name = str(finding.tensor)
        is_stray_head = tied and name in known and known[name].template.role == HEAD_ROLE
        # Beside the language model a wrapper holds what this file does not describe, and old files hold buffers.
        is_other = finding.code == "foreign_tensor" and (
            (family.config is not None and not name.startswith(beginnings)) or name.endswith(family.buffers)
        )
        if not is_stray_head and not is_other and (finding.layer is None or finding.layer in stated):
            yield finding


def check_layers(model: ResolvedModel, expected: int) -> Iterator[Finding]:
    """Whether config.json says as many layers as there should be and as there are weights for."""
    present = sorted({spec.layer for spec in model.tensors if spec.layer is not None})
    if model.layers != expected or present != list(range(expected)):
        yield _wrong_layers(expected, model.layers, len(present))


def check_head(checkpoint: Checkpoint, family: Family | None, *, tied: bool) -> Iterator[Finding]:
    """A head of its own under tied embeddings is never read."""
    names = [each.name for each in family.after if each.role == HEAD_ROLE] if family else ["lm_head.weight"]
    for name in names:
        if tied and name in checkpoint.tensors:
            yield Finding(
                code="stray_head",
                text=f"'{name}' is there, and config.json ties the output to the embeddings: it is never read.",
                remedy="remove it, or set tie_word_embeddings to false.",
                tensor=name,
            )


def check_vocabulary(model: ResolvedModel, folder: Path) -> Iterator[Finding]:
    """Whether the embedding has a row for every token that the tokenizer can give."""
    embedding = model.by_role.get((None, "token_embd"))
    if embedding is None:
        return
    rows = embedding[0][0].shape[0]
    path = folder / "tokenizer.json"
    if path.is_file():
        highest = _highest_token(read_json_object(path, path.name))
        if highest >= rows:
            yield Finding(
                code="vocabulary",
                text=f"the tokenizer knows token {highest}, and the embedding has {rows} rows.",
                remedy="take the tokenizer of the model the embedding comes from.",
            )


def check_dtype(checkpoint: Checkpoint) -> Iterator[Finding]:
    """Whether most of the weights have the dtype that config.json claims."""
    claimed = config_dtype(checkpoint.config)
    sizes: dict[str, int] = {}
    for tensor in checkpoint.tensors.values():
        if tensor.dtype in MERGEABLE_DTYPES:
            sizes[tensor.dtype] = sizes.get(tensor.dtype, 0) + tensor.nbytes
    if claimed is None or not sizes:
        return
    actual = torch_name_of(max(sorted(sizes), key=lambda dtype: sizes[dtype]))
    if actual != claimed:
        yield Finding(
            code="wrong_dtype",
            text=f"config.json says {claimed}, and most of the weights are {actual}.",
            remedy=f"write {actual} in config.json, or convert the weights.",
        )


def check_total_size(folder: Path, checkpoint: Checkpoint) -> Iterator[Finding]:
    """Whether the index states the bytes of all tensors."""
    path = folder / INDEX_NAME
    if not path.is_file():
        return
    metadata = read_json_object(path, path.name).get("metadata")
    said = metadata.get("total_size") if isinstance(metadata, dict) else None
    total = sum(tensor.nbytes for tensor in checkpoint.tensors.values())
    if said != total:
        yield Finding(
            code="wrong_total_size",
            text=f"the index says total_size {said}, and the tensors have {total} bytes.",
            remedy=f"write {total}.",
            severity="warning",
        )


def _wrong_layers(expected: int, stated: int, present: int) -> Finding:
    return Finding(
        code="layer_count",
        text=f"{expected} layers are expected, config.json says {stated}, and there are weights for {present}.",
        remedy="make the checkpoint again.",
    )


def _check_tensor(
    name: str, expected: tuple[tuple[int, ...], str | None], checkpoint: Checkpoint, owner: str
) -> Iterator[Finding]:
    shape, dtype = expected
    stored = checkpoint.tensors[name]
    if stored.shape != shape:
        yield Finding(
            code="wrong_shape",
            text=f"{_place(name)}'{name}' has shape {list(stored.shape)}; {owner} has {list(shape)}.",
            remedy="make the checkpoint again.",
            tensor=name,
            layer=_layer(name),
        )
    if dtype is not None and stored.dtype != dtype:
        yield Finding(
            code="wrong_dtype",
            text=f"{_place(name)}'{name}' is {stored.dtype}; {dtype} is expected.",
            remedy="make the checkpoint again.",
            tensor=name,
            layer=_layer(name),
        )


def _highest_token(tokenizer: dict[str, Any]) -> int:
    model = tokenizer.get("model")
    vocabulary = model.get("vocab") if isinstance(model, dict) else None
    numbers = list(vocabulary.values()) if isinstance(vocabulary, dict) else []
    added = tokenizer.get("added_tokens")
    numbers += [each.get("id") for each in added if isinstance(each, dict)] if isinstance(added, list) else []
    return max((number for number in numbers if type(number) is int), default=-1)


def _layer(name: str) -> int | None:
    match = _LAYER.search(name)
    return int(match[1]) if match else None


def _place(name: str) -> str:
    layer = _layer(name)
    return f"layer {layer}: " if layer is not None else ""
