"""Packed weights: which tensors of a checkpoint are no plain numbers, told by config.json or by the headers alone."""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from xmerge.architecture.rules import refuse_said, show
from xmerge.checkpoints import MERGEABLE_DTYPES, StoredTensor
from xmerge.errors import CheckpointError
from xmerge.values import Value

CONFIG_KEYS = ("quantization_config", "compression_config", "quantization")
"""Where config.json says how its weights are packed: for transformers, in older files, for MLX."""
MOST_PARTS = 32
"""More tensors than any way of packing makes of one weight."""

_UNPACKED = "merge the model it was made from, in bfloat16, float16 or float32, and quantise the result"
_AT_LOADING = "load it with transformers and {}, save it with save_pretrained, and merge that; or {}"


class Packing(Value):
    """A way to pack weights.

    Endings take the place of `.weight` where they begin with a dot, and follow the whole name of the weight where they
    begin with an underscore.
    """

    name: str
    methods: tuple[str, ...] = ()
    """What `quant_method` says in config.json."""
    mark: str | None = None
    """The ending of a tensor that only this way of packing writes."""
    beside: tuple[str, ...] = ()
    """The endings of everything else that belongs to a weight."""
    reason: str
    """Why its numbers are none to combine."""
    remedy: str = _UNPACKED

    @cached_property
    def endings(self) -> tuple[str, ...]:
        """The endings of every tensor that holds a part of a weight, or says what it means."""
        return (*([self.mark] if self.mark else []), *self.beside)


@dataclass(frozen=True, slots=True)
class PackedWeight:
    """A weight that a checkpoint does not hold as plain numbers."""

    model: str
    """The label of the model that holds it."""
    packing: Packing
    name: str
    """What it is called where it is not packed."""
    stored: tuple[str, ...]
    """What the checkpoint holds of it, the numbers first."""


