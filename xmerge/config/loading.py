"""Read a configuration file: YAML, strictly, with the line of everything that is wrong."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path as FilePath
from typing import Any

import yaml
from pydantic import ValidationError
from pydantic_core import PydanticCustomError

from xmerge.config.checking import Fault, find_faults
from xmerge.config.schema import MergeConfig, ModelReference, parse_model_reference
from xmerge.config.source import ConfigSource, Path, show_path
from xmerge.config.stages import order_stages
from xmerge.config.strict import show
from xmerge.errors import ConfigError

MAX_BYTES = 2**20
MAX_NODES = 100_000
MAX_SHOWN = 20


def load_config(path: FilePath) -> MergeConfig:
    """Read the configuration in a file.

    Raises:
        ConfigError: The file cannot be read, is no YAML, or says something that has no meaning.
    """
    return parse_config(*_read_file(path))


def load_stages(path: FilePath) -> tuple[MergeConfig, ...]:
    """Read the configurations in a file, in an order in which each can be carried out; the last is the output's.

    Raises:
        ConfigError: As for one configuration, or they do not fit together.
    """
    return parse_stages(*_read_file(path))


def _read_file(path: FilePath) -> tuple[str, str, FilePath]:
    """The text of a file, its name, and the folder it is in."""
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_BYTES + 1)
    except OSError as error:
        remedy = "name a file of YAML; `xmerge compat BASE DONOR` prints one to start from."
        raise ConfigError(f"the configuration {path} cannot be read: {error.strerror}.", remedy=remedy) from error
    if len(raw) > MAX_BYTES:
        raise ConfigError(f"{path} has more than {MAX_BYTES} bytes.", why="no merge configuration is that long.")
    try:
        return raw.decode("utf-8-sig"), path.name, path.resolve().parent
    except UnicodeDecodeError as error:
        told = f"{path} is not UTF-8 text: {error.reason} at byte {error.start}."
        raise ConfigError(told, remedy="save it in the encoding UTF-8.") from error


def parse_config(text: str, name: str = "the configuration", folder: FilePath | None = None) -> MergeConfig:
    """Read a configuration from its text.

    Args:
        text: YAML.
        name: What errors call it.
        folder: Where models are looked for, beside the current folder.

    Raises:
        ConfigError: The text is no YAML, or says something that has no meaning.
    """
    documents = _read_yaml(text, name)
    if len(documents) > 1:
        raise ConfigError(
            f"{name} has {len(documents)} documents, and one configuration is asked for.",
            where=f"{name}, line {documents[1].lines[()]}",
            remedy="keep one of them; `xmerge merge` and `xmerge plan` take all as stages of one merge.",
        )
    return make_config(documents[0].data, ConfigSource(name, text, documents[0].lines, folder))


def parse_stages(text: str, name: str = "the configuration", folder: FilePath | None = None) -> tuple[MergeConfig, ...]:
    """Read the documents of a text, which may use each other's outputs as models by their names.

    Args:
        text: YAML, of one document or several.
        name: What errors call it.
        folder: Where models are looked for, beside the current folder.

    Returns:
        The configurations in an order in which each can be carried out; the last one's output is the whole's, and its
        text is the whole text.

    Raises:
        ConfigError: As for one configuration, or they do not fit together.
    """
    stages = order_stages(
        [
            make_config(document.data, ConfigSource(name, document.text, document.lines, folder))
            for document in _read_yaml(text, name)
        ]
    )
    last = stages[-1]
    return (*stages[:-1], last.with_source(replace(last.source, text=text)))


def make_config(data: Any, source: ConfigSource) -> MergeConfig:
    """The configuration that plain data means.

    Raises:
        ConfigError: It has no meaning; every fault is told by its place in the source.
    """
    if not isinstance(data, dict):
        raise ConfigError(
            f"{source.name} is not a merge configuration.",
            why="it has no keys at its top level.",
            remedy="`xmerge compat BASE DONOR` prints one to start from.",
        )
    try:
        config = MergeConfig.model_validate(data).with_source(source)
    except ValidationError as error:
        raise _tell(_explain(error, source), source) from None
    faults = list(find_faults(config))
    if faults:
        raise _tell(faults, source)
    return config


def parse_reference(text: str) -> ModelReference:
    """Read the name of a model: `PATH[@REVISION][+LORA[@REVISION]]`.

    Raises:
        ConfigError: The text cannot be the name of a model.
    """
    source = ConfigSource(f"the model name {show(text)}")
    try:
        return ModelReference.model_validate(parse_model_reference(text))
    except ValidationError as error:
        raise _tell(_explain(error, source), source) from None
    except PydanticCustomError as error:
        raise _tell([((), error.message())], source) from None


@dataclass(frozen=True)
class _Document:
    """One document of a YAML text, and in which lines of the whole text it says what."""

    data: Any
    lines: dict[Path, int]
    text: str


def _read_yaml(text: str, name: str) -> list[_Document]:
    """The documents of a text that say anything; one that says nothing where none does."""
    try:
        documents = [_read_document(node, text, name) for node in yaml.compose_all(text, Loader=yaml.SafeLoader)]
        return [each for each in documents if each.data is not None] or [_Document(None, {}, text)]
    except yaml.MarkedYAMLError as error:
        line = f", line {error.problem_mark.line + 1}" if error.problem_mark else ""
        told = ", ".join(part for part in (error.context, error.problem) if part)
        remedy = "indent with spaces; YAML knows no tabs." if "\\t" in told else None
        raise ConfigError(f"{name} is not valid YAML: {told}.", where=f"{name}{line}", remedy=remedy) from None
    except yaml.reader.ReaderError as error:
        line = f", line {text.count(chr(10), 0, error.position) + 1}"
        character = f"U+{int(error.character):04X}"
        raise ConfigError(f"{name} is not text: it holds the character {character}.", where=f"{name}{line}") from None
    except RecursionError:
        raise ConfigError(f"{name} is nested too deeply to be a merge configuration.") from None


def _read_document(node: yaml.Node, text: str, name: str) -> _Document:
    reader = _NodeReader(name)
    data = reader.read(node, ())
    return _Document(data, reader.lines, text[node.start_mark.index : node.end_mark.index])


_MERGE_TAG = "tag:yaml.org,2002:merge"
_PLAIN_TAGS = tuple(
    f"tag:yaml.org,2002:{kind}" for kind in ("map", "seq", "str", "int", "float", "bool", "null", "timestamp", "merge")
)
_TEXT_TAGS = ("tag:yaml.org,2002:str", "tag:yaml.org,2002:timestamp", _MERGE_TAG)


class _NodeReader:
    """Turns YAML nodes into plain data, remembering lines and refusing what PyYAML accepts in silence."""

    def __init__(self, name: str) -> None:
        self.lines: dict[Path, int] = {}
        self._name = name
        self._scalars = yaml.constructor.SafeConstructor()
        self._count = 0

    def read(self, node: yaml.Node, path: Path) -> Any:
        """The data of a node, which stands at `path`."""
        self._count += 1
        if self._count > MAX_NODES:
            raise ConfigError(f"{self._name} has more than {MAX_NODES} values.", why="aliases may repeat themselves.")
        self.lines.setdefault(path, node.start_mark.line + 1)
        if node.tag not in _PLAIN_TAGS:
            raise ConfigError(f"the YAML tag {show(node.tag)} has no meaning in a configuration.", where=self._at(node))
        if isinstance(node, yaml.MappingNode):
            return self._read_mapping(node, path)
        if isinstance(node, yaml.SequenceNode):
            return [self.read(item, (*path, index)) for index, item in enumerate(node.value)]
        return self._read_scalar(node)

    def _read_mapping(self, node: yaml.MappingNode, path: Path) -> dict[str, Any]:
        data = self._read_merged(node, path)
        given: set[str] = set()
        for key_node, value_node in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                raise ConfigError("a key must be plain text.", where=self._at(key_node))
            if key_node.tag == _MERGE_TAG:
                continue
            key = self._read_text(key_node)
            if key in given:
                raise ConfigError(
                    f"the key {show(key)} stands twice.",
                    where=f"{self._at(key_node)}: {show_path((*path, key))}",
                    remedy=f"keep one; the first is in line {self.lines[*path, key]}.",
                )
            given.add(key)
            self.lines[*path, key] = key_node.start_mark.line + 1
            data[key] = self.read(value_node, (*path, key))
        return data

    def _read_merged(self, node: yaml.MappingNode, path: Path) -> dict[str, Any]:
        """What `<<` brings into a mapping: the first of several mappings that has a key decides."""
        nodes: list[yaml.Node] = []
        for key_node, value_node in node.value:
            if key_node.tag == _MERGE_TAG:
                nodes += value_node.value if isinstance(value_node, yaml.SequenceNode) else [value_node]
        data: dict[str, Any] = {}
        for each in reversed(nodes):
            if not isinstance(each, yaml.MappingNode):
                raise ConfigError("'<<' takes a mapping, or a list of them.", where=self._at(each))
            data |= self.read(each, path)
        return data

    def _read_scalar(self, node: yaml.Node) -> Any:
        if node.tag in _TEXT_TAGS:
            return self._read_text(node)
        try:
            return self._scalars.construct_object(node)
        except (ValueError, LookupError):
            kind = node.tag.rpartition(":")[2]
            raise ConfigError(f"the value {show(node.value)} is no YAML {kind}.", where=self._at(node)) from None

    def _read_text(self, node: yaml.Node) -> str:
        try:
            # JSON writes a character beyond U+FFFF as two escapes, which PyYAML leaves apart.
            return str(node.value).encode("utf-16", "surrogatepass").decode("utf-16")
        except UnicodeDecodeError:
            raise ConfigError("the text holds half a character (a lone surrogate).", where=self._at(node)) from None

    def _at(self, node: yaml.Node) -> str:
        return f"{self._name}, line {node.start_mark.line + 1}"


_EXPECTED = {
    "bool_type": "true or false",
    "dict_type": "a mapping",
    "finite_number": "a finite number",
    "float_parsing": "a number",
    "float_type": "a number",
    "int_type": "a whole number",
    "model_type": "a mapping",
    "string_type": "text",
    "tuple_type": "a list",
}


def _explain(error: ValidationError, source: ConfigSource) -> Iterator[Fault]:
    """What pydantic found wrong, in words of the file."""
    faults = [(_path_in_file(item, source), item) for item in error.errors(include_url=False)]
    for path, item in faults:
        # What is neither one of some words nor a model has two faults; the other one says more.
        is_told = any(other is not item and where[: len(path)] == path for where, other in faults)
        if item["type"] != "literal_error" or not is_told:
            yield path, _describe(item)


def _path_in_file(item: Any, source: ConfigSource) -> Path:
    """Pydantic's path without its own bookkeeping: names of union members and of fields that the file spells out."""
    known: Path = ()
    for part in item["loc"]:
        if (*known, part) in source.lines:
            known = (*known, part)
    return (*known, *item.get("ctx", {}).get("at", ()))


