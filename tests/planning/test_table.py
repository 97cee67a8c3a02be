"""The plan as a person reads it."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.fake_checkpoints import write_headers
from xmerge.planning import PLAN_COLUMNS, draw_plan, summarize_plan, tell_layer_map
from xmerge.planning.table import show_bytes, show_ranges, tell_layers

SLERP = "merge_method: slerp\nbase_model: A\nmodels: [{model: A}, {model: B}]\n"


def rows_of(plan, component):
    """The rows of a component, as mappings."""
    return [
        row
        for row in (dict(zip(PLAN_COLUMNS, row, strict=True)) for row in draw_plan(plan))
        if row["component"] == component
    ]


@given(st.sets(st.integers(min_value=0, max_value=300)))
def test_ranges_can_be_read_back(numbers):
    """Every number stands in exactly one range, in order, and neighbours share one."""
    text = show_ranges(numbers)
    ranges = [[int(end) for end in part.split("-")] for part in text.split(", ") if part]
    assert [n for part in ranges for n in range(part[0], part[-1] + 1)] == sorted(numbers)
    assert all(before[-1] + 1 < after[0] for before, after in pairwise(ranges))


@pytest.mark.parametrize(("layers", "told"), [([4], "layer 4"), ([4, 5], "layers 4-5"), ([4, 6], "layers 4, 6")])
def test_one_layer_is_spoken_of_as_one(layers, told):
    """The word agrees with the number."""
    assert tell_layers(layers) == told


def test_ranges_show_each_number_once():
    """A layer that several tensors are in is one layer."""
    assert show_ranges([3, 0, 1, 1, 2, 7, 3]) == "0-3, 7"


def test_bytes_have_three_figures_and_a_decimal_unit():
    """Sizes are read at a glance."""
    assert [show_bytes(each) for each in (0, 999, 1000, 16_060_522_496, 2e15)] == [
        "0 B",
        "999 B",
        "1 kB",
        "16.1 GB",
        "2e+03 TB",
    ]


def test_a_row_for_each_component_and_treatment(bench):
    """Layers treated alike share a row, however many they are; the reason stands beside it."""
    bench.write("A", num_hidden_layers=6)
    bench.write("B", num_hidden_layers=6)
    plan = bench.plan(
        SLERP + "parameters: {t: [{filter: q_proj, value: 0.3}]}\nlayer_map: [[0, 1], [2, 3], [4, 5], [5, 5]]"
    )
    assert rows_of(plan, "attn_q") == [
        {
            "component": "attn_q",
            "layers": "0, 2, 4-5",
            "tensors": "4",
            "size": "1.02 kB",
            "what": "slerp t=0.3",
            "class": "A",
            "from": "A + B",
            "why": "",
        },
        {
            "component": "attn_q",
            "layers": "1, 3",
            "tensors": "2",
            "size": "512 B",
            "what": "keep",
            "class": "-",
            "from": "A",
            "why": "B has no layer that meets this one",
        },
    ]
    assert [row["why"] for row in rows_of(plan, "ffn_up")] == ["'t' has no value for it"]


def test_values_that_change_are_shown_from_first_to_last(bench):
    """A rising or falling gradient shows its ends, any other the span it keeps to."""
    bench.write("A", num_hidden_layers=5)
    bench.write("B", num_hidden_layers=5)
    shown = {}
    for gradient in ("[0.1, 0.5]", "[0.5, 0.1]", "[0.1, 0.5, 0.1]", "0.25"):
        plan = bench.plan(SLERP + f"parameters: {{t: [{{filter: q_proj, value: {gradient}}}]}}")
        shown[gradient] = rows_of(plan, "attn_q")[0]["what"]
    assert shown == {
        "[0.1, 0.5]": "slerp t=0.1..0.5",
        "[0.5, 0.1]": "slerp t=0.5..0.1",
        "[0.1, 0.5, 0.1]": "slerp t=0.1 to 0.5",
        "0.25": "slerp t=0.25",
    }


def test_every_input_shows_its_own_value(bench):
    """A parameter of each model is a list of values, each with its own span; defaults are not shown."""
    bench.write("A")
    bench.write("B")
    plan = bench.plan(
        "merge_method: linear\nmodels: [{model: A, parameters: {weight: 1}}, {model: B, parameters: {weight: [1, 3]}}]"
    )
    assert rows_of(plan, "attn_q")[0]["what"] == "linear weight=(1, 1..3)"


def test_conversions_and_absences_are_told_once(bench):
    """Steps and missing counterparts stand in the row, without repeating themselves."""
    bench.write("A", "qwen3")
    bench.write("B", "phi3")
    plan = bench.plan(SLERP + "parameters: {t: 0.5}")
    assert rows_of(plan, "attn_k_norm")[0]["why"] == "B (phi3) has no attn_k_norm"
    assert rows_of(plan, "attn_v")[0]["why"] == "attn_v taken out of model.layers.{layer}.self_attn.qkv_proj.weight"


def test_the_summary_counts_everything_once(bench):
    """Tensors by decision, bytes read, copied and written, and the fingerprint."""
    bench.write("A")
    bench.write("B")
    plan = bench.plan(SLERP + "parameters: {t: [{filter: q_proj, value: 0.3}, {filter: k_proj, value: 1}]}")
    summary = dict(summarize_plan(plan))
    assert summary["tensors"] == "39: 4 merge, 4 copy, 31 keep"
    assert summary["layers"] == "4"
    assert summary["read for arithmetic"] == show_bytes(4 * 16 * 8 * 2 * 2 * 2)
    assert summary["computed"] == "512 numbers"
    assert summary["written"] == show_bytes(plan.bytes_written)
    assert summary["fingerprint"] == plan.fingerprint


def test_experts_are_one_component(bench):
    """A model of many experts is drawn in as few rows as any other."""
    experts = {
        f"model.layers.{layer}.mlp.experts.{expert}.{part}_proj.weight": ("BF16", (4, 4))
        for layer in range(4)
        for expert in range(500)
        for part in ("up", "down")
    }
    for name in "AB":
        write_headers(bench.folder / name, {"model_type": "unheard-of-moe", "num_hidden_layers": 4}, experts)
    plan = bench.plan(SLERP + "parameters: {t: 0.5}")
    assert [row[:3] for row in draw_plan(plan)] == [
        ("model.layers.{layer}.mlp.experts.*.down_proj.weight", "0-3", "2000"),
        ("model.layers.{layer}.mlp.experts.*.up_proj.weight", "0-3", "2000"),
    ]


def test_values_that_read_alike_are_one(bench):
    """A gradient whose numbers do not differ in what is shown is shown as one number."""
    for name in ("base", "donor"):
        bench.write(name)
    recipe = "merge_method: slerp\nbase_model: base\nmodels: [{model: base}, {model: donor}]\n"
    plan = bench.plan(recipe + "parameters: {t: [0.2, 0.2000001]}\n")
    assert {row[4] for row in draw_plan(plan) if row[0] == "attn_q"} == {"slerp t=0.2"}


def test_the_layer_map_is_told_in_runs_where_layers_of_other_numbers_meet(bench):
    """Layers that meet at one distance are one run; a model whose layers meet their like is not mentioned."""
    bench.write("A")
    bench.write("B", num_hidden_layers=6)
    bench.write("C")
    text = "merge_method: linear\nmodels: [{model: A}, {model: B}, {model: C}]\nparameters: {weight: 1}\n"
    assert list(tell_layer_map(bench.plan(text + "layer_map: proportional"))) == ["B: 0 <- 0, 1-2 <- 2-3, 3 <- 5"]
    pairs = text + "layer_map: [[0, 1], [1, 2], [3, 3]]"
    assert next(tell_layer_map(bench.plan(pairs))) == "B: 0-1 <- 1-2, 3 <- 3"