_UNNAMED = Packing(name="unknown", reason="its config.json says that its weights are quantised")
_INTEGERS = Packing(
    name="integers",
    beside=(".scales", ".scale", ".zeros", ".qzeros", ".zero", ".biases", ".qbiases"),
    reason="integers are weights only together with a scale, and nothing says how",
)
_FLOATS = Packing(
    name="floats of 8 bits or fewer",
    reason="floats of so few bits are weights only together with a scale, and nothing says which",
)
_FP8 = Packing(
    name="FP8",
    methods=("fp8", "fbgemm_fp8", "mxfp8"),
    mark="_scale_inv",
    beside=("_scale", ".scale", ".qscale_weight", ".input_scale", ".activation_scale", ".input_scale_ub"),
    reason="its 8-bit floats mean something only when they are multiplied by the scales beside them",
    remedy=_AT_LOADING.format("FineGrainedFP8Config(dequantize=True)", _UNPACKED),
)
PACKINGS = (
    Packing(
        name="bitsandbytes in 4 bits",
        methods=("bitsandbytes", "bitsandbytes_4bit"),
        mark=".weight.absmax",
        beside=(
            ".weight.quant_map",
            ".weight.nested_absmax",
            ".weight.nested_quant_map",
            ".weight.quant_state.bitsandbytes__nf4",
            ".weight.quant_state.bitsandbytes__fp4",
        ),
        reason="each byte holds two weights, and the tensors beside it say what they stand for",
        remedy=_AT_LOADING.format("call model.dequantize()", _UNPACKED),
    ),
    Packing(
        name="bitsandbytes in 8 bits",
        methods=("bitsandbytes", "bitsandbytes_8bit"),
        mark=".SCB",
        beside=(".weight_format",),
        reason="each byte is a weight only when it is multiplied by its row's number in .SCB",
        remedy=_AT_LOADING.format("call model.dequantize()", _UNPACKED),
    ),
    Packing(
        name="GPTQ",
        methods=("gptq",),
        mark=".g_idx",
        beside=(".qweight", ".qzeros", ".scales"),
        reason="each integer holds several weights, whose zeros, scales and order lie in tensors beside it",
    ),
    Packing(
        name="AWQ",
        methods=("awq",),
        mark=".qweight",
        beside=(".qzeros", ".scales"),
        reason="each integer holds several weights, whose zeros and scales lie in tensors beside it",
    ),
    Packing(
        name="AutoRound",
        methods=("auto-round",),
        beside=(".qweight", ".qzeros", ".scales", ".g_idx"),
        reason="each integer holds several weights, whose zeros and scales lie in tensors beside it",
    ),
    Packing(
        name="NVFP4",
        methods=("modelopt", "nvfp4"),
        mark="_scale_2",
        beside=("_scale", ".input_scale", ".k_scale", ".v_scale"),
        reason="each byte holds two 4-bit floats, which two levels of scales beside it multiply",
    ),
    Packing(
        name="compressed-tensors",
        methods=("compressed-tensors", "sparseml"),
        mark="_packed",
        beside=(
            "_scale",
            "_shape",
            "_zero_point",
            "_g_idx",
            "_global_scale",
            ".input_scale",
            ".input_zero_point",
            ".input_global_scale",
            ".output_scale",
        ),
        reason="its numbers are packed, and the tensors beside them say what they stand for",
        remedy=_AT_LOADING.format(
            "CompressedTensorsConfig(dequantize=True) (run_compressed=False in older versions)", _UNPACKED
        ),
    ),
    Packing(
        name="MXFP4",
        methods=("mxfp4",),
        mark="_blocks",
        beside=("_scales",),
        reason="each byte holds two 4-bit floats, which the scale of their block multiplies",
        remedy=_AT_LOADING.format("Mxfp4Config(dequantize=True)", _UNPACKED),
    ),
    _FP8,
    Packing(
        name="HQQ",
        methods=("hqq",),
        mark=".W_q",
        beside=(".meta", ".scale", ".zero", ".shape", ".nbits", ".group_size", ".axis", ".packing"),
        reason="each number holds several weights, whose zeros and scales lie in tensors beside it",
    ),
    Packing(
        name="AQLM",
        methods=("aqlm",),
        mark=".codebooks",
        beside=(".codes", ".scales"),
        reason="its numbers are places in codebooks, not weights",
    ),
    Packing(
        name="torchao",
        methods=("torchao",),
        mark="._weight_qdata",
        beside=(
            "._weight_scale",
            "._weight_zero_point",
            "._weight_scale_and_zero",
            "._weight_per_tensor_scale",
            "._weight_act_pre_scale",
        ),
        reason="its numbers are quantised, and the tensors beside them say what they stand for",
    ),
    Packing(
        name="Quanto",
        methods=("quanto",),
        mark=".weight._data",
        beside=(".weight._scale", ".weight._shift", ".input_scale", ".output_scale"),
        reason="its numbers are weights only when they are multiplied by the scales beside them",
    ),
    Packing(
        name="EETQ",
        methods=("eetq",),
        mark=".weight_scales",
        reason="each byte is a weight only when it is multiplied by its row's number in .weight_scales",
    ),
    Packing(
        name="HIGGS",
        methods=("higgs",),
        mark=".tables2",
        beside=(".tables", ".scales"),
        reason="its numbers are places in tables, not weights",
        remedy=_AT_LOADING.format("call model.dequantize()", _UNPACKED),
    ),
    Packing(
        name="EXL2",
        methods=("exl2",),
        mark=".q_weight",
        beside=(".q_scale", ".q_scale_max", ".q_groups", ".q_invperm", ".q_perm"),
        reason="each number holds several weights of few bits, in another order",
    ),
    Packing(
        name="EXL3",
        methods=("exl3",),
        mark=".trellis",
        beside=(".suh", ".svh", ".su", ".sv", ".mcg", ".mul1"),
        reason="its numbers are steps through a trellis, not weights",
    ),
    Packing(
        name="MLX",
        methods=("mlx", "metal"),
        mark=".biases",
        beside=(".scales", ".qbiases"),
        reason="each integer holds several weights, whose scales and offsets lie in tensors beside it",
        remedy=f"unpack it with `mlx_lm.convert --dequantize` and merge that; or {_UNPACKED}",
    ),
    Packing(
        name="BitNet",
        methods=("bitnet",),
        beside=(".weight_scale",),
        reason="each byte holds four weights of -1, 0 and 1, which the scale beside it multiplies",
    ),
    Packing(
        name="scaled weights",
        mark="_scale",
        reason="its numbers are weights only when they are multiplied by the scales beside them",
    ),
)
"""In the order in which marks are believed: GPTQ writes what AWQ writes, and more."""

