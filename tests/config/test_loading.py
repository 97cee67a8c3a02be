"""Reading a configuration file: what it may say, and what is said of each mistake."""

import json
import os
from contextlib import suppress
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from xmerge.config import MergeConfig, load_config, parse_config, parse_reference
from xmerge.errors import ConfigError

LINEAR = """\
merge_method: linear
models:
- model: a
  parameters: {weight: 1}
- model: b
  parameters: {weight: 2}
"""
SLERP = """\
merge_method: slerp
base_model: a
slices:
- sources:
  - {model: a, layer_range: [0, 4]}
  - {model: b, layer_range: [2, 6]}
"""
STACK = "merge_method: passthrough\nslices:\n- sources: [{model: a, layer_range: RANGE}]\n"
TOP_KEYS = (
    "architecture, base_model, chat_template, dtype, folds, globals, layer_map, merge_method, models, modules, name, "
    "on_different_heads, on_mismatch, on_nonfinite, out_dtype, parameters, publish, random_seed, rng, slices, "
    "tokenizer, tokenizer_source, unlisted_layers"
)


def refuse(text: str) -> str:
    """What is said of a configuration that must be refused."""
    with pytest.raises(ConfigError) as caught:
        parse_config(text, "recipe.yml")
    assert caught.value.exit_code == 2
    return str(caught.value)


KEYS = {
    "at the top": (LINEAR + "base_modle: a", 7, "base_modle", "unknown key 'base_modle'; did you mean 'base_model'?"),
    "of a model": (
        "merge_method: linear\nmodels:\n- model: a\n  paramters: {weight: 1}",
        4,
        "models[0].paramters",
        "unknown key 'paramters'; did you mean 'parameters'?",
    ),
    "of a slice": (
        SLERP + "  residual_wieght: 1",
        7,
        "slices[0].residual_wieght",
        "unknown key 'residual_wieght'; did you mean 'residual_weight'?",
    ),
    "of a source, in place of a key that must be there": (
        "merge_method: passthrough\nslices:\n- sources:\n  - {model: a, layer_rnge: [0, 1]}",
        4,
        "slices[0].sources[0].layer_rnge",
        "unknown key 'layer_rnge'; did you mean 'layer_range'?",
    ),
    "of a model reference": (
        LINEAR + "base_model: {model: a, loar: b}",
        7,
        "base_model.loar",
        "unknown key 'loar'; did you mean 'lora'?",
    ),
    "of a model path": (
        LINEAR + "base_model: {path: a, revison: b}",
        7,
        "base_model.revison",
        "unknown key 'revison'; did you mean 'revision'?",
    ),
    "of a filter": (
        SLERP + "parameters:\n  t:\n  - {filter: mlp, value: 1}\n  - {filtre: attn, value: 1}",
        10,
        "parameters.t[1].filtre",
        "unknown key 'filtre'; did you mean 'filter'?",
    ),
    "of a module": (
        "merge_method: linear\nmodules:\n  default:\n    model: [{model: a}]\n    models: [{model: a}]",
        4,
        "modules.default.model",
        "unknown key 'model'; did you mean 'models'?",
    ),
    "of the tokenizer": (
        LINEAR + "tokenizer: {sorce: base}",
        7,
        "tokenizer.sorce",
        "unknown key 'sorce'; did you mean 'source'?",
    ),
    "of a token": (
        LINEAR + "tokenizer: {tokens: {<A>: {frce: true}}}",
        7,
        "tokenizer.tokens.<A>.frce",
        "unknown key 'frce'; did you mean 'force'?",
    ),
    "of the publication": (
        LINEAR + "publish: {repo: a/b, brnch: c}",
        7,
        "publish.brnch",
        "unknown key 'brnch'; did you mean 'branch'?",
    ),
    "like no other": (LINEAR + "zzz: 1", 7, "zzz", f"unknown key 'zzz'; valid here: {TOP_KEYS}."),
    "that is a number": (LINEAR + "3: 1", 7, "3", f"unknown key '3'; valid here: {TOP_KEYS}."),
    "that is null": (LINEAR + "~: 1", 7, "~", f"unknown key '~'; valid here: {TOP_KEYS}."),
    "that moves the cursor": (
        LINEAR + '"\\e[2J": 1',
        7,
        "'\\x1b[2J'",
        f"unknown key '\\x1b[2J'; valid here: {TOP_KEYS}.",
    ),
}

