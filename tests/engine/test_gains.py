"""Folds: a scale or the gain of a norm goes into a donor's weights as they are read, and into nothing else."""

from __future__ import annotations

import math
import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from tests.engine.bench import Bench, draw
from tests.small_merges import load_weights, run, write_model
from xmerge.engine import gains
from xmerge.engine.blocks import Buffers, SourceReader
from xmerge.engine.gains import read_factors
from xmerge.engine.reading import OpenSources
from xmerge.errors import CheckpointError
from xmerge.planning.plan import Gain, MergePlan, Segment

CPU = torch.device("cpu")
ROWS, COLUMNS = 6, 10
NAMED: dict[str, dict[str, Any]] = {
    "linear": {"weight": (0.3, 0.7)},
    "slerp": {"t": 0.3},
    "task_arithmetic": {"weight": (0.0, 0.4), "lambda": 0.9},
}


def make_norm(seed: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Gains between a half and two, of either sign."""
    drawn = draw(seed, COLUMNS, torch.float64)
    return (drawn.sign() * drawn.abs().clamp(0.5, 2.0)).to(dtype)


def fold(bench: Bench, **changes: Any) -> Gain:
    """The gain of the donor's norm over the base's; each model's second piece is its norm."""
    base, donor = (bench.source(number).segments[1] for number in (0, 1))
    told = {"donor": donor, "base": base, "base_model": 0, "base_pin": "pin0", "donor_shift": 0.0, "base_shift": 0.0}
    return Gain.model_validate({**told, "length": COLUMNS, "stride": 1, **changes})


@contextmanager
def open_pair(base: torch.Tensor, donor: torch.Tensor) -> Iterator[tuple[Bench, OpenSources]]:
    """Two models of a matrix of ones and a norm."""
    with tempfile.TemporaryDirectory() as folder:
        ones = torch.ones(ROWS * COLUMNS)
        bench = Bench(Path(folder), [[ones, base], [ones, donor]])
        plan = bench.plan()
        with OpenSources(plan, plan.layers[0], bench.folders) as files:
            yield bench, files


@given(
    cuts=st.lists(st.integers(0, 2 * ROWS * COLUMNS), max_size=6),
    stride=st.sampled_from([1, 2, 3, ROWS]),
    wide=st.sampled_from([torch.float32, torch.float64]),
    most=st.sampled_from([1, 7, COLUMNS, 2**17]),
)
def test_every_element_is_multiplied_by_the_gain_of_its_column(cuts, stride, wide, most):
    """Rows, columns, or matrices one after another, in any blocks: each number times the gain that its column has."""
    elements = 2 * ROWS * COLUMNS if stride in (1, ROWS) else 2 * stride * COLUMNS
    norms = make_norm(1), make_norm(2)
    bounds = sorted({0, elements, *(min(cut, elements) for cut in cuts)})
    block = max(high - low for low, high in pairwise(bounds))
    out = torch.empty(elements, dtype=wide)
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(gains, "FOLDED_ELEMENTS", most)
        numbers = draw(3, elements, torch.float32)
        bench = Bench(Path(folder), [[numbers, norms[0]], [numbers, norms[1]]])
        plan = bench.plan()
        source = bench.source(1)
        source = source.model_copy(update={"segments": source.segments[:1], "gain": fold(bench, stride=stride)})
        with OpenSources(plan, plan.layers[0], bench.folders) as files:
            reader = SourceReader(source, files, Buffers(block, CPU))
            for low, high in pairwise(bounds):
                reader.read(low, out[low:high])
    columns = [place // stride % COLUMNS for place in range(elements)]
    expected = numbers.double() * (norms[1].double() / norms[0].double())[columns]
    torch.testing.assert_close(out.double(), expected, rtol=1e-15 if wide == torch.float64 else 2e-7, atol=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("shifts", [(0.0, 0.0), (1.0, 0.0), (0.0, 1.0), (1.0, 1.0)])
def test_a_gain_is_what_its_convention_says(dtype, shifts):
    """A norm that multiplies by 1 + w is folded as 1 + w, whichever side it is on."""
    base, donor = (make_norm(seed, dtype).abs() for seed in (1, 2))
    with open_pair(base, donor) as (bench, files):
        factors = read_factors(fold(bench, base_shift=shifts[0], donor_shift=shifts[1]), 1, files)
    assert factors.dtype == torch.float64
    torch.testing.assert_close(factors, (donor.double() + shifts[1]) / (base.double() + shifts[0]), rtol=0, atol=0)


@pytest.mark.parametrize("small", [0.0, 1e-5, -1e-5])
def test_a_gain_near_zero_is_not_divided_by(small):
    """The base's model, norm, element and gain, why, and the way out."""
    base = torch.ones(COLUMNS)
    base[[3, 7]] = small
    with open_pair(base, make_norm(2)) as (bench, files), pytest.raises(CheckpointError) as caught:
        read_factors(fold(bench), 1, files)
    assert str(caught.value) == (
        f"model0 has a gain of {small:.3g} in piece8, at element 3, and 'input_norm' would divide by it.\n"
        "  why: that is less than 0.0001 of its largest gain; the column would be blown up.\n"
        "  do: take input_norm out of 'folds'."
    )
    assert caught.value.exit_code == 3


def test_a_norm_of_zeros_is_not_divided_by():
    """Gains that are all 0 have no largest one to be small beside, and are refused all the same."""
    told = "model0 has a gain of 0 in piece8, at element 0"
    with open_pair(torch.zeros(COLUMNS), make_norm(2)) as (bench, files), pytest.raises(CheckpointError, match=told):
        read_factors(fold(bench), 1, files)


def test_a_gain_near_zero_of_the_donor_s_is_folded():
    """A column that the donor hardly reads becomes a column that is hardly read."""
    donor = make_norm(2)
    donor[4] = 0.0
    with open_pair(make_norm(1), donor) as (bench, files):
        assert read_factors(fold(bench), 1, files)[4] == 0.0


@pytest.mark.parametrize("number", [0, 1])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_norm_that_is_no_number_is_named(number, bad):
    """NaN or infinity in either norm is refused with its model and tensor, not with the matrix it would have spoilt."""
    norms = [make_norm(1), make_norm(2)]
    norms[number][5] = bad
    told = f"model{number} holds NaN or infinity in piece8, and 'input_norm' would fold it in."
    with open_pair(*norms) as (bench, files), pytest.raises(CheckpointError, match=re.escape(told)):
        read_factors(fold(bench), 1, files)


# --- whole merges --------------------------------------------------------------------------------------

TRANSPOSED = ((COLUMNS, 1, ROWS), (ROWS, COLUMNS, 1))


def plan_fold(bench: Bench, method: str, *, transposed: bool) -> MergePlan:
    """A plan that merges two matrices, with the donor's norm and a scale folded into the donor's.

    The output's rows are half from the donor's first rows, scaled by 3, and half from its last ones.
    """
    plan = bench.plan(method, **NAMED[method])
    base, donor = bench.source(0), bench.source(1)
    segments = split_rows(donor.segments[0], transposed=transposed)
    gain = fold(bench, stride=ROWS if transposed else 1)
    sources = (
        base.model_copy(update={"segments": base.segments[:1]}),
        donor.model_copy(update={"segments": segments, "gain": gain}),
    )
    tensor = plan.layers[0].tensors[0].model_copy(update={"shape": (ROWS * COLUMNS,), "sources": sources})
    return bench.plan_of([tensor])


def split_rows(whole: Segment, *, transposed: bool) -> tuple[Segment, Segment]:
    """The two halves of the rows of a matrix, the first one scaled; transposed, they are columns of the output."""
    half = ROWS // 2
    order = ((COLUMNS, 1, ROWS), (half, COLUMNS, 1)) if transposed else ()
    first = {"elements": half * COLUMNS, "order": order, "scale": 3.0}
    second = {
        "elements": half * COLUMNS,
        "order": order,
        "offset": whole.offset + half * COLUMNS * whole.nbytes // whole.elements,
        "at": half if transposed else half * COLUMNS,
    }
    return whole.model_copy(update=first), whole.model_copy(update=second)


def expect(method: str, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """The methods' formulas in float64."""
    if method == "linear":
        return 0.3 * x + 0.7 * y
    if method == "task_arithmetic":
        return x + 0.9 * 0.4 * (y - x)
    angle = math.acos(float((x * y).sum() / (x.norm() * y.norm())))
    return (math.sin(0.7 * angle) * x + math.sin(0.3 * angle) * y) / math.sin(angle)


@pytest.mark.parametrize("method", NAMED)
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("block", [1, 7, 2**17])
def test_a_merge_with_folds_is_the_formula_to_one_rounding(tmp_path, method, transposed, dtype, block):
    """Scale, gain and another order, all at once: the float64 formula on the folded weights, rounded once."""
    x, y = draw(1, ROWS * COLUMNS, dtype), draw(2, ROWS * COLUMNS, dtype)
    norms = make_norm(3, dtype), make_norm(4, dtype)
    bench = Bench(tmp_path, [[x, norms[0]], [y, norms[1]]])
    made, result = bench.combine(plan_fold(bench, method, transposed=transposed), block)
    folded = y.double().view(ROWS, COLUMNS) * (norms[1].double() / norms[0].double())
    folded[: ROWS // 2] *= 3.0
    donor = (folded.T if transposed else folded).reshape(-1)
    wanted = expect(method, x.double(), donor)
    allowed = torch.finfo(dtype).eps / 2 * wanted.abs() + 16 * torch.finfo(torch.float32).eps
    assert bool(((made.double() - wanted).abs() <= allowed).all())
    if method == "slerp":
        cosine = torch.nn.functional.cosine_similarity(x.double(), donor, dim=0)
        assert result.donor_cosines == pytest.approx((float(cosine),), abs=1e-6)
    measured = torch.nn.functional.cosine_similarity(made.double(), x.double(), dim=0)
    assert result.cosine == pytest.approx(float(measured), abs=2e-3 if dtype == torch.bfloat16 else 2e-5)


def test_a_number_that_is_none_is_blamed_on_the_matrix_it_stands_in(tmp_path):
    """Behind a reordering and a scale the element is the stored tensor's own."""
    y = draw(2, ROWS * COLUMNS)
    y[ROWS // 2 * COLUMNS + 13] = math.nan
    bench = Bench(tmp_path, [[draw(1, ROWS * COLUMNS), make_norm(3).bfloat16()], [y, make_norm(4).bfloat16()]])
    for method in ("linear", "slerp"):
        told = re.escape("model1 holds NaN or infinity in piece9, at element 43.")
        with pytest.raises(CheckpointError, match=told):
            bench.combine(plan_fold(bench, method, transposed=True), 7)


NORM = "post_attention_layernorm"
NORMS = {"cohere": "input_layernorm"}
"""What the feed-forward reads, where it is no norm of its own."""
FOLDED = """\
merge_method: {method}
base_model: base
models: [{{model: base}}, {{model: donor}}]
parameters: {{t: [{{filter: qkv_proj, value: 0.4}}, {{filter: gate_up_proj, value: 1}}, {{value: 0}}]}}
folds: [input_norm]
"""


def test_a_fused_tensor_takes_the_gain_of_each_column(tmp_path):
    """In one tensor for q, k and v, and in one for gate and up, every row reads the donor's norm for the base's."""
    write_model(tmp_path / "base", "phi3", seed=1)
    write_model(tmp_path / "donor", seed=2)
    make_gains_plain(tmp_path / "base")
    run(tmp_path, recipe=FOLDED.format(method="slerp"))
    made, base, donor = (load_weights(tmp_path / name) for name in ("out", "base", "donor"))
    for layer in range(4):
        before = f"model.layers.{layer}."
        for norm, fused, parts, t in (
            (
                "input_layernorm",
                "self_attn.qkv_proj",
                ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
                0.4,
            ),
            ("post_attention_layernorm", "mlp.gate_up_proj", ("mlp.gate_proj", "mlp.up_proj"), 1.0),
        ):
            norms = [weights[f"{before}{norm}.weight"].double() for weights in (donor, base)]
            y = torch.cat([donor[f"{before}{part}.weight"] for part in parts]).double() * (norms[0] / norms[1])
            x = base[f"{before}{fused}.weight"].double()
            angle = math.acos(float((x * y).sum() / (x.norm() * y.norm())))
            wanted = (math.sin((1 - t) * angle) * x + math.sin(t * angle) * y) / math.sin(angle)
            allowed = torch.finfo(torch.bfloat16).eps / 2 * wanted.abs() + 1e-5
            assert bool(((made[f"{before}{fused}.weight"].double() - wanted).abs() <= allowed).all())


@pytest.mark.parametrize(("base", "donor"), [("llama", "gemma"), ("gemma", "qwen3"), ("cohere", "cohere")])
def test_a_folded_matrix_gives_what_the_donor_s_gives(tmp_path, base, donor):
    """Behind the base's own norm it makes of any input what the donor's makes of it behind the donor's."""
    sizes = {"hidden_size": 16, "head_dim": 4}
    write_model(tmp_path / "base", base, seed=1, stored="F32", **sizes)
    write_model(tmp_path / "donor", donor, seed=2, stored="F32", **sizes)
    make_gains_plain(tmp_path / "base")
    recipe = FOLDED.format(method="slerp").replace("gate_up_proj", "gate_proj")
    run(tmp_path, recipe=recipe.replace("{filter: qkv_proj, value: 0.4}, ", ""))
    made, before, given = (load_weights(tmp_path / name) for name in ("out", "base", "donor"))
    x = draw(5, 7 * 16).view(7, 16).double() + 1.0
    centred = x - x.mean(-1, keepdim=True) if base == "cohere" else x
    normed = centred / centred.square().mean(-1, keepdim=True).sqrt()
    for layer in range(4):
        norm, gate = (f"model.layers.{layer}.{part}.weight" for part in (NORMS.get(base, NORM), "mlp.gate_proj"))
        theirs = f"model.layers.{layer}.{NORMS.get(donor, NORM)}.weight"
        ours, wanted = (
            (normed * (weights[name].double() + (family == "gemma"))) @ matrix.double().T
            for weights, name, family, matrix in (
                (before, norm, base, made[gate]),
                (given, theirs, donor, given[gate]),
            )
        )
        torch.testing.assert_close(ours, wanted, rtol=0, atol=1e-5 * float(wanted.abs().max()))
        assert not torch.equal(made[gate], given[gate])


def test_a_gain_near_zero_stops_the_merge(tmp_path):
    """Exit 3 in the words of the gain, and nothing is left: it is known before the first layer is made."""
    write_model(tmp_path / "base", "phi3", seed=1)
    write_model(tmp_path / "donor", seed=2)
    make_gains_plain(tmp_path / "base", zero="layers.2.input_layernorm")
    told = "base has a gain of 0 in model.layers.2.input_layernorm.weight, at element 5, and 'input_norm' would divide"
    with pytest.raises(CheckpointError, match=re.escape(told)):
        run(tmp_path, recipe=FOLDED.format(method="slerp"), workers=1)
    assert sorted(os.listdir(tmp_path)) == ["base", "donor"]


def make_gains_plain(folder: Path, zero: str = "none") -> None:
    """Norms away from zero, but for one element of the norm that has a name with a part."""
    path = folder / "model.safetensors"
    weights = load_weights(folder)
    for name, tensor in weights.items():
        if "layernorm" in name:
            tensor.copy_(tensor.sign() * tensor.abs().clamp(0.5, 2.0))
            tensor[5] *= 0.0 if zero in name else 1.0
    save_file(weights, path, {"format": "pt"})