_MARK = re.compile("(" + "|".join(re.escape(each.mark) for each in PACKINGS if each.mark) + ")$")
_PLAIN_ENDINGS = (".weight", ".bias")


def find_packed(config: Mapping[str, Any], tensors: Mapping[str, StoredTensor], label: str) -> dict[str, PackedWeight]:
    """The packed weights of a checkpoint, by the names of all tensors that belong to them.

    Args:
        config: All of config.json.
        tensors: What the headers tell.
        label: The model's, for errors.

    Raises:
        CheckpointError: What config.json says of packing is no mapping.
    """
    marked = _find_marked(tensors)
    told = _choose_told(_read_told(config, label), marked)
    named = None if told is _UNNAMED else told
    found: dict[str, Packing] = {name: named or packing for name, packing in marked.items()}
    parts = {
        part: weight
        for weight, packing in found.items()
        for part in _list_parts(weight, (packing, marked[weight]), tensors)
    }
    for stored in tensors.values():
        if stored.name not in parts and _is_no_weight(stored, told):
            packing = told or (_INTEGERS if stored.dtype[0] in "IUB" else _FP8)
            own = _list_parts(stored.name, (packing,), tensors)
            # What nothing lies beside is not even FP8: nobody knows the scale.
            found[stored.name] = _FLOATS if packing is _FP8 and not told and len(own) == 1 else packing
            parts |= dict.fromkeys(own, stored.name)
    return _gather(found, parts, tensors, label)


def find_replaced(
    config: Mapping[str, Any], missing: Sequence[str], free: Sequence[str], label: str
) -> list[PackedWeight]:
    """The weights that a packed checkpoint lacks and has something unknown in the place of.

    Args:
        config: All of config.json.
        missing: The names of the weights.
        free: The names of the tensors that are nothing else, sorted.
        label: The model's, for errors.
    """
    told = _choose_told(_read_told(config, label), {})
    if told is None:
        return []
    found = []
    for name in missing:
        stem = name.removesuffix("weight")
        first = bisect_left(free, stem)
        beside = tuple(each for each in free[first : first + MOST_PARTS] if each.startswith(stem))
        if beside:
            found.append(PackedWeight(model=label, packing=told, name=name, stored=beside))
    return found


def tell_method(config: Mapping[str, Any]) -> str | None:
    """The method that a config.json says its weights are packed by; None where it says none."""
    said = next((config[key] for key in CONFIG_KEYS if isinstance(config.get(key), Mapping)), None)
    return None if said is None else _name_method(said.get("quant_method", "unknown"))


def refuse_packed(weight: PackedWeight, *, into: bool, where: str | None) -> CheckpointError:
    """The error for a packed weight that is asked to be merged.

    Args:
        weight: The weight.
        into: Whether it is the base's, which others are merged into.
        where: What in the configuration asks for it.
    """
    numbers, *beside = weight.stored
    told = f"; here they are {', '.join(beside[:3])}" if beside else ""
    return CheckpointError(
        f"{weight.model} holds {numbers} packed ({weight.packing.name}), and "
        + ("nothing can be merged into it." if into else "it cannot be merged."),
        where=where,
        why=f"{weight.packing.reason}{told}.",
        remedy=f"{weight.packing.remedy}; or filter it out of the merge.",
    )