METHODS_AND_PARAMETERS = {
    "unknown method": (
        "merge_method: slrep\nmodels: [{model: a}]",
        1,
        "merge_method",
        "there is no merge method 'slrep'; did you mean 'slerp'?",
    ),
    "unknown parameter": (
        LINEAR + "parameters: {wieght: 1}",
        7,
        "parameters.wieght",
        "linear has no parameter 'wieght'; did you mean 'weight'?",
    ),
    "unknown parameter of a model": (
        "merge_method: linear\nmodels:\n- model: a\n  parameters: {wieght: 1}",
        4,
        "models[0].parameters.wieght",
        "linear has no parameter 'wieght'; did you mean 'weight'?",
    ),
    "unknown parameter of a slice": (
        SLERP + "  parameters: {weight: 1}",
        7,
        "slices[0].parameters.weight",
        "slerp has no parameter 'weight'; valid here: t.",
    ),
    "unknown parameter of a source": (
        SLERP + "  - {model: a, layer_range: [0, 4], parameters: {s: 1}}",
        7,
        "slices[0].sources[2].parameters.s",
        "slerp has no parameter 's'; valid here: t.",
    ),
    "unknown parameter of the globals": (
        SLERP + "globals: {tt: 1}",
        7,
        "globals.tt",
        "slerp has no parameter 'tt'; did you mean 't'?",
    ),
    "unknown parameter of a module": (
        "merge_method: linear\nmodules:\n  default:\n    models: [{model: a}]\n    parameters: {wieght: 1}",
        5,
        "modules.default.parameters.wieght",
        "linear has no parameter 'wieght'; did you mean 'weight'?",
    ),
    "one for all models, under one of them": (
        "merge_method: linear\nmodels:\n- model: a\n  parameters: {normalize: true}",
        4,
        "models[0].parameters.normalize",
        (
            "'normalize' is one value for all models and cannot stand under one of them; "
            "move it to the configuration's or the slice's 'parameters'."
        ),
    ),
    "out of range": (SLERP + "parameters: {t: 1.5}", 7, "parameters.t", "'t' is 1.5; it must be 0 to 1."),
    "out of range in a gradient": (
        SLERP + "parameters: {t: [0, -0.5]}",
        7,
        "parameters.t",
        "'t' is -0.5; it must be 0 to 1.",
    ),
    "half a switch": (
        LINEAR + "parameters: {normalize: 0.5}",
        7,
        "parameters.normalize",
        "'normalize' is true or false, not 0.5.",
    ),
    "not a number": (
        SLERP + "parameters: {t: .nan}",
        7,
        "parameters.t",
        "expected a finite number, got nan.",
    ),
    "infinite": (SLERP + "parameters: {t: -.inf}", 7, "parameters.t", "expected a finite number, got -inf."),
    "infinite in disguise": (
        SLERP + "parameters: {t: '1e999'}",
        7,
        "parameters.t",
        "expected a finite number, got '1e999'.",
    ),
    "larger than float32": (
        LINEAR + "globals: {weight: [1, -1.0e+39]}",
        7,
        "globals.weight[1]",
        "-1e+39 is too large: the arithmetic is that of float32.",
    ),
    "nothing": (SLERP + "parameters: {t: }", 7, "parameters.t", "expected a finite number, got nothing."),
    "a word": (SLERP + "parameters: {t: [0, x]}", 7, "parameters.t[1]", "expected a finite number, got 'x'."),
    "a word under a filter": (
        SLERP + "parameters: {t: [{filter: mlp, value: [0, x]}]}",
        7,
        "parameters.t[0].value[1]",
        "expected a finite number, got 'x'.",
    ),
    "an empty list": (
        SLERP + "parameters: {t: []}",
        7,
        "parameters.t",
        "an empty list has no value; give a number, or leave the parameter out.",
    ),
    "a filter outside a list": (
        SLERP + "parameters: {t: {filter: mlp, value: 1}}",
        7,
        "parameters.t",
        "a filter stands in a list: write '- filter: ...' with its 'value' below it.",
    ),
    "our own record of a setting": (
        SLERP + "parameters: {t: {entries: [{value: 1}]}}",
        7,
        "parameters.t",
        "a filter stands in a list: write '- filter: ...' with its 'value' below it.",
    ),
    "numbers and filters": (
        SLERP + "parameters: {t: [0.5, {filter: mlp, value: 1}]}",
        7,
        "parameters.t",
        "numbers and filters cannot be mixed in one list; give each filter its own 'value'.",
    ),
    "a filter without a value": (
        SLERP + "parameters: {t: [{filter: mlp}]}",
        7,
        "parameters.t[0]",
        "the key 'value' is missing.",
    ),
    "a number as filter": (
        SLERP + "parameters: {t: [{filter: 3, value: 1}]}",
        7,
        "parameters.t[0].filter",
        "expected text, got 3; put it in quotes.",
    ),
}

