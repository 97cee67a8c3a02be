"""The safetensors header: parsed strictly, and written the way the reference library writes it.

Format: https://github.com/huggingface/safetensors#format. An 8-byte little-endian length, a JSON object, the data.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from xmerge.checkpoints.untrusted import SMALL, UntrustedError, is_tensor_name, parse_object
from xmerge.errors import CheckpointError

MAX_HEADER_BYTES = SMALL.nbytes
MAX_RANK = 16

DTYPE_BITS = {
    "U64": 64, "I64": 64, "F64": 64, "C64": 64, "F32": 32, "U32": 32, "I32": 32,
    "BF16": 16, "F16": 16, "U16": 16, "I16": 16,
    "F8_E5M2FNUZ": 8, "F8_E4M3FNUZ": 8, "F8_E8M0": 8, "F8_E4M3": 8, "F8_E5M2": 8, "I8": 8, "U8": 8,
    "F6_E3M2": 6, "F6_E2M3": 6, "F4": 4, "BOOL": 8,
}  # fmt: skip
"""In the order in which the reference library writes tensors."""
DTYPE_BYTES = {name: bits // 8 for name, bits in DTYPE_BITS.items() if bits % 8 == 0}
MERGEABLE_DTYPES = ("BF16", "F16", "F32", "F64")
_TORCH_NAMES = {"BF16": "bfloat16", "F16": "float16", "F32": "float32", "F64": "float64"}
_WRITING_ORDER = {dtype: place for place, dtype in enumerate(DTYPE_BITS)}


class HeaderEntry(NamedTuple):
    """One tensor of a header; offsets count from the start of the data."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


def dtype_of(torch_name: str) -> str:
    """`bfloat16` as the header's `BF16`."""
    return {name: dtype for dtype, name in _TORCH_NAMES.items()}[torch_name]


def torch_name_of(dtype: str) -> str:
    """The header's `BF16` as `bfloat16`; other dtypes as they are."""
    return _TORCH_NAMES.get(dtype, dtype)


def parse_header(raw: bytes, file_size: int, file: str) -> tuple[HeaderEntry, ...]:
    """The tensors of a safetensors file, in the order of their data.

    Args:
        raw: The first bytes of the file: the length and the whole header.
        file_size: Bytes in the whole file.
        file: What errors call the file.

    Raises:
        CheckpointError: The header breaks the format, or does not agree with the file's size.
    """
    length = read_header_length(raw[:8], file_size, file)
    text = raw[8 : 8 + length]
    if len(text) < length or not text.startswith(b"{"):
        raise damaged(file, "its header does not start with '{' or is cut off")
    try:
        data = parse_object(text)
    except UntrustedError as error:
        raise damaged(file, f"its header {error}") from None
    _check_metadata(data.pop("__metadata__", {}), file)
    entries = [_parse_entry(name, value, file) for name, value in data.items()]
    entries.sort(key=lambda entry: (entry.begin, entry.end, entry.name))
    _check_layout(entries, file_size - 8 - length, file)
    return tuple(entries)


def read_header_length(raw: bytes, file_size: int, file: str) -> int:
    """The length of the JSON that follows the first 8 bytes.

    Raises:
        CheckpointError: It cannot be the length of this file's header.
    """
    if len(raw) < 8:
        raise damaged(file, f"it has {file_size} bytes; a safetensors file has at least 8")
    length = int.from_bytes(raw, "little")
    if length > MAX_HEADER_BYTES or length > file_size - 8:
        raise damaged(file, f"its header claims {length} bytes, and the file has {file_size}")
    return length


def build_header(tensors: Iterable[tuple[str, str, Sequence[int]]]) -> tuple[bytes, tuple[HeaderEntry, ...]]:
    """The first bytes of a file that holds these (name, dtype, shape), and where the data of each goes.

    By dtype, wide ones first, then by name, and the header is padded to 8 bytes, as the reference library does.
    """
    ordered = sorted(tensors, key=lambda tensor: (_WRITING_ORDER[tensor[1]], tensor[0]))
    entries, begin = [], 0
    for name, dtype, shape in ordered:
        end = begin + size_of(dtype, shape)
        entries.append(HeaderEntry(name, dtype, tuple(shape), begin, end))
        begin = end
    data: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    for entry in entries:
        data[entry.name] = {"dtype": entry.dtype, "shape": list(entry.shape), "data_offsets": [entry.begin, entry.end]}
    text = json.dumps(data, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text, tuple(entries)


def size_of(dtype: str, shape: Sequence[int]) -> int:
    """Bytes of a tensor."""
    return math.prod(shape) * DTYPE_BITS[dtype] // 8


def damaged(file: str, why: str) -> CheckpointError:
    """The error for a file that breaks its format."""
    return CheckpointError(
        f"{file} is damaged or no safetensors file.", why=f"{why}.", remedy="fetch or write the file again."
    )


def _check_metadata(metadata: Any, file: str) -> None:
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise damaged(file, "its __metadata__ is no mapping of texts")


def _parse_entry(name: str, value: Any, file: str) -> HeaderEntry:
    if not is_tensor_name(name):
        raise damaged(file, f"{name[:80]!r} is no name for a tensor")
    try:
        dtype, shape, (begin, end) = value["dtype"], value["shape"], value["data_offsets"]
    except (TypeError, KeyError, ValueError):
        raise damaged(file, f"the entry of {name} has no dtype, shape and data_offsets") from None
    if not isinstance(dtype, str) or dtype not in DTYPE_BITS:
        raise damaged(file, f"{name} has the unknown dtype {str(dtype)[:40]!r}")
    if not isinstance(shape, list) or len(shape) > MAX_RANK or not all(map(_is_size, (*shape, begin, end))):
        raise damaged(file, f"the shape or offsets of {name} are no sizes")
    if (end - begin) * 8 != math.prod(shape) * DTYPE_BITS[dtype]:
        raise damaged(file, f"{name} ({dtype} {shape}) does not fit into its {end - begin} bytes")
    return HeaderEntry(name, dtype, tuple(shape), begin, end)


def _is_size(number: Any) -> bool:
    return type(number) is int and 0 <= number < 2**63


def _check_layout(entries: list[HeaderEntry], data_size: int, file: str) -> None:
    position = 0
    for entry in entries:
        if entry.begin != position:
            fault = "overlaps the tensor before it" if entry.begin < position else "leaves a hole before it"
            raise damaged(file, f"{entry.name} {fault}")
        position = entry.end
    if position != data_size:
        raise damaged(file, f"its tensors take {position} bytes and it holds {data_size} bytes of data")