def _name_method(method: object) -> str:
    return method[:40] if isinstance(method, str) else show(method)


def _read_told(config: Mapping[str, Any], label: str) -> tuple[Packing, ...]:
    """The ways of packing that config.json may mean; none where it says nothing."""
    silent: tuple[Packing, ...] = ()
    for key in CONFIG_KEYS:
        said = config.get(key)
        # MLX's key is a plain word, which others may use for something else.
        if said is None or said is False or (key == "quantization" and not isinstance(said, Mapping)):
            continue
        if not isinstance(said, Mapping):
            raise refuse_said(label, f"{key} = {show(said)}", "no mapping")
        method = said.get("quant_method", "mlx" if key == "quantization" else None)
        if method is None:
            silent = (_UNNAMED,)
            continue
        meant = [each for each in PACKINGS if method in each.methods]
        if method == "bitsandbytes" and said.get("load_in_8bit"):
            meant.reverse()
        return tuple(meant) or (_UNNAMED.model_copy(update={"name": _name_method(method)}),)
    return silent


def _choose_told(told: Sequence[Packing], marked: Mapping[str, Packing]) -> Packing | None:
    """Of the ways that config.json may mean, the one that the headers show, else the first."""
    shown = {packing.name for packing in marked.values()}
    return next((each for each in told if each.name in shown), told[0] if told else None)


def _find_marked(tensors: Mapping[str, StoredTensor]) -> dict[str, Packing]:
    """The weights that something lies in the place of or beside, with the way of packing that it shows."""
    found: dict[str, set[str]] = {}
    for stored in tensors.values():
        plain = stored.dtype in MERGEABLE_DTYPES
        if plain and stored.name.endswith(_PLAIN_ENDINGS):
            continue
        match = _MARK.search(stored.name)
        weight = _name_weight(stored.name, match[1]) if match else None
        if match and weight and (not plain or _belongs(match[1], weight, tensors)):
            found.setdefault(weight, set()).add(match[1])
    return {
        weight: _FP8
        if weight in tensors and tensors[weight].dtype.startswith("F8")
        else next(each for each in PACKINGS if each.mark in marks)
        for weight, marks in found.items()
    }


def _belongs(mark: str, weight: str, tensors: Mapping[str, StoredTensor]) -> bool:
    """Whether floats with this ending belong to packed numbers, and are no weights of their own."""
    if mark.startswith("_") and weight in tensors and weight.endswith(".weight"):
        return True
    packing = next(each for each in PACKINGS if each.mark == mark)
    return any(tensors[name].dtype not in MERGEABLE_DTYPES for name in _list_parts(weight, (packing,), tensors))


def _is_no_weight(stored: StoredTensor, told: Packing | None) -> bool:
    if stored.dtype in MERGEABLE_DTYPES:
        return False
    return told is not None or stored.dtype.startswith("F") or stored.name.endswith(".weight")


def _list_parts(weight: str, packings: Sequence[Packing], tensors: Mapping[str, StoredTensor]) -> list[str]:
    stem = weight.removesuffix(".weight")
    names = [f"{weight if ending[0] == '_' else stem}{ending}" for packing in packings for ending in packing.endings]
    return [name for name in dict.fromkeys((weight, *names)) if name in tensors]


def _gather(
    found: Mapping[str, Packing], parts: Mapping[str, str], tensors: Mapping[str, StoredTensor], label: str
) -> dict[str, PackedWeight]:
    held: dict[str, list[str]] = {}
    for part, weight in parts.items():
        held.setdefault(weight, []).append(part)
    weights = {}
    for weight, names in held.items():
        # The numbers are the largest of them.
        names.sort(key=lambda name: (-tensors[name].nbytes, name))
        weights[weight] = PackedWeight(model=label, packing=found[weight], name=weight, stored=tuple(names))
    return {part: weights[weight] for part, weight in parts.items()}


def _name_weight(name: str, ending: str) -> str:
    stem = name[: -len(ending)]
    return stem if ending.startswith("_") else f"{stem}.weight"