DTYPES = "valid here: bfloat16, float16, float32."
VALUES = {
    "models as a number": ("merge_method: linear\nmodels: 3", 2, "models", "expected a list, got 3."),
    "models as a mapping": (
        "merge_method: linear\nmodels: {model: a}",
        2,
        "models",
        "expected a list, got {'model': 'a'}.",
    ),
    "models without a value": ("merge_method: linear\nmodels:", 2, "models", "expected a list, got nothing."),
    "a model as text": ("merge_method: linear\nmodels: [a]", 2, "models[0]", "expected a mapping, got 'a'."),
    "a slice as a number": ("merge_method: linear\nslices: [1]", 2, "slices[0]", "expected a mapping, got 1."),
    "modules as a list": ("merge_method: linear\nmodules: [a]", 2, "modules", "expected a mapping, got ['a']."),
    "a module without a value": (
        "merge_method: linear\nmodules: {default: }",
        2,
        "modules.default",
        "expected a mapping, got nothing.",
    ),
    "parameters as a list": (LINEAR + "parameters: []", 7, "parameters", "expected a mapping, got []."),
    "parameters without a value": (LINEAR + "parameters:", 7, "parameters", "expected a mapping, got nothing."),
    "globals as a list": (LINEAR + "globals: [1]", 7, "globals", "expected a mapping, got [1]."),
    "method missing": ("models: [{model: a}]", 1, "", "the key 'merge_method' is missing."),
    "method without a value": (
        "merge_method:\nmodels: [{model: a}]",
        1,
        "merge_method",
        "expected text, got nothing.",
    ),
    "an empty model": (LINEAR + "base_model: {}", 7, "base_model", "the key 'model' is missing."),
    "an empty name": (LINEAR + "base_model: ''", 7, "base_model", "the text is empty."),
    "a number as model": (
        LINEAR + "base_model: 70",
        7,
        "base_model",
        "expected a model (a folder, org/name, or a mapping), got 70; put a name like that in quotes.",
    ),
    "a word that YAML takes for a boolean": (
        LINEAR + "base_model: no",
        7,
        "base_model",
        "expected a model (a folder, org/name, or a mapping), got false; put a name like that in quotes.",
    ),
    "a list as architecture": (
        LINEAR + "architecture: [a]",
        7,
        "architecture",
        "expected a model (a folder, org/name, or a mapping), got ['a'].",
    ),
    "a number as revision": (
        LINEAR + "base_model: {path: a, revision: 1234567}",
        7,
        "base_model.revision",
        "expected text, got 1234567; put it in quotes.",
    ),
    "two revisions": (
        LINEAR + "base_model: a@b@c",
        7,
        "base_model",
        "'a@b@c' has more than one '@'; write it as a mapping with 'path' and 'revision'.",
    ),
    "two adapters": (
        LINEAR + "base_model: a+b+c",
        7,
        "base_model",
        "'a+b+c' has more than one '+'; write it as a mapping with 'model' and 'lora'.",
    ),
    "two revisions of an architecture": (
        LINEAR + "architecture: a@b@c",
        7,
        "architecture",
        "'a@b@c' has more than one '@'; write it as a mapping with 'path' and 'revision'.",
    ),
    "no revision": (LINEAR + "base_model: a@", 7, "base_model", "'a@' names no revision behind its '@'."),
    "no adapter": (LINEAR + "base_model: a+", 7, "base_model", "'a+' names no adapter behind its '+'."),
    "a range as text": (
        STACK.replace("RANGE", "0-4"),
        3,
        "slices[0].sources[0].layer_range",
        "expected [start, end], two whole numbers, got '0-4'.",
    ),
    "our own record of a range": (
        STACK.replace("RANGE", "{start: 4, end: 2}"),
        3,
        "slices[0].sources[0].layer_range",
        "expected [start, end], two whole numbers, got {'end': 2, 'start': 4}.",
    ),
    "a range of three": (
        STACK.replace("RANGE", "[0, 2, 4]"),
        3,
        "slices[0].sources[0].layer_range",
        "expected [start, end], two whole numbers, got [0, 2, 4].",
    ),
    "a range of fractions": (
        STACK.replace("RANGE", "[0, 2.0]"),
        3,
        "slices[0].sources[0].layer_range",
        "expected [start, end], two whole numbers, got [0, 2.0].",
    ),
    "a reversed range": (
        STACK.replace("RANGE", "[4, 2]"),
        3,
        "slices[0].sources[0].layer_range",
        "[4, 2] covers no layer; a range is [start, end) with start below end: did you mean [2, 4]?",
    ),
    "an empty range": (
        STACK.replace("RANGE", "[4, 4]"),
        3,
        "slices[0].sources[0].layer_range",
        "[4, 4] covers no layer; a range is [start, end) with start below end.",
    ),
    "a negative range": (
        STACK.replace("RANGE", "[-1, 2]"),
        3,
        "slices[0].sources[0].layer_range",
        "layers count from 0; [-1, 2] starts below it.",
    ),
    "unequal ranges": (
        SLERP.replace("[2, 6]", "[2, 7]"),
        6,
        "slices[0].sources[1].layer_range",
        "b gives 5 layers [2, 7] where a gives 4 [0, 4]; the sources of a slice span equally many.",
    ),
    "a slice of nothing": (
        "merge_method: passthrough\nslices:\n- sources: []",
        3,
        "slices[0].sources",
        "a slice has at least one source.",
    ),
    "an infinite residual weight": (
        STACK.replace("RANGE", "[0, 1]") + "  residual_weight: .inf",
        4,
        "slices[0].residual_weight",
        "expected a finite number, got inf.",
    ),
    "models and slices": (
        SLERP + "models: [{model: a}]",
        1,
        "",
        "a configuration has exactly one of 'models', 'slices' and 'modules'; this one has models and slices.",
    ),
    "neither models nor slices": (
        "merge_method: linear",
        1,
        "",
        "a configuration has exactly one of 'models', 'slices' and 'modules'.",
    ),
    "models and slices of a module": (
        "merge_method: linear\nmodules:\n  default: {}",
        3,
        "modules.default",
        "give exactly one of 'models' and 'slices'.",
    ),
    "two tokenizers": (
        LINEAR + "tokenizer: {}\ntokenizer_source: base",
        8,
        "tokenizer_source",
        "'tokenizer' and 'tokenizer_source' exclude each other; keep 'tokenizer'.",
    ),
    "a token that is zero and another": (
        LINEAR + "tokenizer: {tokens: {x: {source: {kind: zero, token: y}}}}",
        7,
        "tokenizer.tokens.x.source.kind",
        "'zero' stands alone; 'model_token' has 'model' and one of 'token' and 'token_id'.",
    ),
    "an unknown dtype": (
        LINEAR + "dtype: bf16",
        7,
        "dtype",
        f"'bf16' is no dtype that a merge can be written in; {DTYPES}",
    ),
    "a boolean as dtype": (
        LINEAR + "out_dtype: true",
        7,
        "out_dtype",
        f"true is no dtype that a merge can be written in; {DTYPES}",
    ),
    "an integer dtype": (
        LINEAR + "dtype: torch.int64",
        7,
        "dtype",
        f"'torch.int64' is no dtype that a merge can be written in; {DTYPES}",
    ),
    "a layer map as a word": (
        LINEAR + "layer_map: proportinal",
        7,
        "layer_map",
        "expected exact, proportional or a list of [base layer, donor layer], got 'proportinal'.",
    ),
    "a layer map of nothing": (
        LINEAR + "layer_map: []",
        7,
        "layer_map",
        "expected exact, proportional or a list of [base layer, donor layer], got [].",
    ),
    "a layer map below zero": (
        LINEAR + "layer_map: [[0, 0], [1, -1]]",
        7,
        "layer_map[1]",
        "expected [base layer, donor layer], two whole numbers from 0, got [1, -1].",
    ),
    "a base layer twice": (
        LINEAR + "layer_map:\n- [0, 1]\n- [0, 2]",
        9,
        "layer_map[1]",
        "base layer 0 stands twice; one donor layer meets one base layer.",
    ),
    "a wrong choice": (LINEAR + "on_mismatch: bse", 7, "on_mismatch", "expected 'error' or 'base', got 'bse'."),
    "a negative seed": (LINEAR + "random_seed: -1", 7, "random_seed", "expected 0 or more, got -1."),
    "a seed as text": (LINEAR + "random_seed: '3'", 7, "random_seed", "expected a whole number, got '3'."),
    "a boolean as seed": (LINEAR + "random_seed: true", 7, "random_seed", "expected a whole number, got true."),
    "a seed of 64 bits": (
        LINEAR + f"random_seed: {2**63}",
        7,
        "random_seed",
        f"expected less than {2**63}, got {2**63}.",
    ),
    "publish as text": (LINEAR + "publish: org/name", 7, "publish", "expected a mapping, got 'org/name'."),
    "publish to nowhere": (LINEAR + "publish: {}", 7, "publish", "the key 'repo' is missing."),
    "publish to no repository": (
        LINEAR + "publish: {repo: a/b/c}",
        7,
        "publish.repo",
        "'a/b/c' is no name of a repository on the Hub (org/name).",
    ),
    "publish to no branch": (
        LINEAR + "publish: {repo: a/b, branch: ../c}",
        7,
        "publish.branch",
        "'../c' is no name of a branch.",
    ),
    "a value of a thousand letters": (
        LINEAR + "dtype: " + "x" * 1000,
        7,
        "dtype",
        f"'{'x' * 27}...{'x' * 28}' is no dtype that a merge can be written in; {DTYPES}",
    ),
}


