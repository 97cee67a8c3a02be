"""The models that people compare, found by what they call them."""

from __future__ import annotations

import os
import time

import pytest

from tests.compatibility.sketches import ATTENTION, GATED, sketch, write_config, write_shallow
from tests.fake_checkpoints import make_config, write_fake, write_headers
from xmerge.architecture import Family, list_families
from xmerge.compatibility.naming import describe_models_named, list_model_folders, list_popular_models, tell_origin
from xmerge.errors import CheckpointError, PlanError

LLAMA = dict(list_popular_models()["llama-3-8b"].config)

# Which matrices have the shapes of Llama-3-8B's: q k v o | gate up down | norm.
SHAPES_OF_LLAMA = """
llama-2-7b             Y--Y --- Y
llama-3-8b             YYYY YYY Y
llama-3.1-8b           YYYY YYY Y
r1-distill-llama-8b    YYYY YYY Y
llama-3.2-1b           ---- --- -
llama-3.2-3b           ---- --- -
mistral-7b-v0.3        YYYY YYY Y
ministral-8b-2410      YYYY --- Y
ministral-3-8b         YYYY YYY Y
mistral-nemo-12b       ---- --- -
mistral-small-24b      ---- --- -
qwen2.5-0.5b           ---- --- -
qwen2.5-1.5b           ---- --- -
r1-distill-qwen-1.5b   ---- --- -
qwen2.5-3b             ---- --- -
qwen2.5-7b             ---- --- -
r1-distill-qwen-7b     ---- --- -
qwen2.5-14b            ---- --- -
r1-distill-qwen-14b    ---- --- -
qwen2.5-32b            ---- --- -
r1-distill-qwen-32b    ---- --- -
qwen3-0.6b             ---- --- -
qwen3-1.7b             ---- --- -
qwen3-4b               ---- --- -
qwen3-8b               YYYY --- Y
ii-medical-8b          YYYY --- Y
qwen3-14b              ---- --- -
qwen3-32b              ---- --- -
gemma-2-2b             ---- --- -
gemma-2-9b             ---- --- -
gemma-3-1b             ---- --- -
gemma-3-4b             ---- --- -
gemma-3-12b            ---- --- -
phi-2                  ---- --- -
phi-3-mini             ---- --- -
phi-4-mini             ---- --- -
phi-4                  ---- --- -
olmo-2-7b              Y--Y --- Y
olmo-2-13b             ---- --- -
smollm2-1.7b           ---- --- -
smollm3-3b             ---- --- -
yi-6b                  Y--Y --- Y
yi-1.5-9b              Y--Y --- Y
internlm2-7b           YYYY YYY Y
exaone-3-7.8b          YYYY YYY Y
exaone-3.5-7.8b        YYYY YYY Y
command-r7b            YYYY YYY Y
glm-4-9b-0414          Y--Y --- Y
granite-3.1-2b         ---- --- -
granite-3.1-8b         YYYY --- Y
falcon3-1b             ---- --- -
falcon3-7b             ---- --- -
starcoder2-3b          ---- --- -
salamandra-7b          YYYY --- Y
"""

# How many parameters their makers say that they have.
PARAMETERS = {
    "llama-2-7b": 6_738_415_616,
    "llama-3-8b": 8_030_261_248,
    "mistral-7b-v0.3": 7_248_023_552,
    "ministral-8b-2410": 8_019_808_256,
    "mixtral-8x7b": 46_702_792_704,
    "qwen2.5-7b": 7_615_616_512,
    "gemma-2-9b": 9_241_705_984,
    "phi-3-mini": 3_821_079_552,
    "salamandra-7b": 7_768_117_248,
    "pythia-6.9b": 6_857_302_016,
    "gpt2": 124_439_808,
}


@pytest.mark.parametrize("name", list_popular_models())
def test_every_popular_model_can_be_compared(name):
    """Each entry of the table describes a whole model of a family that has a file, and names its repository."""
    model = sketch(name)
    assert model.family is not None
    assert model.layers > 1
    assert {None, *range(model.layers)} == set(model.by_layer)
    assert "/" in model.location.reference
    assert name == name.lower()
    assert tell_origin(model) == "table"


@pytest.mark.parametrize("line", SHAPES_OF_LLAMA.split("\n")[1:-1])
def test_the_table_has_the_shapes_that_are_known(line):
    """Un-fused, a model's matrices are of Llama-3-8B's shapes exactly where the reference says so."""
    name, *expected = line.split()
    assert list_alike(name) == expected


