from __future__ import annotations

import json
import os
import re
import shlex
import sys
import tomllib
from itertools import chain
from pathlib import Path
from typing import Any

import compose_spec
import pytest
import yaml

from flows.server.settings import EMBEDDED_SETTINGS
from xmerge.cli.orchestration import FOLDER, enter_flows

ROOT = Path(__file__).resolve().parents[2]
FILES = ROOT / "deployments"
VERSION = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
KINDS = {"prefect.yaml": "", "prefect-docker.yaml": "-docker", "prefect-kubernetes.yaml": "-kubernetes"}
COMPOSE = ("compose.yaml", "compose.gpu.yaml")
DOCKERFILE = (FILES / "Dockerfile").read_text(encoding="utf-8")


def read(name: str) -> Any:
    """A YAML file of the folder."""
    return yaml.safe_load((FILES / name).read_text(encoding="utf-8"))


def list_deployments(file: str) -> dict[str, dict[str, Any]]:
    """A file's deployments by their name, without what the file adds to each."""
    return {said["name"].removesuffix(KINDS[file]): said for said in read(file)["deployments"]}


@pytest.mark.parametrize("file", KINDS)
def test_a_deployment_has_the_version_of_the_package(file: str):
    """Whoever looks at a deployment, or at the image it starts, reads which xmerge it is."""
    for said in read(file)["deployments"]:
        assert said["version"] == VERSION
        image = said["work_pool"]["job_variables"].get("image", f"xmerge:{VERSION}")
        assert image.removesuffix("-cuda") == f"xmerge:{VERSION}"


@pytest.mark.parametrize("file", KINDS)
def test_runs_of_a_deployment_have_the_settings_of_the_flows(file: str):
    """Deployments set what flows/server/settings.py sets, above all the heartbeat that the automation awaits."""
    for said in read(file)["deployments"]:
        env = dict(said["work_pool"]["job_variables"]["env"])
        env.pop("CUDA_VISIBLE_DEVICES", None)
        assert env == {name: EMBEDDED_SETTINGS[name] for name in env}
        assert "PREFECT_FLOWS_HEARTBEAT_FREQUENCY" in env


def test_a_gpu_belongs_to_one_deployment_with_a_limit_of_one():
    """A deployment of the process pool sees no GPU, or one that no other sees and that one run has at a time."""
    seen = dict[str, list[int]]()
    for said in list_deployments("prefect.yaml").values():
        gpus = said["work_pool"]["job_variables"]["env"]["CUDA_VISIBLE_DEVICES"]
        seen.setdefault(gpus, []).append(said.get("concurrency_limit", {}).get("limit", 0))
    del seen[""]
    assert seen == {"0": [1]}


@pytest.mark.parametrize("file", [name for name in KINDS if name != "prefect.yaml"])
def test_the_files_say_the_same_of_the_same_deployment(file: str):
    """What a deployment does depends on where it runs in nothing but how a run is started."""
    here, there = list_deployments("prefect.yaml"), list_deployments(file)
    shared = [name for name in here if "gpu" not in name]
    assert [name for name in there if "gpu" not in name] == shared
    for name in shared:
        differ = {"name", "work_pool"}
        assert {k: v for k, v in here[name].items() if k not in differ} == {
            k: v for k, v in there[name].items() if k not in differ
        }


@pytest.mark.slow
def test_every_deployment_is_of_a_flow_that_the_automation_looks_after():
    """Each entrypoint is a flow, and each flow that can be deployed is one whose killed runs are found."""
    from prefect.flows import Flow, load_flow_from_entrypoint

    from flows.catalogue import FLOW_NAMES

    entrypoints = {said["entrypoint"] for file in KINDS for said in read(file)["deployments"]}
    flows: list[Flow[..., Any]] = [load_flow_from_entrypoint(entrypoint) for entrypoint in sorted(entrypoints)]
    assert sorted(flow.name for flow in flows) == sorted(FLOW_NAMES)


