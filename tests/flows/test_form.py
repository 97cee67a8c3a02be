"""A merge started by the fields of a form, and what a person reads who has filled them in wrongly."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import httpx
import pytest
import yaml
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import LogFilter, LogFilterFlowRunId
from prefect.client.schemas.sorting import LogSort

from flows import merge
from flows.many import merge_many
from flows.merge import merge_models
from flows.publish import publish_model
from flows.server.history import send_what_is_left
from flows.verify import verify_model
from flows.watch import watch_sources
from tests.flows.history import LastRun, last_run
from tests.flows.tiny import Bench
from xmerge.errors import ConfigError, PlanError
from xmerge.methods import list_methods

FLOWS = (merge_models, merge_many, verify_model, publish_model, watch_sources)


@pytest.mark.parametrize("flow", FLOWS, ids=lambda flow: flow.name)
def test_every_field_says_what_it_is_for(flow):
    """No flow has a parameter without a description, nor a text that is shown as a choice between text and nothing."""
    for name, field in flow.parameters.properties.items():
        assert field.get("description"), name
        assert {"type": "string"} not in field.get("anyOf", []), name


def test_the_methods_are_a_menu():
    """The form offers exactly the registered methods, and has a default among them."""
    field = merge_models.parameters.properties["method"]
    assert field["enum"] == [method.name for method in list_methods()]
    assert field["default"] in field["enum"]


def test_only_the_output_must_be_given():
    """A form without a recipe can be sent, and one without a place for the output cannot."""
    assert merge_models.parameters.required == ["out"]


@pytest.mark.slow
@pytest.mark.usefixtures("api_url")
def test_the_fields_make_the_bytes_of_a_recipe(bench: Bench):
    """Base, donors, method and parameters are the merge that a recipe says with them."""
    base, donor = (str(bench.models / name) for name in ("base", "donor"))
    weights = {"weight": {donor: 0.7, base: 0.3}}
    merge_models(out=str(bench.out), base=base, donors=(donor,), method="linear", parameters=weights, trial=False)
    models = [{"model": name, "parameters": {"weight": weight}} for name, weight in ((base, 0.3), (donor, 0.7))]
    again = bench.place / "again"
    merge_models(yaml.safe_dump({"merge_method": "linear", "models": models}), out=str(again), trial=False)
    made, expected = ([path.read_bytes() for path in sorted(out.glob("*.safetensors"))] for out in (bench.out, again))
    assert made == expected


@pytest.mark.slow
@pytest.mark.usefixtures("api_url")
def test_the_api_refuses_a_form_with_the_name_of_the_field(bench: Bench):
    """What has the wrong type, is missing, or is no choice, is refused before a run is made, in a sentence."""
    flow: Any = merge_models  # Prefect's annotations do not say which of two kinds of call this is.
    deployment = flow.to_deployment("form").apply()
    told = {
        "workers": ({"out": "o", "workers": "many"}, "'many' is not of type 'integer'"),
        "method": ({"out": "o", "method": "slrp"}, "'slrp' is not one of ['arcee_fusion', "),
        "donors": ({"out": "o", "donors": "org/a"}, "'org/a' is not of type 'array'"),
        "out": ({"base": "org/a"}, "'out' is a required property"),
    }
    with get_client(sync_client=True) as client:
        for field, (parameters, reason) in told.items():
            with pytest.raises(httpx.HTTPStatusError) as refused:
                client.create_flow_run_from_deployment(deployment, parameters=parameters)
            detail = refused.value.response.json()["detail"]
            assert reason in detail, field
            assert field in detail


@pytest.mark.slow
@pytest.mark.usefixtures("api_url")
def test_a_mistake_in_the_form_is_told_once_and_without_a_traceback(bench: Bench):
    """The state and the log say what is wrong, in which field, and what to do; the caller gets the error itself."""
    run, log = fail(lambda: merge_models(out=str(bench.out), base="org/base", donors=("org/donor",)), ConfigError, 0)
    assert run.run.state is not None
    for text in (str(run.run.state.message), log):
        assert "ConfigError: slerp needs 't': how far from the base (0) to the donor (1).\n" in text
        assert "\n  at: the form: parameters\n" in text
        assert '\n  do: write {"t": NUMBER}; it takes 0 to 1.' in text
    assert log.count("\n  at: the form: parameters\n") == 1
    assert "Traceback" not in log


@pytest.mark.slow
@pytest.mark.usefixtures("api_url")
def test_a_mistake_that_a_task_meets_is_told_once_and_without_a_traceback(bench: Bench):
    """What the plan refuses stands in the log of its task, and not a second time in that of the flow."""
    recipe = bench.recipe(models=[{"model": str(bench.models / name)} for name in ("base", "donor", "donor")])
    _, log = fail(lambda: merge_models(recipe, out=str(bench.out), trial=False), PlanError, 2)
    assert (
        log.count("PlanError: slerp takes exactly 2 models with the base, and 3 meet here: base, donor, donor.\n") == 1
    )
    assert "Traceback" not in log


@pytest.mark.slow
@pytest.mark.usefixtures("api_url")
def test_a_bug_is_told_with_its_traceback(bench: Bench, monkeypatch):
    """What is nobody's mistake keeps the lines that whoever mends it needs."""

    def break_down(form: Any) -> str:
        raise RuntimeError("a bug")

    monkeypatch.setattr(merge, "take_recipe", break_down)
    _, log = fail(lambda: merge_models(out=str(bench.out)), RuntimeError, 0)
    assert "Traceback" in log
    assert "break_down" in log


def fail(call: Callable[[], object], error: type[Exception], tasks: int) -> tuple[LastRun, str]:
    """Call a flow that raises this error; its run, and the lines of its log as one text."""
    with pytest.raises(error):
        call()
    assert send_what_is_left(patience=10)
    run = last_run(tasks)
    with get_client(sync_client=True) as client:
        mine = LogFilter(flow_run_id=LogFilterFlowRunId(any_=[run.run.id]))
        lines = client.read_logs(mine, sort=LogSort.TIMESTAMP_ASC)
    return run, "\n".join(line.message for line in lines)
