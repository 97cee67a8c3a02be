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
        known = self.known_part(path)
        return self.lines.get(known)

    def known_part(self, path: Path) -> Path:
        """The longest beginning of a path that the file has."""
        for length in range(len(path), 0, -1):
            if path[:length] in self.lines:
                return path[:length]
        return ()


def show_path(path: Path) -> str:
    """`('slices', 0, 'sources')` as `slices[0].sources`."""
    text = ""
    for part in path:
        if isinstance(part, int):
            text += f"[{part}]"
        else:
            name = part if part.isprintable() else repr(part)
            text += f".{name}" if text else name
    return text
