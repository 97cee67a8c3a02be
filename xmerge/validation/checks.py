"""The single checks: each compares something said with something found, and gives findings."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from xmerge.architecture import Family, ResolvedModel, list_families
from xmerge.architecture.models import config_dtype, expect_tensors
from xmerge.checkpoints import MERGEABLE_DTYPES, Checkpoint, StoredTensor, torch_name_of
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
    """A head of its own under tied embeddings is read by some programs and ignored by others."""
    names = [each.name for each in family.after if each.role == HEAD_ROLE] if family else ["lm_head.weight"]
    for name in names:
        if tied and name in checkpoint.tensors:
            yield Finding(
                code="stray_head",
                text=f"'{name}' is there, and config.json ties the output to the embeddings: transformers 4 ignores "
                "it, and transformers 5 uses it where it differs from them.",
                remedy="remove it, or set tie_word_embeddings to false to have it used.",
                tensor=name,
            )


def check_dtype(checkpoint: Checkpoint) -> Iterator[Finding]:
    """Whether most of the weights have the dtype that config.json claims."""
    claimed, sizes = config_dtype(checkpoint.config), _group_by_dtype(checkpoint)
    if claimed is None or not sizes:
        return
    actual = max(sizes, key=lambda dtype: sum(tensor.nbytes for tensor in sizes[dtype]))
    if actual != claimed:
        yield Finding(
            code="wrong_dtype",
            text=f"config.json says {claimed}, and most of the weights are {actual}.",
            remedy=f"write {actual} in config.json, or convert the weights.",
        )


def check_other_dtypes(checkpoint: Checkpoint) -> Iterator[Finding]:
    """Which weights have another dtype than config.json claims and most of them have: some programs convert them."""
    claimed, sizes = config_dtype(checkpoint.config), _group_by_dtype(checkpoint)
    if claimed not in sizes:
        return
    for dtype, tensors in sizes.items():
        if dtype != claimed:
            shown = ", ".join(tensor.name for tensor in tensors[:3])
            more = f" and {len(tensors) - 3} more" if len(tensors) > 3 else ""
            yield Finding(
                code="wrong_dtype",
                text=f"{shown}{more} {'is' if len(tensors) == 1 else 'are'} {dtype}; config.json says {claimed}.",
                remedy=f"convert to {claimed} what need not be {dtype}.",
                tensor=tensors[0].name if len(tensors) == 1 else None,
                severity="warning",
            )


def check_architecture(checkpoint: Checkpoint, family: Family | None) -> Iterator[Finding]:
    """Whether the class that config.json names is of the family that its model type is of."""
    told = checkpoint.config.get("architectures")
    named = told[0] if isinstance(told, list) and told else None
    owner = next((each for each in list_families() if named in each.architectures), None)
    if family is not None and owner is not None and named not in family.architectures:
        yield Finding(
            code="config",
            text=f"config.json says model_type {checkpoint.config.get('model_type')}, and architectures {named}, which "
            f"is a {owner.family}.",
            remedy="fetch config.json again: the two belong to different models.",
            severity="warning",
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


def _group_by_dtype(checkpoint: Checkpoint) -> dict[str, list[StoredTensor]]:
    """The tensors of floating point, by dtype as config.json writes it, in a fixed order."""
    grouped: dict[str, list[StoredTensor]] = {}
    for tensor in sorted(checkpoint.tensors.values(), key=lambda each: (each.dtype, each.name)):
        if tensor.dtype in MERGEABLE_DTYPES:
            grouped.setdefault(torch_name_of(tensor.dtype), []).append(tensor)
    return grouped


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


def _layer(name: str) -> int | None:
    match = _LAYER.search(name)
    return int(match[1]) if match else None


def _place(name: str) -> str:
    layer = _layer(name)
    return f"layer {layer}: " if layer is not None else ""
