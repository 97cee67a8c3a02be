"""Read a configuration file: YAML, strictly, with the line of everything that is wrong."""

from __future__ import annotations

from pathlib import Path as FilePath
from typing import Any

import yaml
from pydantic import ValidationError

from xmerge.config.checking import check_meaning
from xmerge.config.schema import MergeConfig
from xmerge.config.source import ConfigSource, Path, show_path
from xmerge.errors import ConfigError

MAX_BYTES = 4 * 2**20
MAX_NODES = 200_000


def load_config(path: FilePath) -> MergeConfig:
    """Read the configuration in a file.

    Raises:
        ConfigError: The file cannot be read, is no YAML, or says something that has no meaning.
    """
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise ConfigError(f"the configuration {path} cannot be read: {error.strerror}.") from error
    if len(raw) > MAX_BYTES:
        raise ConfigError(f"{path} has more than {MAX_BYTES} bytes.", why="no merge configuration is that long.")
    try:
        return parse_config(raw.decode("utf-8-sig"), path.name, path.resolve().parent)
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not UTF-8 text: {error.reason} at byte {error.start}.") from error


def parse_config(text: str, name: str = "the configuration", folder: FilePath | None = None) -> MergeConfig:
    """Read a configuration from its text.

    Args:
        text: YAML.
        name: What errors call it.
        folder: Where models are looked for, beside the current folder.

    Raises:
        ConfigError: The text is no YAML, or says something that has no meaning.
    """
    data, lines = _read_yaml(text, name)
    source = ConfigSource(name, text, lines, folder)
    if not isinstance(data, dict):
        raise ConfigError(f"{name} is not a merge configuration.", why="it has no keys at its top level.")
    try:
        config = MergeConfig.model_validate(data).with_source(source)
    except ValidationError as error:
        raise _explain(error, source) from None
    check_meaning(config)
    return config


def _read_yaml(text: str, name: str) -> tuple[Any, dict[Path, int]]:
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        reader = _NodeReader(name)
        return reader.read(node, ()) if node is not None else None, reader.lines
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else "?"
        raise ConfigError(f"{name} is not valid YAML: {error.problem}.", where=f"line {line}") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{name} is not valid YAML: {error}.") from None
    except RecursionError:
        raise ConfigError(f"{name} is nested too deeply to be a merge configuration.") from None


class _NodeReader:
    """Turns YAML nodes into plain data, remembering lines and refusing what PyYAML accepts in silence."""

    def __init__(self, name: str) -> None:
        self.lines: dict[Path, int] = {}
        self._name = name
        self._scalars = yaml.constructor.SafeConstructor()
        self._count = 0

    def read(self, node: yaml.Node, path: Path) -> Any:
        self._count += 1
        if self._count > MAX_NODES:
            raise ConfigError(f"{self._name} has more than {MAX_NODES} values.", why="aliases may repeat themselves.")
        self.lines.setdefault(path, node.start_mark.line + 1)
        if isinstance(node, yaml.MappingNode):
            return self._read_mapping(node, path)
        if isinstance(node, yaml.SequenceNode):
            return [self.read(item, (*path, index)) for index, item in enumerate(node.value)]
        return self._read_scalar(node)

    def _read_mapping(self, node: yaml.MappingNode, path: Path) -> dict[str, Any]:
        data: dict[str, Any] = {}
        for key_node, value_node in node.value:
            line = key_node.start_mark.line + 1
            if not isinstance(key_node, yaml.ScalarNode):
                raise ConfigError("a key must be plain text.", where=f"{self._name}, line {line}")
            key = str(key_node.value)
            if key in data:
                raise ConfigError(
                    f"the key '{key}' stands twice.",
                    where=f"{self._name}, line {line}: {show_path((*path, key))}",
                    remedy=f"keep one; the first is in line {self.lines[*path, key]}.",
                )
            self.lines[*path, key] = line
            data[key] = self.read(value_node, (*path, key))
        return data

    def _read_scalar(self, node: yaml.Node) -> Any:
        if node.tag in ("tag:yaml.org,2002:timestamp", "tag:yaml.org,2002:binary"):
            return node.value
        if not node.tag.startswith("tag:yaml.org,2002:"):
            raise ConfigError(
                f"the YAML tag '{node.tag}' has no meaning in a configuration.",
                where=f"{self._name}, line {node.start_mark.line + 1}",
            )
        try:
            return self._scalars.construct_object(node)
        except ValueError as error:
            where = f"{self._name}, line {node.start_mark.line + 1}"
            raise ConfigError(f"the value {node.value[:80]!r} cannot be read: {error}.", where=where) from None


def _explain(error: ValidationError, source: ConfigSource) -> ConfigError:
    """All of pydantic's complaints as one error with the place of each in the file."""
    complaints = []
    for item in error.errors(include_url=False):
        # Names of union members stand in pydantic's path between the keys of the file.
        path = tuple(part for part in item["loc"] if isinstance(part, int) or (part.isidentifier() and part.islower()))
        path = (*_known_prefix(path, source), *item.get("ctx", {}).get("at", ()))
        message = item["msg"][0].lower() + item["msg"][1:]
        if item["type"] == "missing":
            message = f"the key '{item['loc'][-1]}' is missing"
        stop = "" if message.endswith(("?", ".")) else "."
        complaints.append((source.line_of(path) or 0, f"{source.locate(*path)}: {message}{stop}"))
    texts = [text for _, text in sorted(set(complaints))]
    if len(texts) == 1:
        return ConfigError(f"{source.name} is not a valid configuration.", where=texts[0])
    listed = "".join(f"\n    {text}" for text in texts)
    return ConfigError(f"{source.name} is not a valid configuration: {len(texts)} errors.", where=listed)


def _known_prefix(path: Path, source: ConfigSource) -> Path:
    """The parts of pydantic's path that the file has; its own bookkeeping dropped."""
    known: Path = ()
    for part in path:
        if (*known, part) in source.lines:
            known = (*known, part)
    return known
