"""How layers of models of different depth meet."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.planning.conftest import decisions_of
from xmerge.planning.layer_map import spread

MERGE = "merge_method: slerp\nbase_model: A\nmodels: [{model: A}, {model: B}]\nparameters: {t: 0.5}\n"
depths = st.integers(min_value=1, max_value=200)


@given(depth=depths, donor_depth=depths)
def test_a_proportional_map_runs_from_end_to_end_without_turning_back(depth, donor_depth):
    """It never decreases, starts at the donor's first layer and ends at its last one."""
    column = [spread(layer, depth, donor_depth) for layer in range(depth)]
    assert column == sorted(column)
    assert column[0] == 0
    assert column[-1] == donor_depth - 1 or depth == 1
    assert set(column) <= set(range(donor_depth))


def test_half_way_between_two_layers_the_later_one_meets():
    """Ties have a rule, so that nobody's rounding decides."""
    assert [spread(layer, 3, 4) for layer in range(3)] == [0, 2, 3]


@given(depth=depths)
def test_a_proportional_map_of_equal_depths_changes_nothing(depth):
    """Layers of the same number meet."""
    assert [spread(layer, depth, depth) for layer in range(depth)] == list(range(depth))


@given(depth=st.integers(min_value=2, max_value=100), donor_depth=depths)
def test_a_proportional_map_is_never_half_a_layer_off(depth, donor_depth):
    """The donor's layer is the nearest one to the same share of the depth."""
    for layer in range(depth):
        exact = layer * (donor_depth - 1) / (depth - 1)
        assert abs(spread(layer, depth, donor_depth) - exact) <= 0.5


@pytest.fixture
def uneven(bench):
    """A base of 4 layers and a donor of 6."""
    bench.write("A", num_hidden_layers=4)
    bench.write("B", num_hidden_layers=6)
    return bench


def test_different_depths_need_a_map(uneven):
    """Nothing says which layers meet, so the plan is refused with both depths and both ways to say it."""
    error = uneven.refuse(MERGE)
    assert error.what == "A has 4 layers and B has 6."
    assert error.remedy == "set 'layer_map: proportional', or list pairs [base layer, donor layer]."


def test_a_proportional_map_keeps_the_base_s_depth(uneven):
    """The output is as deep as the base, whoever is deeper."""
    plan = uneven.plan(MERGE + "layer_map: proportional")
    assert plan.layer_map == ((0, 0), (1, 2), (2, 3), (3, 5))


def test_pairs_say_which_layers_meet_and_the_others_stay(uneven):
    """A base layer in no pair is the base's; a donor layer may meet several."""
    plan = uneven.plan(MERGE + "layer_map: [[0, 5], [2, 5]]")
    assert plan.layer_map == ((0, 5), (1, None), (2, 5), (3, None))
    for layer, decision in enumerate(["merge", "keep", "merge", "keep"]):
        assert decisions_of(plan, f"layers.{layer}.") == {decision}


def test_pairs_hold_for_models_of_equal_depth_too(bench):
    """Who lists pairs means them, also where numbers could match by themselves."""
    bench.write("A")
    bench.write("B")
    assert bench.plan(MERGE + "layer_map: [[3, 0]]").layer_map[0] == (0, None)


@pytest.mark.parametrize(
    ("pair", "told", "remedy"),
    [
        ("[4, 0]", "the pair [4, 0] names layer 4, and A has 4 layers.", "layers of A count from 0 to 3."),
        ("[0, 6]", "the pair [0, 6] names layer 6, and B has 6 layers.", "layers of B count from 0 to 5."),
    ],
)
def test_a_pair_out_of_range_is_refused(uneven, pair, told, remedy):
    """The refusal names the pair, its line, and the model that it is too large for."""
    error = uneven.refuse(MERGE + f"layer_map:\n- [1, 1]\n- {pair}\n")
    assert (error.what, error.where, error.remedy) == (told, "recipe.yml, line 7: layer_map[1]", remedy)