def list_alike(name: str) -> list[str]:
    """`["Y--Y", "---", "Y"]`: which matrices have Llama-3-8B's shapes, and whether its norms do."""
    model, llama = sketch(name), sketch("llama-3-8b")

    def mark(role: str) -> str:
        held, theirs = model.by_role.get((0, role)), llama.by_role[0, role]
        return "Y" if held and held[0][1].shape == theirs[0][1].shape else "-"

    norm = "Y" if model.axes["hidden"] == llama.axes["hidden"] else "-"
    return ["".join(map(mark, roles)) for roles in (ATTENTION, GATED)] + [norm]


@pytest.mark.parametrize(("name", "count"), PARAMETERS.items())
def test_the_table_has_as_many_parameters_as_are_published(name, count):
    """The sizes of an entry multiply and add up to the number that the model's makers publish."""
    assert sum(stored.nbytes for stored in sketch(name).checkpoint.tensors.values()) == 2 * count


def test_an_entry_that_takes_over_another_s_keys_changes_only_its_own():
    """`as` is a start: R1-Distill-1.5B is Qwen2.5-1.5B with another theta and an output of its own."""
    popular = list_popular_models()
    changed = {"rope_theta": 10000, "tie_word_embeddings": False}
    assert popular["r1-distill-qwen-1.5b"].config == {**popular["qwen2.5-1.5b"].config, **changed}
    assert popular["ii-medical-8b"].config == popular["qwen3-8b"].config


def has_certain_lines(family: Family) -> bool:
    """Whether config.json says of every tensor whether it is there."""
    return not any(template.maybe for template in family.templates)


@pytest.mark.parametrize(
    "family", [family for family in list_families() if has_certain_lines(family)], ids=lambda family: family.family
)
def test_config_json_alone_says_what_headers_say(tmp_path, family):
    """A model sketched from its config.json has the tensors, shapes and roles that its headers tell."""
    write_fake(tmp_path / "whole", family.family)
    write_config(tmp_path / "alone", make_config(family))
    whole, alone = describe_models_named([str(tmp_path / "whole"), str(tmp_path / "alone")])
    assert {(spec.name, spec.role, spec.shape) for spec in alone.tensors} == {
        (spec.name, spec.role, spec.shape) for spec in whole.tensors
    }
    assert [tell_origin(model) for model in (whole, alone)] == ["headers", "config.json"]


def test_a_sketch_has_experts_where_config_json_says_so():
    """The first layer of DeepSeek-V2-Lite is dense, as its config.json says, and all others have experts."""
    model = sketch("deepseek-v2-lite")
    assert [layer for layer in range(model.layers) if (layer, "ffn_gate") in model.by_role] == [0]
    for role in ("ffn_gate_exps", "ffn_down_shexp", "ffn_gate_inp"):
        assert [layer for layer in range(model.layers) if (layer, role) in model.by_role] == [*range(1, model.layers)]
    assert not {"ffn_gate_shexp_bias", "attn_q_a"} & model.roles


def test_a_folder_comes_before_a_popular_model(tmp_path, monkeypatch):
    """What is here is meant: a folder called llama-3-8b is that folder, and LLAMA-3-8B the popular model."""
    monkeypatch.chdir(tmp_path)
    write_fake(tmp_path / "llama-3-8b")
    here, popular = describe_models_named(["llama-3-8b", "LLAMA-3-8B"])
    assert (here.axes["hidden"], popular.axes["hidden"]) == (8, 4096)
    assert popular.location.reference == "meta-llama/Meta-Llama-3-8B"


def test_models_that_would_read_alike_are_told_apart(tmp_path):
    """Two folders of one name have two labels, however much of each is there."""
    write_fake(tmp_path / "a" / "model")
    write_config(tmp_path / "b" / "model", LLAMA)
    models = describe_models_named([str(tmp_path / "a" / "model"), str(tmp_path / "b" / "model")])
    assert [model.label for model in models] == ["model", "model#2"]


@pytest.mark.parametrize("name", ["with@sign", "with+sign", "two@@signs++"])
def test_a_folder_may_hold_the_signs_of_a_reference(tmp_path, name):
    """A folder that exists is a folder, though its name reads like a revision or an adapter."""
    write_fake(tmp_path / name)
    assert describe_models_named([str(tmp_path / name)])[0].label == name


