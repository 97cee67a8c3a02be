"""What the engine makes of every merge method, whichever it is; a new one is tested here without being named."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.engine.bench import Bench, draw, same_bits
from tests.small_merges import digest_files, write_model
from xmerge.config import parse_config
from xmerge.errors import InvalidMergeError, PlanError
from xmerge.methods import MergeMethod, list_methods
from xmerge.run import merge

METHODS = list_methods()
IDS = [method.name for method in METHODS]
SETTINGS = settings(max_examples=8, deadline=None)
USUAL = {"weight": 0.5, "density": 0.6, "t": 0.3, "epsilon": 0.1, "gamma": 0.1, "scale": 1.0, "lambda": 1.0}
"""A value for the parameters that have no default, and for those whose default leaves everything as it is."""


def count_of(method: MergeMethod, donors: int) -> int:
    """How many inputs a method takes, with so many donors if it takes so many."""
    least, most = method.inputs
    wanted = max(least, donors + (method.base == "required"))
    return wanted if most is None else min(wanted, most)


def parameters_of(method: MergeMethod, count: int) -> dict[str, Any]:
    """The usual value of every parameter; a half, or the nearest in its range, for what no method here has."""
    usual: dict[str, Any] = {}
    for each in method.parameters:
        value = each.default
        if value is None or each.name == "density":
            value = USUAL.get(each.name, 0.5)
        value = min(max(value, each.range.least), each.range.most)
        usual[each.name] = (value,) * count if each.per_model else value
    return usual


def run(method: MergeMethod, tensors: Sequence[torch.Tensor], block: int | None = None) -> torch.Tensor:
    """What the engine makes of some tensors."""
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder), tensors)
        plan = bench.plan(method.name, **parameters_of(method, len(tensors)))
        return bench.combine(plan, block)[0]


@pytest.mark.parametrize("method", METHODS, ids=IDS)
@given(donors=st.integers(1, 5), elements=st.integers(1, 40), seed=st.integers(0, 99))
@SETTINGS
def test_a_model_merged_with_itself_is_itself(method: MergeMethod, donors: int, elements: int, seed: int):
    """Equal inputs come back bit for bit, however many there are."""
    tensor = draw(seed, elements)
    if method.name == "linear" or method.base == "required" or method.is_rule:
        assert same_bits(run(method, [tensor] * count_of(method, donors)), tensor)
    else:
        made = run(method, [tensor] * count_of(method, donors))
        torch.testing.assert_close(made, tensor, rtol=1e-2, atol=0)


@pytest.mark.parametrize("method", METHODS, ids=IDS)
@given(donors=st.integers(1, 5), elements=st.integers(1, 300), seed=st.integers(0, 99), wide=st.booleans())
@SETTINGS
def test_the_output_is_finite_and_of_the_base_s_shape_and_dtype(
    method: MergeMethod, donors: int, elements: int, seed: int, wide: bool
):
    """Whatever the inputs are, there is one finite number for each of the base's, in its dtype."""
    dtype = torch.float32 if wide else torch.bfloat16
    tensors = [draw(seed + number, elements, dtype) for number in range(count_of(method, donors))]
    made = run(method, tensors)
    assert (made.shape, made.dtype) == (tensors[0].shape, dtype)
    assert torch.isfinite(made).all()


@pytest.mark.parametrize("method", METHODS, ids=IDS)
@pytest.mark.parametrize("value", [0.0, 1.0, -0.5])
def test_constant_tensors_are_merged_like_others(method: MergeMethod, value: float):
    """A base that is constant, zero among others, and donors that differ from it everywhere or nowhere."""
    count = count_of(method, 2)
    for tensors in ([torch.full((6,), value)] * count, [torch.full((6,), value + number) for number in range(count)]):
        try:
            assert torch.isfinite(run(method, tensors)).all()
        except (InvalidMergeError, PlanError) as error:
            # What has no direction has no mean on the sphere; that is told, and never a traceback.
            assert error.what  # noqa: PT017


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS, ids=IDS)
@given(donors=st.integers(1, 3), elements=st.integers(1, 200), seed=st.integers(0, 99))
@SETTINGS
def test_the_size_of_blocks_decides_nothing(method: MergeMethod, donors: int, elements: int, seed: int):
    """Blocks of 1, of 7 and of 2**18 elements give the same numbers, to the last rounding of float32."""
    tensors = [draw(seed + number, elements, torch.float32) for number in range(count_of(method, donors))]
    whole = run(method, tensors)
    for block in (1, 7):
        torch.testing.assert_close(run(method, tensors, block), whole, rtol=1e-6, atol=1e-7)


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS, ids=IDS)
def test_the_number_of_workers_decides_no_byte(method: MergeMethod, tmp_path: Path):
    """One worker and four write the same files."""
    count = count_of(method, 2)
    names = [f"model{number}" for number in range(count)]
    for number, name in enumerate(names):
        write_model(tmp_path / name, seed=number)
    models = ", ".join(f"{{model: {name}}}" for name in names)
    base = "base_model: model0\n" if method.base == "required" else ""
    usual = parameters_of(method, count)
    given_ = ", ".join(
        f"{each.name}: {usual[each.name][0] if each.per_model else usual[each.name]}" for each in method.parameters
    )
    text = f"merge_method: {method.name}\n{base}models: [{models}]\nparameters: {{{given_}}}\n"
    for workers in (1, 4):
        merge(parse_config(text, "recipe.yml", tmp_path), tmp_path / f"out{workers}", workers=workers, trial=False)
    assert digest_files(tmp_path / "out1") == digest_files(tmp_path / "out4")
