"""What each parameter is worth for each tensor, with mergekit's precedence; and which filters ever matched."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from xmerge.config import MergeConfig, Parameters
from xmerge.config.source import Path
from xmerge.errors import ConfigError
from xmerge.methods.contract import Parameter
from xmerge.planning.slices import Input, OutputLayer

Level = tuple[Path, Parameters]


@dataclass
class ParameterReader:
    """Reads settings and remembers which entries matched a tensor.

    Precedence: for tensors outside the layers `globals`; a model's own parameters; the slice's; the module's; the
    configuration's; the method's default.
    """

    matched: set[tuple[Path, str, int]] = field(default_factory=set)
    asked: set[Path] = field(default_factory=set)

    def read_for_all(self, parameter: Parameter, layer: OutputLayer, name: str) -> float | None:
        """The value for an output tensor of a parameter that all models share; None: there is none."""
        return self._read(parameter, layer.levels, [name], layer.position)

    def read_for_one(self, parameter: Parameter, layer: OutputLayer, each: Input, names: Sequence[str]) -> float | None:
        """The value of a per-model parameter for the tensor that one model gives, by any of the names it goes by."""
        outside = [level for level in layer.levels if level[0] == ("globals",)]
        rest = [level for level in layer.levels if level[0] != ("globals",)]
        return self._read(parameter, [*outside, (each.path, each.parameters), *rest], names, layer.position)

    def refuse_unmatched(self, config: MergeConfig) -> None:
        """Refuse a filter that matched no tensor of the output.

        Raises:
            ConfigError: Names the filter and its place.
        """
        for path, parameters in self._levels.items():
            for name, setting in parameters.items():
                for index, entry in enumerate(setting.entries):
                    if entry.filter is not None and (path, name, index) not in self.matched:
                        raise ConfigError(
                            f"the filter '{entry.filter}' matches no tensor.",
                            where=config.source.locate(*path, name, index, "filter"),
                            why="a filter is a case-sensitive part of a tensor's name, as in 'self_attn.q_proj'.",
                            remedy=self._suggest(entry.filter),
                        )

    _levels: dict[Path, Parameters] = field(default_factory=dict)
    _words: set[str] = field(default_factory=set)

    def _read(
        self, parameter: Parameter, levels: Sequence[Level], names: Sequence[str], position: float
    ) -> float | None:
        found: float | None = None
        for path, parameters in levels:
            setting = parameters.get(parameter.name)
            if setting is None:
                continue
            self._levels[path] = parameters
            self._note_matches(path, parameter.name, setting.entries, names)
            if found is None:
                found = setting.evaluate(names, position)
        return parameter.default if found is None else found

    def _note_matches(self, path: Path, name: str, entries: Sequence, names: Sequence[str]) -> None:  # type: ignore[type-arg]
        filtered = [(index, entry) for index, entry in enumerate(entries) if entry.filter is not None]
        for index, entry in filtered:
            if entry.matches(names):
                self.matched.add((path, name, index))
        if filtered:
            self._words.update(word for each in names for word in each.split(".") if not word.isdigit())

    def _suggest(self, unmatched: str) -> str:
        import difflib

        near = difflib.get_close_matches(unmatched.rsplit(".", 1)[-1], sorted(self._words), n=1, cutoff=0.5)
        return f"did you mean '{near[0]}'?" if near else f"names are made of: {', '.join(sorted(self._words))}."