def test_the_folder_around_us_has_its_own_name(tmp_path, monkeypatch):
    """`.` is called by the folder's name, with weights and without."""
    (tmp_path / "mine").mkdir()
    monkeypatch.chdir(tmp_path / "mine")
    (tmp_path / "mine" / "config.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"^mine is here as a config\.json alone"):
        describe_models_named(["."])


def test_an_unknown_name_is_refused_with_the_nearest():
    """A name without a slash is a folder or a popular model, and the error names the one that was meant."""
    with pytest.raises(CheckpointError) as caught:
        describe_models_named(["llama3-8b"])
    assert caught.value.what == "there is no folder 'llama3-8b', and no popular model of that name."
    assert caught.value.remedy == "did you mean 'llama-3-8b'? A repository is named org/name."


def test_a_config_of_an_unknown_type_says_too_little(tmp_path):
    """Without headers only a family file tells the tensors; the refusal names the type and the nearest known."""
    write_config(tmp_path / "model", {"model_type": "lama"})
    with pytest.raises(CheckpointError) as caught:
        describe_models_named([str(tmp_path / "model")])
    assert caught.value.what == (
        "model is here as a config.json alone, and no family file says what tensors a 'lama' has."
    )
    assert caught.value.why == "families are found by 'model_type'; did you mean 'llama'?"
    assert caught.value.remedy is not None and "headers are enough" in caught.value.remedy


def test_pickled_weights_do_not_hide_a_config(tmp_path):
    """A folder whose weights are not opened is compared by its config.json, and known for what it holds."""
    folder = write_config(tmp_path / "model", LLAMA)
    (folder / "pytorch_model.bin").write_bytes(b"pickle")
    (model,) = describe_models_named([str(folder)])
    assert tell_origin(model) == "pickle"


def test_an_index_without_its_shards_is_a_config_alone(tmp_path):
    """Half a download is compared by what is here."""
    folder = write_config(tmp_path / "model", LLAMA)
    (folder / "model.safetensors.index.json").write_text("{}")
    (model,) = describe_models_named([str(folder)])
    assert (model.axes["hidden"], tell_origin(model)) == (4096, "config.json")


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ({"num_hidden_layers": 10**9}, "1000000000 layers"),
        ({"model_type": "mixtral", "num_hidden_layers": 5000, "num_local_experts": 5000}, "5000 layers, 5000 experts"),
    ],
)
def test_a_config_cannot_ask_for_names_without_end(tmp_path, said, told):
    """No header confirms these numbers, so numbers that no model has are refused at once."""
    write_config(tmp_path / "model", {**LLAMA, **said})
    start = time.process_time()
    with pytest.raises(CheckpointError) as caught:
        describe_models_named([str(tmp_path / "model")])
    assert caught.value.what == f"model/config.json says {told}, which no model has."
    assert time.process_time() - start < 1


def test_a_damaged_config_is_refused(tmp_path):
    """A config.json that lacks a size, or is none, is named with what is wrong."""
    write_config(tmp_path / "short", {"model_type": "llama"})
    (write_config(tmp_path / "torn", {}) / "config.json").write_text("{")
    for name, told in (("short", "does not say how large 'layers' is"), ("torn", "is not JSON")):
        with pytest.raises(CheckpointError, match=told):
            describe_models_named([str(tmp_path / name)])


def test_a_name_that_is_no_text_is_refused(tmp_path):
    """A name of bytes that are no UTF-8 is shown as it is and refused, in place of a failure further on."""
    folder = tmp_path / os.fsdecode(b"caf\xe9")
    write_config(folder, LLAMA)
    with pytest.raises(CheckpointError) as caught:
        describe_models_named([str(folder)])
    assert caught.value.what.endswith(r"caf\xe9 holds bytes that are no text.")


def test_a_folder_takes_no_adapter(tmp_path, monkeypatch):
    """What is no folder is read as a reference, with its refusals."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(PlanError, match="has a LoRA adapter"):
        describe_models_named(["org/model+org/adapter"])


def test_the_models_of_a_folder_are_its_folders_with_a_config(tmp_path):
    """By name, and nothing else: no file, no folder without config.json, nothing further down."""
    for name in ("b", "a"):
        write_config(tmp_path / name, LLAMA)
    write_config(tmp_path / "c" / "d", LLAMA)
    (tmp_path / "config.json").write_text("{}")
    assert [path.name for path in list_model_folders(tmp_path)] == ["a", "b"]


def test_a_folder_without_models_is_refused(tmp_path):
    """Whether it is empty or is not there, in words."""
    with pytest.raises(CheckpointError, match=r"no folder in .* holds a config\.json"):
        list_model_folders(tmp_path)
    with pytest.raises(CheckpointError, match="there is no folder"):
        list_model_folders(tmp_path / "missing")


def test_shallow_models_are_of_real_widths(tmp_path):
    """What the tests of recipes write is a popular model with fewer layers, and takes no room."""
    folder = write_shallow(tmp_path / "gemma", "gemma-3-4b", 3)
    (model,) = describe_models_named([str(folder)])
    assert (model.layers, model.axes["hidden"], tell_origin(model)) == (3, 2560, "headers")
    assert (folder / "model.safetensors").stat().st_blocks * 512 < 64 * 1024
    assert write_headers(tmp_path / "empty", {}, {}).is_dir()