@pytest.mark.parametrize(("text", "line", "path", "what"), KEYS.values(), ids=KEYS)
def test_an_unknown_key_is_named_with_the_nearest_known_one(text: str, line: int, path: str, what: str):
    """At every level, an unknown key is refused with its line, its path, and the key that was probably meant."""
    assert refuse(text) == f"{what}\n  at: recipe.yml, line {line}: {path}"


@pytest.mark.parametrize(("text", "line", "path", "what"), METHODS_AND_PARAMETERS.values(), ids=METHODS_AND_PARAMETERS)
def test_a_wrong_parameter_is_refused_where_it_stands(text: str, line: int, path: str, what: str):
    """An unknown, misplaced or impossible parameter is refused with its line, its path and what would be right."""
    assert refuse(text) == f"{what}\n  at: recipe.yml, line {line}: {path}"


@pytest.mark.parametrize(("text", "line", "path", "what"), VALUES.values(), ids=VALUES)
def test_a_wrong_value_is_refused_where_it_stands(text: str, line: int, path: str, what: str):
    """A value of the wrong kind or size is refused with its line, its path and what would be right."""
    assert refuse(text) == f"{what}\n  at: recipe.yml, line {line}" + (f": {path}" if path else "")


def test_all_mistakes_are_told_at_once():
    """Several mistakes are listed together, in the order of the file, also when one of them is an unknown key."""
    text = "merge_methd: linear\nmodels:\n- model: a@b@c\n  paramters: {}\nrandom_seed: -1\ndtype: bf16\n"
    assert refuse(text) == (
        "recipe.yml has 5 errors.\n"
        "  at: recipe.yml, line 1: merge_methd: unknown key 'merge_methd'; did you mean 'merge_method'?\n"
        "      recipe.yml, line 3: models[0].model: 'a@b@c' has more than one '@'; "
        "write it as a mapping with 'path' and 'revision'.\n"
        "      recipe.yml, line 4: models[0].paramters: unknown key 'paramters'; did you mean 'parameters'?\n"
        "      recipe.yml, line 5: random_seed: expected 0 or more, got -1.\n"
        f"      recipe.yml, line 6: dtype: 'bf16' is no dtype that a merge can be written in; {DTYPES}"
    )


