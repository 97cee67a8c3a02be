"""Whether a worker sees the storage of a merge: what it is asked, and each way in which it may not."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.small_merges import make_plan, write_models
from xmerge import shared_storage
from xmerge.errors import PlanError, StorageError
from xmerge.planning import MergePlan, pack_layers
from xmerge.planning.memory import estimate_buffers
from xmerge.shared_storage import Answer, Question, answer, ask, check_answers, check_memory
from xmerge.units import UnitOfWork, merge_unit, read_plan
from xmerge.work import WorkFolder, open_work_folder, write_plan

HERE = "the worker"


@pytest.fixture
def plan(tmp_path: Path) -> MergePlan:
    """The plan of a small merge, with models of its own."""
    return make_plan(write_models(tmp_path / "models"))[1]


@pytest.fixture
def work(tmp_path: Path, plan: MergePlan) -> Iterator[WorkFolder]:
    """Where it is worked on, with a store elsewhere."""
    with open_work_folder(tmp_path / "out", plan, tmp_path / "store") as work:
        write_plan(work, plan)
        yield work


@pytest.fixture
def question(plan: MergePlan, work: WorkFolder, monkeypatch) -> Iterator[Question]:
    """What each worker is asked, while it stands."""
    monkeypatch.setattr(shared_storage, "SECONDS_UNTIL_SEEN", 0.0)
    folders = tuple(str(model.folder) for model in plan.models)
    where = UnitOfWork(
        plan_file=str(work.plan_file),
        fingerprint=plan.fingerprint,
        layers=(),
        folders=folders,
        store=str(work.store.path),
        device="cpu",
    )
    with ask(plan, where, [work.path, work.store.path]) as question:
        yield question


def test_a_worker_that_sees_all_answers_and_is_seen(question, work):
    """Its answer lies in both folders as long as it is asked for."""
    check_answers(question, {HERE: answer(question).name})
    assert len(list(work.path.glob("probe-*"))) == len(list(work.store.path.glob("probe-*"))) == 2


def test_nothing_is_left_of_a_question(plan, work):
    """Afterwards there is neither the token nor an answer, whatever has happened meanwhile."""
    where = UnitOfWork(plan_file="", fingerprint="", layers=(), folders=("", ""), store="", device="cpu")
    with pytest.raises(StorageError), ask(plan, where, [work.path]) as question:
        check_answers(question, {HERE: answer(question.model_copy(update={"folders": (str(work.path),)})).name})
    assert list(work.path.glob("probe-*")) == []


@pytest.mark.parametrize("folder", ["path", "store"])
def test_a_worker_with_another_folder_in_its_place_says_so(question, work, folder):
    """One where the token is not is named with the machine, the folder and what to do."""
    place = work.path if folder == "path" else work.store.path
    (place / f"probe-{question.token}").unlink()
    with pytest.raises(StorageError) as caught:
        answer(question)
    assert caught.value.what == f"{os.uname().nodename} does not see the storage of this merge."
    assert caught.value.where == str(place)
    assert "docs/scaling.md" in (caught.value.remedy or "")


def test_a_worker_that_writes_elsewhere_is_named(question, work):
    """An answer that the flow does not see is missed, with the worker and the folder."""
    name = answer(question).name
    (work.store.path / f"probe-{question.token}.{name}").unlink()
    with pytest.raises(StorageError) as caught:
        check_answers(question, {HERE: name})
    assert caught.value.what == f"what {HERE} writes is not seen by the flow."
    assert caught.value.where == str(work.store.path)


def test_a_worker_without_a_model_says_which(question, plan):
    """A shard that is not there is named."""
    shutil.rmtree(plan.models[1].folder)
    with pytest.raises(StorageError, match="does not see a model of this merge") as caught:
        answer(question)
    assert caught.value.where == str(plan.models[1].folder / "model.safetensors")


def test_a_worker_with_another_copy_of_a_model_says_which(question, plan):
    """A shard of another time or another inode is not the one that was planned with."""
    path = plan.models[0].folder / "model.safetensors"
    os.utime(path, ns=(0, 0))
    with pytest.raises(StorageError, match="sees another file of a model than the flow does") as caught:
        answer(question)
    assert caught.value.where == str(path)


def test_a_worker_with_another_version_is_refused(question):
    """Its arithmetic may differ, so it is not asked to do any."""
    with pytest.raises(PlanError, match=r"install the same version on every machine"):
        answer(question.model_copy(update={"version": "0.0.1"}))


def test_a_worker_that_comes_later_without_the_storage_says_so(work, plan):
    """A plan that cannot be read is told with machine, file and remedy, and so is another plan in its place."""
    with pytest.raises(StorageError) as caught:
        read_plan(str(work.path / "elsewhere.json"), plan.fingerprint)
    assert caught.value.what == f"{os.uname().nodename} cannot read the plan of this merge."
    assert "docs/scaling.md" in (caught.value.remedy or "")
    with pytest.raises(StorageError, match="not the one that this run made"):
        read_plan(str(work.plan_file), "0" * 64)


def test_a_worker_that_comes_later_without_the_store_says_so(question, work):
    """It makes none of its own, whose layers nobody would find."""
    unit = question.unit.model_copy(update={"store": str(work.path / "elsewhere"), "layers": (0,)})
    with pytest.raises(StorageError) as caught:
        merge_unit(unit)
    assert caught.value.what == f"{os.uname().nodename} does not see the store."
    assert "docs/scaling.md" in (caught.value.remedy or "")
    assert not (work.path / "elsewhere").exists()


def test_a_machine_with_too_little_memory_for_all_its_workers_is_refused(plan):
    """Layers that fit one by one, and not at once, are told with how many do."""
    units = len(pack_layers(plan))
    answers = {each: Answer(name=each, host=each[0], fits=1) for each in ("a1", "a2", "b1")}
    check_memory(plan, answers, {"a1": 1, "a2": 0, "b1": 1})
    with pytest.raises(PlanError, match="a has too little memory for its workers") as caught:
        check_memory(plan, answers, {"a1": 1, "a2": 1, "b1": 1})
    assert caught.value.why == "2 layers are under way there at once, and the buffers of 1 fit."
    plenty = {each: answers[each].model_copy(update={"fits": units}) for each in answers}
    check_memory(plan, plenty, dict.fromkeys(answers, units + 1))


def test_a_worker_says_how_many_layers_fit(question, plan, monkeypatch):
    """Into the memory that is allowed on its machine."""
    monkeypatch.setenv("XMERGE_MEMORY", str(3 * estimate_buffers(plan)))
    assert answer(question).fits == 3