def test_a_run_finds_the_flows_and_stays_where_its_worker_was_started(monkeypatch, tmp_path):
    """The step before a run makes `flows` importable, and relative paths mean the folder of the worker."""
    monkeypatch.delenv(FOLDER, raising=False)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if Path(entry or os.getcwd()).resolve() != ROOT])
    monkeypatch.setenv("PWD", str(tmp_path))
    assert enter_flows() == {"directory": str(tmp_path)}
    assert str(ROOT) in sys.path


@pytest.mark.parametrize(
    ("said", "begins"),
    [({FOLDER: "/data", "PWD": "/opt"}, "/data"), ({FOLDER: "/data"}, "/data"), ({}, "/")],
)
def test_relative_paths_never_begin_in_the_temporary_folder_of_a_run(monkeypatch, tmp_path, said, begins):
    """They begin where the environment says; where it says nothing, at the root, and no output is deleted."""
    for name in (FOLDER, "PWD"):
        monkeypatch.delenv(name, raising=False)
    for name, value in said.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(tmp_path)
    assert enter_flows() == {"directory": begins}


def test_relative_paths_begin_on_the_volume_of_a_container():
    """What the image says is where each way to start it mounts the models: compose, Docker, Kubernetes."""
    (folder,) = re.findall(rf"\b{FOLDER}=(\S+)", DOCKERFILE)
    worker = read("compose.yaml")["services"]["worker"]
    template = json.loads((FILES / "kubernetes" / "job-template.json").read_text(encoding="utf-8"))
    pod = template["job_configuration"]["job_manifest"]["spec"]["template"]["spec"]
    mounts = [*worker["volumes"], *read("prefect-docker.yaml")["definitions"]["pool"]["job_variables"]["volumes"]]
    places = [mount.rpartition(":")[2] for mount in mounts]
    places += [mount["mountPath"] for mount in pod["containers"][0]["volumeMounts"]]
    assert set(places) == {folder}


@pytest.mark.parametrize("name", COMPOSE)
def test_a_compose_file_is_one(name: str):
    """Each says nothing that the Compose specification does not know."""
    assert parse_compose((FILES / name).read_text(encoding="utf-8")).service_names()


def test_a_compose_file_that_is_none_is_found():
    """The test above can fail: a key that no service has is refused."""
    with pytest.raises(ValueError, match="comand"):
        parse_compose("services: {worker: {image: xmerge, comand: [prefect]}}")


def parse_compose(text: str) -> compose_spec.PyCompose:
    """A compose file as it reads where nothing is set but what must be: `${NAME:-default}`, `${NAME:?message}`."""
    filled = re.sub(r"\$\{\w+:([-?])(.*?)\}", lambda said: said[2] if said[1] == "-" else "given", text)
    # By way of JSON, which has no anchors left.
    return compose_spec.PyCompose.from_json(json.dumps(yaml.safe_load(filled)))


def test_a_compose_file_holds_no_secret_and_names_what_is_asked_for():
    """A password comes from the environment only, and each variable that is read stands in the example of a .env."""
    text = (FILES / "compose.yaml").read_text(encoding="utf-8")
    assert re.findall(r"^.*PASSWORD: (?!\$\{POSTGRES_PASSWORD:\?)", text, re.MULTILINE) == []
    example = (FILES / ".env.example").read_text(encoding="utf-8")
    passed = {
        name
        for service in read("compose.yaml")["services"].values()
        for name, value in service["environment"].items()
        if value is None
    }
    assert passed == {"PREFECT_SERVER_API_AUTH_STRING", "PREFECT_API_AUTH_STRING"}
    assert passed | set(re.findall(r"\$\{(\w+)", text)) == set(re.findall(r"^#?(\w+)=", example, re.MULTILINE))
    assert re.findall(r"^(?:POSTGRES_PASSWORD|#HF_TOKEN)=.+$", example, re.MULTILINE) == []


def test_the_server_of_the_compose_file_has_the_settings_of_the_flows():
    """What it sets of the server is what flows/server/settings.py sets, and all of that."""
    said = read("compose.yaml")["services"]["server"]["environment"]
    wanted = {k: v for k, v in EMBEDDED_SETTINGS.items() if k.startswith("PREFECT_SERVER_") and "EPHEMERAL" not in k}
    assert {name: said[name] for name in wanted} == wanted