def test_all_wrong_parameters_are_told_at_once():
    """Several wrong parameters are listed together."""
    assert refuse(SLERP + "parameters: {t: 3}\nglobals: {s: 1}").splitlines() == [
        "recipe.yml has 2 errors.",
        "  at: recipe.yml, line 7: parameters.t: 't' is 3; it must be 0 to 1.",
        "      recipe.yml, line 8: globals.s: slerp has no parameter 's'; valid here: t.",
    ]


def test_a_thousand_mistakes_do_not_fill_the_screen():
    """Of very many mistakes the first are told, and how many there are."""
    lines = refuse("merge_method: linear\nmodels:\n" + "- 3\n" * 1000).splitlines()
    assert lines[0] == "recipe.yml has 1000 errors."
    assert lines[-1].strip() == "and 980 more."
    assert len(lines) == 22


NO_KEYS = (
    "recipe.yml is not a merge configuration.\n  why: it has no keys at its top level.\n"
    "  do: `xmerge compat BASE DONOR` prints one to start from."
)
YAML = {
    "syntax": (
        "merge_method: [",
        (
            "recipe.yml is not valid YAML: while parsing a flow node, expected the node content, but found "
            "'<stream end>'.\n  at: recipe.yml, line 1"
        ),
    ),
    "tab": (
        "merge_method:\n\t- a",
        (
            "recipe.yml is not valid YAML: while scanning for the next token, found character '\\t' that cannot start "
            "any token.\n  at: recipe.yml, line 2\n  do: indent with spaces; YAML knows no tabs."
        ),
    ),
    "two documents": (
        f"{LINEAR}---\n{LINEAR}",
        (
            "recipe.yml has 2 documents, and one configuration is asked for.\n  at: recipe.yml, line 8\n"
            "  do: keep one of them; `xmerge merge` and `xmerge plan` take all as stages of one merge."
        ),
    ),
    "unknown alias": (
        "models: *a",
        "recipe.yml is not valid YAML: found undefined alias 'a'.\n  at: recipe.yml, line 1",
    ),
    "control character": (
        LINEAR + "dtype: \x01",
        "recipe.yml is not text: it holds the character U+0001.\n  at: recipe.yml, line 7",
    ),
    "lone surrogate": (
        LINEAR + 'chat_template: "\\ud800"',
        "the text holds half a character (a lone surrogate).\n  at: recipe.yml, line 7",
    ),
    "duplicate key": (
        LINEAR + "merge_method: slerp",
        (
            "the key 'merge_method' stands twice.\n  at: recipe.yml, line 7: merge_method\n"
            "  do: keep one; the first is in line 1."
        ),
    ),
    "duplicate key deep down": (
        "models:\n- model: a\n  parameters:\n    weight: 1\n    weight: 2",
        (
            "the key 'weight' stands twice.\n  at: recipe.yml, line 5: models[0].parameters.weight\n"
            "  do: keep one; the first is in line 4."
        ),
    ),
    "list as key": ("? [a]\n: 1", "a key must be plain text.\n  at: recipe.yml, line 1"),
    "python object": (
        "dtype: !!python/object:os.system x",
        (
            "the YAML tag 'tag:yaml.org,2002:python/object:os.system' has no meaning in a configuration.\n"
            "  at: recipe.yml, line 1"
        ),
    ),
    "tag of a mapping": (
        LINEAR + "parameters: !mine {weight: 1}",
        "the YAML tag '!mine' has no meaning in a configuration.\n  at: recipe.yml, line 7",
    ),
    "set": (
        LINEAR + "parameters: !!set {weight}",
        "the YAML tag 'tag:yaml.org,2002:set' has no meaning in a configuration.\n  at: recipe.yml, line 7",
    ),
    "no boolean": (
        LINEAR + "dtype: !!bool maybe",
        "the value 'maybe' is no YAML bool.\n  at: recipe.yml, line 7",
    ),
    "no integer": (LINEAR + "dtype: !!int ''", "the value '' is no YAML int.\n  at: recipe.yml, line 7"),
    "merge of a number": (LINEAR + "<<: 3", "'<<' takes a mapping, or a list of them.\n  at: recipe.yml, line 7"),
    "nothing": ("", NO_KEYS),
    "only a comment": ("# x", NO_KEYS),
    "a list": ("[1]", NO_KEYS),
}


