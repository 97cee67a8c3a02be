"""What a parameter is worth for a tensor: gradients, filters, and who comes before whom."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.planning.conftest import decisions_of, tensors_of

SLERP = "merge_method: slerp\nbase_model: A\nmodels: [{model: A}, {model: B}]\n"


def value_of(plan, name, parameter="t"):
    """What a parameter is for an output tensor."""
    return dict(tensors_of(plan)[name].parameters)[parameter]


def up(layer):
    """The name of a layer's up projection."""
    return f"model.layers.{layer}.mlp.up_proj.weight"


@pytest.fixture
def pair(bench):
    """Two Llamas of five layers."""
    bench.write("A", num_hidden_layers=5)
    bench.write("B", num_hidden_layers=5)
    return bench


def test_a_gradient_runs_over_the_layers(pair):
    """Values are interpolated at k/(L-1), with the check values of mergekit for 40 layers."""
    for name in "AB":
        pair.write(name, num_hidden_layers=40)
    plan = pair.plan(SLERP + "parameters: {t: [0.01, 0.5, 0.3, 0.7, 0.99]}")
    expected = {0: 0.01, 1: 0.01 + 0.49 * 4 / 39, 10: 0.5 - 0.2 / 39, 20: 0.3 + 0.4 * 2 / 39, 39: 0.99}
    for layer, value in expected.items():
        assert value_of(plan, up(layer)) == pytest.approx(value, abs=1e-12)


def test_a_gradient_runs_over_each_slice(pair):
    """Position counts within the slice, and a slice of one layer stands at the gradient's end."""
    source = "{{model: {}, layer_range: {}}}"
    slices = "".join(
        f"- sources: [{source.format('A', each)}, {source.format('B', each)}]\n"
        for each in ("[0, 3]", "[3, 4]", "[0, 2]")
    )
    plan = pair.plan(f"merge_method: slerp\nbase_model: A\nparameters: {{t: [0.2, 0.6]}}\nslices:\n{slices}")
    assert [value_of(plan, up(layer)) for layer in range(6)] == pytest.approx([0.2, 0.4, 0.6, 0.6, 0.2, 0.6])


@pytest.mark.parametrize("name", ["model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"])
def test_outside_the_layers_a_gradient_stands_at_its_start(pair, name):
    """Also after the layers, as in mergekit."""
    assert value_of(pair.plan(SLERP + "parameters: {t: [0.2, 0.6]}"), name) == 0.2


def test_the_first_filter_that_matches_decides(pair):
    """Filters are parts of names, tried in order; one without a filter takes the rest."""
    plan = pair.plan(
        SLERP + "parameters:\n  t:\n  - {filter: layers.1.mlp, value: 0.1}\n  - {filter: mlp, value: 0.2}\n"
        "  - {filter: '*', value: 0.3}\n"
    )
    assert [value_of(plan, up(layer)) for layer in range(3)] == [0.2, 0.1, 0.2]
    assert value_of(plan, "lm_head.weight") == 0.3


def test_where_no_filter_matches_the_next_level_is_asked(pair):
    """A slice's filters fall through to the configuration's value."""
    sources = "[{model: A, layer_range: [0, 5]}, {model: B, layer_range: [0, 5]}]"
    plan = pair.plan(
        "merge_method: slerp\nbase_model: A\nparameters: {t: 0.9}\nslices:\n"
        f"- sources: {sources}\n  parameters: {{t: [{{filter: self_attn, value: 0.1}}]}}\n"
    )
    assert value_of(plan, "model.layers.0.self_attn.q_proj.weight") == 0.1
    assert value_of(plan, up(0)) == 0.9


LEVELS = ("source", "slice", "module", "top")


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=40)
@given(given_at=st.sets(st.sampled_from(LEVELS), min_size=1), outside=st.booleans(), globals_given=st.booleans())
def test_the_nearest_level_decides(pair, given_at, outside, globals_given):
    """A model's own value comes before its slice's, the module's and the configuration's; `globals` before all."""
    written = {name: number / 10 + 0.1 for number, name in enumerate(LEVELS)}

    def parameters(level):
        return f"parameters: {{weight: {written[level]}}}" if level in given_at else "parameters: {}"

    text = f"""
merge_method: task_arithmetic
base_model: A
{parameters("top")}
globals: {{{"weight: 0.9" if globals_given else ""}}}
modules:
  default:
    {parameters("module")}
    slices:
    - {parameters("slice")}
      sources:
      - {{model: A, layer_range: [0, 5]}}
      - {{model: B, layer_range: [0, 5], {parameters("source")}}}
"""
    nearest = next(written[level] for level in LEVELS if level in given_at)
    expected = 0.9 if outside and globals_given else nearest
    name = "lm_head.weight" if outside else up(0)
    assert value_of(pair.plan(text), name, "weight") == (0.0, expected)


