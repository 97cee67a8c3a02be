"""What each tensor becomes: merged, converted, a donor's bytes, or the base's."""

from __future__ import annotations

import pytest

from tests.planning.conftest import decisions_of, tensors_of

SLERP = "merge_method: slerp\nbase_model: A\nmodels: [{model: A}, {model: B}]\n"
Q0 = "model.layers.0.self_attn.q_proj.weight"


@pytest.fixture
def pair(bench):
    """Two Llamas of one shape."""
    bench.write("A")
    bench.write("B")
    return bench


def test_without_a_value_the_base_stays_and_the_donor_is_not_read(pair):
    """A parameter with no value for a tensor means the base's bytes, and the donor is no source of it."""
    plan = pair.plan(SLERP + "parameters: {t: [{filter: self_attn, value: 0.3}]}")
    assert decisions_of(plan, "self_attn") == {"merge"}
    for part in ("mlp", "layernorm", "embed", "lm_head"):
        assert decisions_of(plan, part) == {"keep"}
    for tensor in plan.tensors:
        labels = [plan.models[source.model].label for source in tensor.sources]
        assert labels == (["A", "B"] if "self_attn" in tensor.name else ["A"])


def test_no_value_anywhere_is_the_base(pair):
    """A configuration without parameters copies the base, as the request asks of a missing t."""
    plan = pair.plan(SLERP)
    assert {tensor.decision for tensor in plan.tensors} == {"keep"}
    assert plan.models[1].bytes_used == 0


@pytest.mark.parametrize(("t", "decision", "label"), [(0, "keep", "A"), (1, "copy", "B")])
def test_the_ends_of_t_are_copies(pair, t, decision, label):
    """0 is the base and 1 the donor: one source, copied, the other not read."""
    plan = pair.plan(SLERP + f"parameters: {{t: {t}}}")
    assert {tensor.decision for tensor in plan.tensors} == {decision}
    assert {plan.models[source.model].label for tensor in plan.tensors for source in tensor.sources} == {label}
    assert all(tensor.is_copied and tensor.bytes_read == 0 for tensor in plan.tensors)


@pytest.mark.parametrize(
    "recipe",
    [
        "merge_method: slerp\nbase_model: A\nmodels: [{model: A}, {model: B}]\nparameters: {t: 0}",
        "merge_method: linear\nmodels: [{model: A, parameters: {weight: 1}}, {model: B, parameters: {weight: 0}}]",
        "merge_method: task_arithmetic\nbase_model: A\nmodels: [{model: B, parameters: {weight: 0}}]",
        "merge_method: task_arithmetic\nbase_model: A\nmodels: [{model: B}]\nparameters: {weight: 1, lambda: 0}",
    ],
)
def test_a_donor_whose_part_is_known_to_be_nothing_cannot_misfit(bench, recipe):
    """Shapes of what is never read do not matter."""
    bench.write("A")
    bench.write("B", intermediate_size=20, vocab_size=50, num_attention_heads=2)
    assert {tensor.decision for tensor in bench.plan(recipe).tensors} == {"keep"}


def test_a_scale_of_nothing_reads_nothing(bench):
    """`scale: 0` writes zeros from no source at all, as pruned stacks do with their output matrices."""
    bench.write("A")
    plan = bench.plan(
        "merge_method: passthrough\nmodels: [{model: A, parameters: {scale: [{filter: o_proj, value: 0}, {value: 1}]}}]"
    )
    zeroed = tensors_of(plan)["model.layers.0.self_attn.o_proj.weight"]
    assert (zeroed.decision, zeroed.sources, zeroed.coefficients) == ("merge", (), ())
    assert tensors_of(plan)[Q0].decision == "keep"


def test_known_coefficients_save_the_second_reading(pair):
    """Weights that need no look at the tensors are read once, an angle between tensors twice."""
    linear = pair.plan("merge_method: linear\nmodels: [{model: A}, {model: B}]\nparameters: {weight: 0.5}")
    slerp = pair.plan(SLERP + "parameters: {t: 0.5}")
    one, two = tensors_of(linear)[Q0], tensors_of(slerp)[Q0]
    assert one.coefficients == (0.5, 0.5)
    assert two.coefficients is None
    assert two.bytes_read == 2 * one.bytes_read == 4 * one.nbytes


def test_the_base_is_the_first_source_where_the_method_has_one(bench):
    """For slerp and task arithmetic the base comes first, wherever the file lists it."""
    for name in "ABC":
        bench.write(name)
    plan = bench.plan(
        "merge_method: task_arithmetic\nbase_model: C\nparameters: {weight: 0.25}\n"
        "models: [{model: A}, {model: B}, {model: C}]"
    )
    tensor = tensors_of(plan)[Q0]
    assert [plan.models[source.model].label for source in tensor.sources] == ["C", "A", "B"]
    assert tensor.base == 0
    assert tensor.coefficients == (0.5, 0.25, 0.25)


def test_a_base_that_is_not_listed_is_an_input(pair):
    """`base_model` need not stand under `models` for methods that measure from it."""
    plan = pair.plan("merge_method: slerp\nbase_model: A\nmodels: [{model: B}]\nparameters: {t: 0.5}")
    assert len(tensors_of(plan)[Q0].sources) == 2