def test_nothing_is_sent_to_prefect():
    """Server, worker and image come with Prefect's statistics switched off."""
    services = read("compose.yaml")["services"]
    assert {services[name]["environment"]["DO_NOT_TRACK"] for name in ("server", "prepare", "worker")} == {"1"}
    assert services["server"]["environment"]["PREFECT_SERVER_ANALYTICS_ENABLED"] == "false"
    assert "DO_NOT_TRACK=1" in DOCKERFILE


def test_images_are_pinned():
    """Every image that is not ours has an exact version, and Prefect's is the one that constraints.txt names."""
    constraints = (ROOT / "constraints.txt").read_text(encoding="utf-8")
    worker = (FILES / "kubernetes" / "worker.yaml").read_text(encoding="utf-8")
    (prefect,) = re.findall(r"image: prefecthq/prefect:(\d+\.\d+\.\d+)-", worker)
    assert f"\nprefect=={prefect}\n" in constraints
    images = [service.get("image", "") for name in COMPOSE for service in read(name)["services"].values()]
    images += re.findall(r"^ARG PYTHON_IMAGE=(.*)$", DOCKERFILE, re.MULTILINE)
    assert [image for image in images if not re.search(r":\d+\.\d+", image)] == []


def test_the_image_is_built_from_files_that_are_there_and_sent():
    """Each COPY names a file of the checkout, and .dockerignore lets it through."""
    copied = {
        source
        for line in re.findall(r"^COPY (?!--from)(.*)$", DOCKERFILE, re.MULTILINE)
        for source in shlex.split(line)[:-1]
    }
    sent = re.findall(r"^!(.*)$", (ROOT / ".dockerignore").read_text(encoding="utf-8"), re.MULTILINE)
    assert copied == set(sent)
    assert [source for source in copied if not (ROOT / source).exists()] == []


def test_the_image_has_the_version_of_the_package_and_a_user_that_is_not_root():
    """Label, tags and user are what the files that start the image expect."""
    assert f'org.opencontainers.image.version="{VERSION}"' in DOCKERFILE
    (user,) = re.findall(r"^USER (\d+)$", DOCKERFILE, re.MULTILINE)
    template = json.loads((FILES / "kubernetes" / "job-template.json").read_text(encoding="utf-8"))
    pod = template["job_configuration"]["job_manifest"]["spec"]["template"]["spec"]
    assert pod["securityContext"]["runAsUser"] == int(user) != 0
    images = {s["image"] for name in COMPOSE for s in read(name)["services"].values() if "xmerge" in s.get("image", "")}
    assert images == {f"xmerge:{VERSION}", f"xmerge:{VERSION}-cuda"}
    assert template["variables"]["properties"]["image"]["default"] == f"xmerge:{VERSION}"


def test_a_job_gives_a_run_storage_and_the_gpus_it_asks_for():
    """The job template has a variable for everything it leaves open, and its claim is the one that is applied."""
    template = json.loads((FILES / "kubernetes" / "job-template.json").read_text(encoding="utf-8"))
    variables = template["variables"]["properties"]
    used = set(re.findall(r"\{\{ (\w+) \}\}", json.dumps(template["job_configuration"])))
    assert used == set(variables)
    job = template["job_configuration"]["job_manifest"]["spec"]["template"]["spec"]
    assert job["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == "{{ gpus }}"
    assert variables["gpus"]["default"] == 0
    storage = (FILES / "kubernetes" / "storage.yaml").read_text(encoding="utf-8")
    claims = {each["metadata"]["name"] for each in yaml.safe_load_all(storage) if "Claim" in each["kind"]}
    assert claims == {variables["claim"]["default"]}
    known = set(
        chain.from_iterable(
            said["work_pool"]["job_variables"] for said in read("prefect-kubernetes.yaml")["deployments"]
        )
    )
    assert known <= set(variables)