def test_globals_hold_outside_the_layers_only(pair):
    """They say nothing of the layers, and their filters see nothing of them."""
    plan = pair.plan(SLERP + "parameters: {t: 0.5}\nglobals: {t: [{filter: lm_head, value: 0}]}")
    assert decisions_of(plan, "lm_head") == {"keep"}
    assert decisions_of(plan, "embed") == {"merge"}
    error = pair.refuse(SLERP + "parameters: {t: 0.5}\nglobals: {t: [{filter: mlp, value: 0}]}")
    assert error.where == "recipe.yml, line 5: globals.t[0].filter"


def test_a_shared_parameter_is_filtered_by_the_output_s_name(pair):
    """In a stack the output's layer number counts, not the number in the source."""
    source = "{{model: {}, layer_range: [3, 5]}}"
    plan = pair.plan(
        f"merge_method: slerp\nbase_model: A\nslices: [{{sources: [{source.format('A')}, {source.format('B')}]}}]\n"
        "parameters: {t: [{filter: layers.0., value: 0.5}]}\n"
    )
    assert decisions_of(plan, "layers.0.") == {"merge"}
    assert decisions_of(plan, "layers.1.") == {"keep"}


def test_a_model_s_own_parameter_is_filtered_by_its_own_name(pair):
    """In a stack the number in the source counts for the source's own parameters."""
    plan = pair.plan(
        "merge_method: passthrough\nslices:\n- sources:\n  - model: A\n    layer_range: [3, 5]\n"
        "    parameters: {scale: [{filter: layers.3., value: 2}]}\n"
    )
    assert decisions_of(plan, "layers.0.") == {"merge"}
    assert decisions_of(plan, "layers.1.") == {"keep"}


def test_a_model_s_own_parameter_is_not_filtered_by_the_output_s_number(pair):
    """The output's layer number is no part of the source's name."""
    error = pair.refuse(
        "merge_method: passthrough\nslices:\n- sources:\n  - model: A\n    layer_range: [3, 5]\n"
        "    parameters: {scale: [{filter: layers.0., value: 2}]}\n"
    )
    assert error.what == "the filter 'layers.0.' matches no tensor."


def test_a_fused_donor_is_filtered_by_either_name(bench):
    """Where families name a tensor differently, the donor's name and the output's both reach it."""
    bench.write("A")
    bench.write("B", "phi3")
    for text in ("q_proj", "qkv_proj"):
        plan = bench.plan(
            "merge_method: task_arithmetic\nbase_model: A\n"
            f"models: [{{model: B, parameters: {{weight: [{{filter: {text}, value: 0.5}}]}}}}]"
        )
        assert decisions_of(plan, "self_attn.q_proj") == {"merge"}
        assert decisions_of(plan, "self_attn.k_proj") == {"merge" if text == "qkv_proj" else "keep"}


def test_one_tensor_of_the_output_takes_one_value_of_a_donor(bench):
    """A value for one of three tensors that the output joins is refused, and never spreads to the other two."""
    bench.write("A", "phi3")
    bench.write("B")
    text = "merge_method: task_arithmetic\nbase_model: A\nmodels: [{{model: B, parameters: {{weight: {}}}}}]"
    error = bench.refuse(text.format("[{filter: q_proj, value: 0.5}]"))
    assert error.what == (
        "'weight' differs within model.layers.0.self_attn.qkv_proj.weight, which B has in several tensors."
    )
    assert error.why == (
        "it is 0.5 for model.layers.0.self_attn.q_proj.weight, no value for model.layers.0.self_attn.k_proj.weight, "
        "no value for model.layers.0.self_attn.v_proj.weight."
    )
    plan = bench.plan(text.format("[{filter: self_attn, value: 0.5}]"))
    assert decisions_of(plan, "qkv_proj") == {"merge"}