def test_where_a_donor_has_no_value_it_takes_no_part(bench):
    """Other donors are merged without it, and the plan says who was left out."""
    for name in "ABC":
        bench.write(name)
    plan = bench.plan(
        "merge_method: linear\nmodels: [{model: A, parameters: {weight: 1}}, {model: B, parameters: {weight: 1}},"
        " {model: C, parameters: {weight: [{filter: mlp, value: 2}]}}]"
    )
    q, up = tensors_of(plan)[Q0], tensors_of(plan)["model.layers.0.mlp.up_proj.weight"]
    assert q.coefficients == (0.5, 0.5)
    assert q.dropped == ("C: 'weight' has no value for it",)
    assert up.coefficients == (0.25, 0.25, 0.5)


@pytest.mark.parametrize("base", ["base_model: A\n", ""])
def test_where_the_base_has_no_value_its_bytes_stay(pair, base):
    """A base without a value is the base's bytes, also when it is the base by being named first."""
    plan = pair.plan(
        f"merge_method: linear\n{base}models: [{{model: A, parameters: {{weight: [{{filter: mlp, value: 1}}]}}}},"
        " {model: B, parameters: {weight: 1}}]"
    )
    assert decisions_of(plan, "mlp") == {"merge"}
    q = tensors_of(plan)[Q0]
    assert q.decision == "keep"
    assert plan.models[q.sources[0].model].label == "A"
    assert q.reason == "'weight' has no value for it at the base"


def test_the_base_stays_also_where_another_model_gives_the_architecture(pair):
    """0 is always the base, not the model whose config.json the output has."""
    plan = pair.plan(SLERP + "architecture: B\nparameters: {t: [{filter: mlp, value: 0.5}]}")
    q = tensors_of(plan)[Q0]
    assert q.decision == "keep"
    assert [plan.models[source.model].label for source in q.sources] == ["A"]
    assert plan.models[plan.target].label == "B"


def test_tensors_that_only_the_base_has_are_kept_and_listed(bench):
    """A role the donor lacks stays the base's, and the plan says that the donor lacks it."""
    bench.write("A", "qwen3")
    bench.write("B", "llama")
    plan = bench.plan(SLERP + "parameters: {t: 0.5}")
    q_norm = tensors_of(plan)["model.layers.0.self_attn.q_norm.weight"]
    assert q_norm.decision == "keep"
    assert q_norm.dropped == ("B (llama) has no attn_q_norm",)


def test_a_donor_never_stands_in_for_a_base_that_lacks_the_tensor(bench):
    """With nothing to measure from nothing is added: the target's tensor stays, and no donor becomes the base."""
    bench.write("A", "llama")
    bench.write("B", "qwen3")
    bench.write("C", "qwen3")
    plan = bench.plan(
        "merge_method: task_arithmetic\nbase_model: A\narchitecture: C\nparameters: {weight: 0.5}\n"
        "models: [{model: B}, {model: C}]"
    )
    q_norm = tensors_of(plan)["model.layers.1.self_attn.q_norm.weight"]
    assert q_norm.decision == "keep"
    assert [plan.models[source.model].label for source in q_norm.sources] == ["C"]
    assert "A (llama) has no attn_q_norm" in q_norm.reason


def test_a_base_that_does_not_fit_is_never_skipped(bench):
    """A donor cannot be measured from a base of another shape, whoever else takes no part."""
    bench.write("A", intermediate_size=20)
    bench.write("B")
    bench.write("C")
    text = (
        "merge_method: task_arithmetic\nbase_model: A\narchitecture: B\nmodels:\n"
        "- {model: B, parameters: {weight: [{filter: self_attn, value: 0.5}]}}\n"
        "- {model: C, parameters: {weight: 0.5}}\n"
    )
    error = bench.refuse(text)
    assert error.why is not None
    assert "ffn_up: B has [12, 8]" in error.why
    assert tensors_of(bench.plan(text + "on_mismatch: base"))["model.layers.0.mlp.up_proj.weight"].decision == "keep"


def test_misfits_are_kept_from_the_base_on_request(bench):
    """`on_mismatch: base` keeps the base's tensor where the donor's does not fit, with both shapes as the reason."""
    bench.write("A")
    bench.write("B", intermediate_size=20)
    plan = bench.plan(SLERP + "parameters: {t: 0.5}\non_mismatch: base")
    assert decisions_of(plan, "mlp") == {"keep"}
    assert decisions_of(plan, "self_attn") == {"merge"}
    up = tensors_of(plan)["model.layers.0.mlp.up_proj.weight"]
    assert up.reason == (
        "it does not fit (class D): ffn_up: A has [12, 8] (ffn 12, hidden 8), B has [20, 8] (ffn 20, hidden 8)"
    )
    assert [plan.models[source.model].label for source in up.sources] == ["A"]


