"""A recipe of several stages, as a flow."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.flows.history import last_run
from tests.flows.tiny import LAYERS, Bench, digest
from xmerge import engine
from xmerge.config import parse_stages
from xmerge.run import merge

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("api_url")]

UNITS = LAYERS + 2
TWO_STAGES = """\
name: first
merge_method: slerp
base_model: {models}/base
models: [{{model: {models}/base}}, {{model: {models}/donor}}]
parameters: {{t: 0.4}}
---
merge_method: linear
models:
- {{model: first, parameters: {{weight: 1}}}}
- {{model: {models}/donor, parameters: {{weight: {weight}}}}}
"""


def merge_stages(bench: Bench, out: Path, weight: float = 1.0, **options: object) -> dict[str, object]:
    """Call the flow with the two stages."""
    from flows.merge import merge_models

    recipe = TWO_STAGES.format(models=bench.models, weight=weight)
    made = merge_models(recipe, out=str(out), trial=False, **options)  # type: ignore[call-overload]
    assert isinstance(made, dict)
    return made


def test_stages_as_a_flow_give_the_bytes_of_the_plain_loop(bench: Bench):
    """Two stages make one folder with Prefect and without, every layer is a task, and only the output is left."""
    outcome = merge_stages(bench, bench.out)
    assert (outcome["layers"], outcome["reused"]) == (2 * UNITS, 0)
    stages = parse_stages(TWO_STAGES.format(models=bench.models, weight=1.0), "the recipe")
    merge(stages, bench.place / "direct", trial=False)
    assert digest(bench.out) == digest(bench.place / "direct")
    assert sorted(path.name for path in bench.place.iterdir()) == ["direct", "out"]


def test_the_tasks_of_a_stage_are_listed_under_its_name(bench: Bench):
    """On the run's page the layers of a stage say whose they are, and both plans come before any layer."""
    merge_stages(bench, bench.out)
    names = last_run(4 + 2 * (UNITS + 4)).names
    assert names[:4] == ["resolve_architecture", "map_slices"] * 2
    assert "merge first: layer 0" in names
    assert "merge layer 0" in names
    assert names.index("merge layer 0") > names.index("merge first: layer 0")


def test_a_stage_that_did_not_change_is_not_made_again(bench: Bench, monkeypatch):
    """With a store that is kept, another last stage makes its own layers and none of the first's."""
    merge_stages(bench, bench.out, store=str(bench.store))
    made: list[str] = []
    real = engine.merge_layer

    def watched(plan, index, folders, store, device):
        result = real(plan, index, folders, store, device)
        made.extend([plan.method] if not result.reused else [])
        return result

    monkeypatch.setattr(engine, "merge_layer", watched)
    again = merge_stages(bench, bench.place / "again", weight=2.0, store=str(bench.store))
    assert made == ["linear"] * UNITS
    assert again["reused"] == UNITS