def test_a_filter_that_matches_nothing_is_refused(pair):
    """The refusal has the filter's line, its path and the nearest word of a real name."""
    error = pair.refuse(
        SLERP + "parameters:\n  t:\n  - filter: self_attn\n    value: 0.3\n  - filter: mlp.up_porj\n    value: 0.5\n"
    )
    assert error.what == "the filter 'mlp.up_porj' matches no tensor."
    assert error.where == "recipe.yml, line 8: parameters.t[1].filter"
    assert error.remedy == "did you mean 'up_proj'?"


def test_a_filter_far_from_every_name_is_told_what_names_are_made_of(pair):
    """Without a near word all words are listed, sorted."""
    error = pair.refuse(SLERP + "parameters: {t: [{filter: xyzzy, value: 0.3}]}")
    assert error.remedy is not None
    assert error.remedy.startswith("names are made of: down_proj, embed_tokens, ")


def test_filters_are_case_sensitive(pair):
    """A filter is taken as it is written."""
    assert pair.refuse(SLERP + "parameters: {t: [{filter: MLP, value: 0.3}]}").exit_code == 2


def test_a_filter_behind_another_still_matches(pair):
    """Whether a filter matches does not depend on the entries before it, nor on nearer levels."""
    plan = pair.plan(SLERP + "parameters: {t: [{filter: mlp, value: 0.2}, {filter: up_proj, value: 0.3}]}")
    assert value_of(plan, up(0)) == 0.2


@pytest.mark.parametrize(("place", "line"), list(itertools.product(["models", "slices"], [1])))
def test_a_model_without_a_required_value_is_refused(pair, place, line):
    """A weight that reaches no tensor of a model is missing, and the refusal says where it belongs."""
    one, two = ("", "") if place == "models" else (", layer_range: [0, 5]", ", layer_range: [0, 5]")
    listed = f"- {{model: A{one}, parameters: {{weight: 1}}}}\n  - {{model: B{two}}}\n"
    text = f"models:\n  {listed}" if place == "models" else f"slices:\n- sources:\n  {listed}"
    error = pair.refuse(f"merge_method: linear\n{text}")
    assert error.what == "linear needs 'weight' for every model, and B has none."
    assert error.where in (
        "recipe.yml, line 4: models[1].parameters",
        "recipe.yml, line 5: slices[0].sources[1].parameters",
    )
    assert error.remedy == "write 'weight' under its 'parameters', or in 'parameters' for all models."


def test_other_parameters_with_a_default_do_not_make_up_for_a_missing_one(pair):
    """A donor of task arithmetic without a weight is refused, though its density has a default."""
    error = pair.refuse("merge_method: task_arithmetic\nbase_model: A\nmodels: [{model: B}]")
    assert error.what == "task_arithmetic needs 'weight' for every model, and B has none."


def test_a_value_in_one_slice_does_not_make_up_for_another(pair):
    """Each source of each slice needs its own."""
    source = "{{model: {}, layer_range: {}, parameters: {{{}}}}}"
    error = pair.refuse(
        "merge_method: linear\nslices:\n"
        f"- sources: [{source.format('A', '[0, 2]', 'weight: 1')}, {source.format('B', '[0, 2]', 'weight: 1')}]\n"
        f"- sources: [{source.format('A', '[2, 4]', 'weight: 1')}, {source.format('B', '[2, 4]', '')}]\n"
    )
    assert error.where == "recipe.yml, line 4: slices[1].sources[1].parameters"


def test_a_linear_base_that_is_not_listed_needs_a_weight(pair):
    """It takes part like the others, as in mergekit; without a weight the refusal says how to go on."""
    text = "merge_method: linear\nbase_model: A\nmodels: [{model: B, parameters: {weight: 1}}]\n"
    error = pair.refuse(text)
    assert error.where == "recipe.yml, line 2: base_model"
    assert error.why == "'base_model' is one of the models, though 'models' does not list it."
    assert error.remedy == (
        "list it under 'models' with its 'weight' (0: it gives the architecture only), or leave out 'base_model'."
    )
    assert tensors_of(pair.plan(text + "parameters: {weight: 3}"))[up(0)].coefficients == (0.75, 0.25)


def test_a_required_weight_is_not_required_of_the_base(pair):
    """Task arithmetic measures from the base, which needs no weight of its own."""
    plan = pair.plan(
        "merge_method: task_arithmetic\nbase_model: A\nmodels: [{model: A}, {model: B, parameters: {weight: 0.25}}]"
    )
    assert tensors_of(plan)[up(0)].coefficients == (0.75, 0.25)