@pytest.mark.parametrize(("text", "what"), YAML.values(), ids=YAML)
def test_wrong_yaml_is_refused_with_its_line(text: str, what: str):
    """What is no YAML, or YAML with no meaning here, is refused with the line of the fault."""
    assert refuse(text) == what


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("a: " + "[" * 1200 + "]" * 1200, "nested too deeply"),
        ("".join(f"{' ' * depth}a:\n" for depth in range(1500)), "nested too deeply"),
        ("models: &a [*a]", "nested too deeply"),
        ("models: &a {<<: *a}", "nested too deeply"),
        ("".join(f"k{i}: &k{i} [{', '.join([f'*k{i - 1}' if i else 'x'] * 9)}]\n" for i in range(9)), "100000 values"),
    ],
    ids=["deep", "deep by lines", "in itself", "merged with itself", "alias bomb"],
)
def test_yaml_that_exhausts_is_refused(text: str, what: str):
    """A file that unfolds without end is refused after a bounded amount of work."""
    assert what in refuse(text)


@given(st.text(st.characters(codec="utf-8"), max_size=200))
def test_any_text_is_a_configuration_or_refused(text: str):
    """Whatever the text, reading it gives a configuration or a ConfigError."""
    with suppress(ConfigError):
        assert parse_config(text).fingerprint


scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 9),
    st.floats(),
    st.sampled_from(["", "a", "a@b", "a+b", "linear", "slerp", "base", "*", "exact", "bfloat16"]),
    st.dates(),
)
words = st.sampled_from(
    [
        "merge_method",
        "models",
        "slices",
        "modules",
        "base_model",
        "dtype",
        "tokenizer_source",
        "tokenizer",
        "tokens",
        "source",
        "force",
        "parameters",
        "t",
        "weight",
        "normalize",
        "globals",
        "architecture",
        "layer_map",
        "on_mismatch",
        "random_seed",
        "publish",
        "repo",
        "branch",
        "model",
        "path",
        "revision",
        "lora",
        "sources",
        "layer_range",
        "filter",
        "value",
        "kind",
    ]
)
documents = st.recursive(
    scalars,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.dictionaries(words, inner, max_size=6),
        st.dictionaries(st.one_of(words, st.integers(0, 3), st.booleans()), inner, max_size=3),
    ),
    max_leaves=25,
)
shapes = st.fixed_dictionaries(
    {"merge_method": st.one_of(st.sampled_from(["linear", "slerp", "passthrough"]), documents)},
    optional={
        "models": st.one_of(documents, st.lists(st.fixed_dictionaries({"model": documents}), max_size=3)),
        "slices": st.one_of(
            documents,
            st.lists(
                st.fixed_dictionaries(
                    {"sources": st.lists(st.fixed_dictionaries({"model": documents, "layer_range": documents}))}
                )
            ),
        ),
        **dict.fromkeys(
            [
                "base_model",
                "dtype",
                "tokenizer_source",
                "tokenizer",
                "parameters",
                "globals",
                "architecture",
                "layer_map",
                "publish",
            ],
            documents,
        ),
    },
)


@settings(max_examples=60)
@given(st.one_of(documents, shapes))
def test_any_data_is_a_configuration_or_refused(data: object):
    """Whatever well-formed YAML says, reading it gives a configuration or a ConfigError."""
    with suppress(ConfigError):
        config = parse_config(yaml.safe_dump(data))
        assert config.fingerprint == MergeConfig.model_validate(config.model_dump(mode="json")).fingerprint


numbers = st.floats(-2, 2)
written_settings = st.one_of(
    numbers,
    st.lists(numbers, min_size=1, max_size=4),
    st.lists(
        st.fixed_dictionaries({"value": numbers}, optional={"filter": st.sampled_from(["q", "*", "ü😀"])}), min_size=1
    ),
)
references = st.sampled_from(["a", "org/name@main", "c+d@e", {"path": "a@b"}, {"model": {"path": "+"}, "lora": "x"}])
inputs = st.fixed_dictionaries(
    {"model": references}, optional={"parameters": st.fixed_dictionaries({}, optional={"weight": written_settings})}
)
sources = st.builds(
    lambda model, start, length: {"model": model, "layer_range": [start, start + length]},
    references,
    st.integers(0, 9),
    st.just(3),
)
pieces = st.fixed_dictionaries(
    {"sources": st.lists(sources, min_size=1, max_size=3)}, optional={"base_model": references}
)
good = st.builds(
    lambda body, rest: {"merge_method": "linear"} | body | rest,
    st.one_of(
        st.lists(inputs, min_size=1, max_size=3).map(lambda models: {"models": models}),
        st.lists(pieces, min_size=1, max_size=3).map(lambda slices: {"slices": slices}),
        st.lists(inputs, min_size=1, max_size=2).map(lambda models: {"modules": {"default": {"models": models}}}),
    ),
    st.fixed_dictionaries(
        {},
        optional={
            "base_model": references,
            "dtype": st.sampled_from(["bfloat16", "torch.float32"]),
            "tokenizer_source": st.one_of(st.just("union"), references),
            "chat_template": st.text(st.characters(codec="utf-8")),
            "parameters": st.fixed_dictionaries({"weight": written_settings}, optional={"normalize": st.booleans()}),
            "architecture": st.one_of(st.just("base"), references),
            "layer_map": st.one_of(st.sampled_from(["exact", "proportional"]), st.just([[0, 1], [2, 2]])),
            "random_seed": st.integers(0, 2**63 - 1),
            "publish": st.just({"repo": "org/name", "visibility": "public"}),
        },
    ),
)


@settings(max_examples=50)
@given(good)
def test_a_configuration_reads_what_it_writes(data: dict[str, object]):
    """A configuration written as JSON or YAML, its keys in any order, and read again has the same fingerprint."""
    config = parse_config(yaml.safe_dump(data))
    written = config.model_dump(mode="json")
    assert MergeConfig.model_validate(json.loads(json.dumps(written))).fingerprint == config.fingerprint
    assert parse_config(json.dumps(written)).fingerprint == config.fingerprint
    assert parse_config(yaml.safe_dump(written)).fingerprint == config.fingerprint
    assert parse_config(yaml.safe_dump(dict(reversed(data.items())), sort_keys=False)).fingerprint == config.fingerprint