@pytest.mark.parametrize(("t", "decision"), [(0.5, "keep"), (0, "keep"), (1, "copy")])
def test_integers_are_carried_and_never_computed_with(bench, t, decision):
    """A tensor of integers is copied from the base or the donor; between the two there is nothing."""
    for name in "AB":
        bench.write(name, extra={"model.layers.0.self_attn.position_ids": ("I64", [7])})
    tensor = tensors_of(bench.plan(SLERP + f"parameters: {{t: {t}}}"))["model.layers.0.self_attn.position_ids"]
    assert (tensor.decision, tensor.dtype, tensor.role) == (decision, "I64", None)


def test_integers_of_another_width_are_not_converted(bench):
    """A donor's integers in another dtype cannot be copied, so the base's stay."""
    for name, dtype in (("A", "I64"), ("B", "I32")):
        bench.write(name, extra={"model.layers.0.self_attn.position_ids": (dtype, [7])})
    tensor = tensors_of(bench.plan(SLERP + "parameters: {t: 1}"))["model.layers.0.self_attn.position_ids"]
    assert tensor.decision == "keep"
    assert "I32" in tensor.reason


def test_a_model_met_twice_takes_part_twice(bench):
    """One model with two ranges in a slice gives two layers, each with its own parameters."""
    bench.write("A")
    plan = bench.plan(
        "merge_method: linear\nslices:\n- sources:\n"
        "  - {model: A, layer_range: [0, 2], parameters: {weight: 3}}\n"
        "  - {model: A, layer_range: [2, 4], parameters: {weight: 1}}\n"
    )
    tensor = tensors_of(plan)["model.layers.1.self_attn.q_proj.weight"]
    assert [source.segments[0].tensor for source in tensor.sources] == [
        "model.layers.1.self_attn.q_proj.weight",
        "model.layers.3.self_attn.q_proj.weight",
    ]
    assert tensor.coefficients == (0.75, 0.25)
    assert plan.layer_map == ((0,), (1,))


def test_a_model_can_be_its_own_donor(bench):
    """In slerp of two ranges of one model the first is the base and the second the donor."""
    bench.write("A")
    plan = bench.plan(
        "merge_method: slerp\nbase_model: A\nparameters: {t: 1}\nslices:\n- sources:\n"
        "  - {model: A, layer_range: [0, 2]}\n  - {model: A, layer_range: [2, 4]}\n"
    )
    tensor = tensors_of(plan)[Q0]
    assert tensor.sources[0].segments[0].tensor == "model.layers.2.self_attn.q_proj.weight"
    assert tensor.decision == "copy"


@pytest.mark.parametrize("key", ["dtype", "out_dtype"])
def test_weights_are_written_in_the_dtype_asked_for(pair, key):
    """What is only copied otherwise is converted, merged tensors are rounded to it, and nothing else changes."""
    plan = pair.plan(SLERP + f"parameters: {{t: [{{filter: mlp, value: 0.5}}]}}\n{key}: float32")
    assert {tensor.dtype for tensor in plan.tensors} == {"F32"}
    assert decisions_of(plan, "mlp") == {"merge"}
    assert decisions_of(plan, "self_attn") == {"convert"}
    assert tensors_of(plan)[Q0].reason == "'t' has no value for it; written as F32"


def test_integers_keep_their_dtype(bench):
    """`dtype` speaks of weights."""
    for name in "AB":
        bench.write(name, extra={"model.layers.0.self_attn.position_ids": ("I64", [7])})
    plan = bench.plan(SLERP + "dtype: float32")
    assert tensors_of(plan)["model.layers.0.self_attn.position_ids"].dtype == "I64"


def test_out_dtype_comes_before_dtype(pair):
    """`dtype` is mergekit's arithmetic, and only the output's where `out_dtype` is not given."""
    plan = pair.plan(SLERP + "dtype: float32\nout_dtype: float16")
    assert {tensor.dtype for tensor in plan.tensors} == {"F16"}


def test_a_donor_in_another_dtype_is_converted_to_the_base_s(bench):
    """The output keeps the base's dtypes, also where a donor's tensor is taken whole."""
    bench.write("A", extra={"model.norm.weight": ("F32", [8])})
    bench.write("B")
    plan = bench.plan(SLERP + "parameters: {t: 1}")
    norm = tensors_of(plan)["model.norm.weight"]
    assert (norm.decision, norm.dtype, norm.base) == ("convert", "F32", None)
    assert tensors_of(plan)[Q0].decision == "copy"


def test_an_unlisted_layer_is_the_base_s(bench):
    """`unlisted_layers: base` leaves every other layer byte for byte, whatever the parameters say."""
    bench.write("A")
    bench.write("B")
    plan = bench.plan(
        "merge_method: slerp\nbase_model: A\nunlisted_layers: base\nparameters: {t: 0.5}\nslices:\n"
        "- sources: [{model: A, layer_range: [1, 2]}, {model: B, layer_range: [3, 4]}]\n"
    )
    assert decisions_of(plan, "layers.1.") == {"merge"}
    for layer in (0, 2, 3):
        assert decisions_of(plan, f"layers.{layer}.") == {"keep"}
    assert tensors_of(plan)[Q0].reason == "its layer is not listed"