def _describe(item: Any) -> str:
    kind, given, details = item["type"], item["input"], item.get("ctx", {})
    if kind == "missing":
        return f"the key '{item['loc'][-1]}' is missing"
    if kind == "string_too_short":
        return "the text is empty"
    if kind == "greater_than_equal":
        return f"expected {details['ge']} or more, got {show(given)}"
    if kind == "less_than":
        return f"expected less than {details['lt']}, got {show(given)}"
    expected = details["expected"] if kind == "literal_error" else _EXPECTED.get(kind)
    if expected is None:
        return str(item["msg"])
    hint = "; put it in quotes" if kind == "string_type" and isinstance(given, bool | int | float) else ""
    return f"expected {expected}, got {show(given)}{hint}"


def _tell(faults: Iterable[Fault], source: ConfigSource) -> ConfigError:
    """All faults as one error, in the order of the file."""
    told = sorted({(source.line_of(path) or 0, source.locate(*path), _stop(text)) for path, text in faults})
    if len(told) == 1:
        return ConfigError(told[0][2], where=told[0][1])
    lines = [f"{where}: {text}" for _, where, text in told[:MAX_SHOWN]]
    lines += [f"and {len(told) - MAX_SHOWN} more."] if len(told) > MAX_SHOWN else []
    return ConfigError(f"{source.name} has {len(told)} errors.", where="\n      ".join(lines))


def _stop(text: str) -> str:
    return text if text.endswith(("?", ".")) else f"{text}."