@settings(max_examples=30)
@given(good, st.data())
def test_what_counts_changes_the_fingerprint(data: dict[str, object], draw: st.DataObject):
    """Two configurations that differ in a value have different fingerprints; comments and layout do not count."""
    text = yaml.safe_dump(data)
    config = parse_config(text)
    assert parse_config(f"# a comment\n\n{text}").fingerprint == config.fingerprint
    seed = draw.draw(st.integers(0, 2**63 - 1).filter(lambda seed: seed != config.random_seed))
    assert parse_config(yaml.safe_dump(data | {"random_seed": seed})).fingerprint != config.fingerprint


def test_an_anchor_may_be_merged_into_a_mapping():
    """A `<<` brings in the keys that the mapping does not have itself; of several, the first that has a key decides."""
    config = parse_config(
        "merge_method: linear\n"
        "models:\n"
        "- &one {model: a, parameters: {weight: 1}}\n"
        "- &two {model: b, parameters: {weight: 2}}\n"
        "- {<<: *two, model: c}\n"
        "- {<<: [*one, *two], model: d}\n"
    )
    assert [str(each.model) for each in config.models] == ["a", "b", "c", "d"]
    assert [each.parameters["weight"].evaluate([], 0) for each in config.models] == [1, 2, 2, 1]


def test_a_configuration_knows_the_lines_of_its_file():
    """Whoever finds a fault later can still say in which line of which file it stands."""
    config = parse_config(SLERP, "recipe.yml")
    assert config.source.locate("slices", 0, "sources", 1) == "recipe.yml, line 6: slices[0].sources[1]"
    assert config.source.locate("slices", 0, "parameters", "t") == "recipe.yml, line 4: slices[0].parameters.t"
    assert config.source.text == SLERP


def test_a_date_is_text():
    """A revision that looks like a date or a number with an exponent is the text that was written."""
    config = parse_config(LINEAR + "base_model: {path: a, revision: 2024-01-02}")
    assert str(config.base_model) == "a@2024-01-02"
    config = parse_config(LINEAR + "base_model: {path: a, revision: 1234e56}")
    assert str(config.base_model) == "a@1234e56"


def test_a_file_is_read_with_its_name_and_its_folder(tmp_path: Path):
    """A configuration from a file carries the file's name for errors and its folder for models; a BOM is no matter."""
    (tmp_path / "recipe.yml").write_bytes(b"\xef\xbb\xbf" + LINEAR.encode())
    config = load_config(tmp_path / "recipe.yml")
    assert config.source.name == "recipe.yml"
    assert config.source.folder == tmp_path
    assert config == load_config(tmp_path / "recipe.yml")


def test_a_file_that_cannot_be_read_is_refused(tmp_path: Path):
    """A missing file, a folder, a file that is not UTF-8 and one that is too long are each refused by name."""

    def told(path: Path) -> str:
        with pytest.raises(ConfigError) as caught:
            load_config(path)
        return str(caught.value).replace(f"{tmp_path}{os.sep}", "")

    remedy = "\n  do: name a file of YAML; `xmerge compat BASE DONOR` prints one to start from."
    absent = f"the configuration none.yml cannot be read: No such file or directory.{remedy}"
    assert told(tmp_path / "none.yml") == absent
    (tmp_path / "folder").mkdir()
    assert told(tmp_path / "folder") == f"the configuration folder cannot be read: Is a directory.{remedy}"
    (tmp_path / "latin.yml").write_bytes(b"merge_method: caf\xe9\n")
    latin = "latin.yml is not UTF-8 text: invalid continuation byte at byte 17.\n  do: save it in the encoding UTF-8."
    assert told(tmp_path / "latin.yml") == latin
    (tmp_path / "long.yml").write_bytes(b"#" * (2**20 + 1))
    assert told(tmp_path / "long.yml").splitlines()[0] == "long.yml has more than 1048576 bytes."


def test_the_name_of_a_model_is_read_as_in_a_file():
    """A model named on the command line has the grammar of one in a file, and the same refusals."""
    assert str(parse_reference("org/name@main+x/y@z")) == "org/name@main+x/y@z"
    with pytest.raises(ConfigError, match="more than one '@'"):
        parse_reference("a@b@c")
    with pytest.raises(ConfigError, match=r"more than one '\+'"):
        parse_reference("a+b+c")
    with pytest.raises(ConfigError, match="the text is empty"):
        parse_reference("")
