"""The safetensors header: ours is the reference library's, and nothing damaged is read."""

import json
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save

from xmerge.checkpoints.headers import DTYPE_BITS, MAX_RANK, HeaderEntry, build_header, dtype_of, parse_header, size_of
from xmerge.checkpoints.headers import torch_name_of as name_of
from xmerge.errors import CheckpointError

TORCH_DTYPES = {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "F8_E5M2": torch.float8_e5m2,
    "F8_E4M3": torch.float8_e4m3fn,
    "I16": torch.int16,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I32": torch.int32,
    "F32": torch.float32,
    "I64": torch.int64,
    "F64": torch.float64,
    "C64": torch.complex64,
}
FLAT = {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}

names = st.from_regex(r"[A-Za-z0-9_][!-~]{0,20}", fullmatch=True).filter(lambda name: name != "__metadata__")
shapes = st.lists(st.integers(0, 5), max_size=3)
tensor_sets = st.dictionaries(names, st.tuples(st.sampled_from(sorted(TORCH_DTYPES)), shapes), max_size=8)


def file_of(header: Any, data: int = 0) -> bytes:
    """A safetensors file with this header, as an object or as text, and so many bytes of data."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + bytes(data)


def parse(raw: bytes) -> tuple[HeaderEntry, ...]:
    """What a file of these bytes holds."""
    return parse_header(raw, len(raw), "a.safetensors")


def refuse(raw: bytes) -> str:
    """Why a file of these bytes is refused."""
    with pytest.raises(CheckpointError) as caught:
        parse(raw)
    assert caught.value.what == "a.safetensors is damaged or no safetensors file."
    assert caught.value.remedy == "fetch or write the file again."
    return str(caught.value.why)


@given(tensor_sets)
def test_our_header_is_the_reference_library_s(tensors: dict[str, tuple[str, list[int]]]):
    """For any set of tensors, the header written here is byte for byte the one that the reference library writes."""
    header, entries = build_header((name, dtype, shape) for name, (dtype, shape) in tensors.items())
    made = {name: torch.zeros(shape, dtype=TORCH_DTYPES[dtype]) for name, (dtype, shape) in tensors.items()}
    reference = save(made, {"format": "pt"})
    assert reference == header + bytes(len(reference) - len(header))
    assert len(reference) - len(header) == sum(entry.end - entry.begin for entry in entries)


@given(tensor_sets)
def test_a_header_reads_what_it_writes(tensors: dict[str, tuple[str, list[int]]]):
    """The tensors read from a header are those it was written for, each in the place it was given."""
    header, entries = build_header((name, dtype, shape) for name, (dtype, shape) in tensors.items())
    size = len(header) + sum(size_of(dtype, shape) for dtype, shape in tensors.values())
    read = parse_header(header, size, "a.safetensors")
    assert sorted(read) == sorted(entries)
    assert {entry.name: (entry.dtype, list(entry.shape)) for entry in read} == tensors


@given(tensor_sets, st.randoms(use_true_random=False))
def test_the_order_in_which_tensors_are_named_does_not_matter(tensors: dict[str, Any], chance: Any):
    """The bytes of a header depend on the set of tensors alone."""
    told = [(name, dtype, shape) for name, (dtype, shape) in tensors.items()]
    shuffled = chance.sample(told, len(told))
    assert build_header(shuffled) == build_header(told)


@given(tensor_sets, st.data())
def test_a_header_with_a_byte_changed_is_refused_or_still_covers_its_file(tensors: dict[str, Any], draw: st.DataObject):
    """Whatever byte of a header is changed, it is refused, or its tensors still lie end to end over all of the data."""
    header, entries = build_header((name, dtype, shape) for name, (dtype, shape) in tensors.items())
    raw = bytearray(header + bytes(max((entry.end for entry in entries), default=0)))
    place = draw.draw(st.integers(0, len(header) - 1))
    raw[place] = draw.draw(st.integers(0, 255))
    try:
        read = parse(bytes(raw))
    except CheckpointError:
        return
    assert [(entry.begin, entry.end) for entry in read] == sorted((entry.begin, entry.end) for entry in entries)
    assert all(entry.end - entry.begin == size_of(entry.dtype, entry.shape) for entry in read)


@given(tensor_sets, st.integers(1, 40))
def test_a_file_that_was_cut_off_is_refused(tensors: dict[str, Any], missing: int):
    """A file that lacks its last bytes is never read as a whole one."""
    header, entries = build_header((name, dtype, shape) for name, (dtype, shape) in tensors.items())
    raw = header + bytes(max((entry.end for entry in entries), default=0))
    refuse(raw[: max(len(raw) - missing, 0)])


@given(st.binary(max_size=200))
def test_any_bytes_are_a_header_or_refused(raw: bytes):
    """Whatever the bytes, reading them as a file gives tensors or a CheckpointError."""
    for each in (raw, file_of(b"{" + raw)):
        try:
            parse(each)
        except CheckpointError:
            continue


json_values = st.recursive(
    st.one_of(
        st.none(), st.booleans(), st.integers(-2, 30), st.floats(), st.text(max_size=3), st.sampled_from(["F32"])
    ),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=3), inner, max_size=3)),
    max_leaves=6,
)
entry_like = st.fixed_dictionaries({"dtype": json_values, "shape": json_values, "data_offsets": json_values})


@given(st.dictionaries(names, st.one_of(json_values, entry_like, st.just(FLAT)), min_size=1, max_size=3))
def test_any_json_is_a_header_or_refused(header: dict[str, Any]):
    """Whatever JSON a header holds, reading it gives tensors or a CheckpointError."""
    try:
        parse(file_of(header, 24))
    except CheckpointError:
        return


@pytest.mark.parametrize(
    ("raw", "why"),
    [
        (b"", "it has 0 bytes; a safetensors file has at least 8."),
        (b"\x01" * 7, "it has 7 bytes; a safetensors file has at least 8."),
        (b"\xff" * 8 + b"{}", "its header claims 18446744073709551615 bytes, and the file has 10."),
        (b"\x03" + bytes(7) + b"{}", "its header claims 3 bytes, and the file has 10."),
        (file_of(b""), "its header does not start with '{' or is cut off."),
        (file_of(b"[]"), "its header does not start with '{' or is cut off."),
        (file_of(b" {}"), "its header does not start with '{' or is cut off."),
        (file_of(b"{}}"), "its header is not JSON."),
        (file_of(b'{"a": \xff}'), "its header is not JSON."),
        (file_of(b'{"a":' * 5000 + b"1" + b"}" * 5000), "its header is not JSON."),
        (file_of(b'{"a": ' + b"9" * 5000 + b"}"), "its header is not JSON."),
        (file_of(b'{"a": 1, "a": 1}'), "its header has the key 'a' twice."),
        (file_of(b'{"a": {"dtype": "F32", "dtype": "F32"}}'), "its header has the key 'dtype' twice."),
        (file_of({"a": 1}), "the entry of a has no dtype, shape and data_offsets."),
        (file_of({"a": {"dtype": "F32", "shape": [1]}}), "the entry of a has no dtype, shape and data_offsets."),
        (file_of({"a": FLAT | {"data_offsets": [0]}}), "the entry of a has no dtype, shape and data_offsets."),
        (file_of({"a": FLAT | {"data_offsets": 3}}), "the entry of a has no dtype, shape and data_offsets."),
        (file_of({"a": FLAT | {"dtype": "F33"}}), "a has the unknown dtype 'F33'."),
        (file_of({"a": FLAT | {"dtype": []}}), "a has the unknown dtype '[]'."),
        (file_of({"a": FLAT | {"shape": [2, -3]}}), "the shape or offsets of a are no sizes."),
        (file_of({"a": FLAT | {"shape": [2.0, 3]}}), "the shape or offsets of a are no sizes."),
        (file_of({"a": FLAT | {"shape": [True, 6]}}), "the shape or offsets of a are no sizes."),
        (file_of({"a": FLAT | {"shape": {}}}), "the shape or offsets of a are no sizes."),
        (file_of({"a": FLAT | {"shape": 6}}), "the shape or offsets of a are no sizes."),
        (file_of({"a": FLAT | {"shape": [1] * (MAX_RANK + 1)}}), "the shape or offsets of a are no sizes."),
        (file_of({"a": FLAT | {"data_offsets": ["0", "1"]}}), "the shape or offsets of a are no sizes."),
        (file_of({"a": FLAT | {"shape": [2, 4]}}, 24), "a (F32 [2, 4]) does not fit into its 24 bytes."),
        (file_of({"a": FLAT | {"data_offsets": [24, 0]}}, 24), "a (F32 [2, 3]) does not fit into its -24 bytes."),
        (
            file_of({"a": {"dtype": "F4", "shape": [1], "data_offsets": [0, 0]}}),
            "a (F4 [1]) does not fit into its 0 bytes.",
        ),
        (
            file_of({"a": FLAT | {"shape": [2**62, 2**62, 2**62]}}, 24),
            f"a (F32 {[2**62] * 3}) does not fit into its 24 bytes.",
        ),
        (file_of({"a": FLAT, "b": FLAT}, 24), "b overlaps the tensor before it."),
        (file_of({"a": FLAT, "b": FLAT | {"data_offsets": [25, 49]}}, 49), "b leaves a hole before it."),
        (file_of({"a": FLAT | {"data_offsets": [1, 25]}}, 25), "a leaves a hole before it."),
        (file_of({"a": FLAT}, 23), "its tensors take 24 bytes and it holds 23 bytes of data."),
        (file_of({"a": FLAT}, 25), "its tensors take 24 bytes and it holds 25 bytes of data."),
        (file_of({"__metadata__": []}), "its __metadata__ is no mapping of texts."),
        (file_of({"__metadata__": {"format": 1}}), "its __metadata__ is no mapping of texts."),
        (file_of(b'{"a": [' + b"0," * 750_000 + b"0]}"), "its header holds more than 750,000 values."),
        (file_of(b"{" + b'"a":0,' * 400_000 + b'"a":0}'), "its header holds more than 400,000 keys."),
        (file_of({"": FLAT}, 24), "'' is no name for a tensor."),
        (file_of({"../a": FLAT}, 24), "'../a' is no name for a tensor."),
        (file_of({"a b": FLAT}, 24), "'a b' is no name for a tensor."),
        (file_of({"a\n": FLAT}, 24), "'a\\n' is no name for a tensor."),
        (file_of({"gew\u00ef": FLAT}, 24), "'gew\u00ef' is no name for a tensor."),
        (file_of({"a" * 513: FLAT}, 24), f"'{'a' * 80}' is no name for a tensor."),
    ],
    ids=range(45),
)
def test_a_damaged_header_is_refused_with_the_reason(raw: bytes, why: str):
    """Whatever is wrong with a header, the file, the fault and the remedy are named."""
    assert refuse(raw) == why


@pytest.mark.slow
def test_a_mixture_of_experts_in_one_file_is_read():
    """The header of ninety thousand tensors, as the largest mixtures of experts have them, is within the bounds."""
    names = [
        f"model.layers.{layer}.mlp.experts.{expert}.{part}_proj.weight"
        for layer in range(60)
        for expert in range(500)
        for part in ("gate", "up", "down")
    ]
    header = {
        name: {"dtype": "BF16", "shape": [1, 2], "data_offsets": [4 * place, 4 * place + 4]}
        for place, name in enumerate(names)
    }
    assert len(parse(file_of(header, 4 * len(names)))) == 90_000


def test_empty_tensors_may_share_a_place():
    """A tensor without elements takes no room, and so may begin where another one begins."""
    empty = {"dtype": "F32", "shape": [0, 3], "data_offsets": [0, 0]}
    assert [entry.name for entry in parse(file_of({"b": FLAT, "a": empty, "c": empty}, 24))] == ["a", "c", "b"]


def test_tensors_are_given_in_the_order_of_their_data():
    """A file is read from its beginning to its end, whatever the order of its header."""
    late = FLAT | {"data_offsets": [24, 48]}
    assert [entry.name for entry in parse(file_of({"b": late, "a": FLAT}, 48))] == ["a", "b"]


def test_dtypes_go_by_two_names():
    """A dtype that a merge can be written in has a name in headers and one in torch, and either gives the other."""
    for torch_name in ("bfloat16", "float16", "float32", "float64"):
        assert name_of(dtype_of(torch_name)) == torch_name
        assert torch.finfo(getattr(torch, torch_name)).bits == DTYPE_BITS[dtype_of(torch_name)]
    assert name_of("I64") == "I64"


@pytest.mark.parametrize("dtype", sorted(TORCH_DTYPES))
def test_sizes_are_torch_s(dtype: str):
    """A tensor takes as many bytes in a file as in memory."""
    made = torch.zeros(3, 5, dtype=TORCH_DTYPES[dtype])
    assert size_of(dtype, made.shape) == made.numel() * made.element_size()
