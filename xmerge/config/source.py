"""Where in its file each part of a configuration stands."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path as FilePath

Path = tuple[str | int, ...]


@dataclass(frozen=True)
class ConfigSource:
    """The text of a configuration, its name, and the line of every key and item in it."""

    name: str = "the configuration"
    text: str = ""
    lines: Mapping[Path, int] = field(default_factory=dict)
    folder: FilePath | None = None
    """The folder the file is in; models are looked for there too."""

    def locate(self, *path: str | int) -> str:
        """`recipe.yml, line 7: parameters.t[2].filter`, or as much of it as is known."""
        line = self.line_of(path)
        place = self.name if line is None else f"{self.name}, line {line}"
        return f"{place}: {show_path(path)}" if path else place

    def line_of(self, path: Path) -> int | None:
        """The line of the deepest part of a path that the file has."""
        for length in range(len(path), -1, -1):
            if path[:length] in self.lines:
                return self.lines[path[:length]]
        return None


def show_path(path: Path) -> str:
    """`('slices', 0, 'sources')` as `slices[0].sources`."""
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else str(part)
    return text
