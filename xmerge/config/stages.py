"""Several configurations in one file, each a stage of one merge: its output is a model for the others, by its name."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

from xmerge.config.mentions import list_mentions
from xmerge.config.schema import MergeConfig, ModelReference
from xmerge.errors import ConfigError, nearest

MOST_STAGES = 64


def order_stages(configs: Sequence[MergeConfig]) -> tuple[MergeConfig, ...]:
    """The stages in an order in which each finds what it needs, otherwise as written; the last gives the output.

    Raises:
        ConfigError: A name stands twice or means nothing, stages need each other, or it is not one stage that no other
            needs.
    """
    if len(configs) == 1:
        return tuple(configs)
    if len(configs) > MOST_STAGES:
        raise ConfigError(f"{configs[0].source.name} has {len(configs)} stages, and {MOST_STAGES} are the most.")
    named = _index_by_name(configs)
    for config in configs:
        _refuse_misuse(config, named)
    _refuse_cycle(named)
    last = _find_last(configs, named)
    ordered: list[MergeConfig] = []

    def place(config: MergeConfig) -> None:
        for name in list_needed(config, named):
            if named[name] not in ordered:
                place(named[name])
        ordered.append(config)

    place(last)
    return tuple(ordered)


def list_needed(config: MergeConfig, named: Mapping[str, object]) -> tuple[str, ...]:
    """The stages whose outputs a configuration uses as models, each once, in the order in which it names them."""
    return tuple(dict.fromkeys(name for _, reference in list_mentions(config) if (name := _name(reference)) in named))


def _name(reference: ModelReference) -> str:
    return reference.model.path


def _index_by_name(configs: Sequence[MergeConfig]) -> dict[str, MergeConfig]:
    named: dict[str, MergeConfig] = {}
    for config in configs:
        if config.name is None:
            continue
        # Each is a folder for a while, and not every file system tells A from a.
        twin = next((each for each in named if each.lower() == config.name.lower()), None)
        if twin is not None:
            raise ConfigError(
                f"two stages are called '{config.name}'.",
                where=config.source.locate("name"),
                remedy=f"rename one; the first is in line {named[twin].source.line_of(('name',))}.",
            )
        named[config.name] = config
    return named


def _refuse_misuse(config: MergeConfig, named: Mapping[str, MergeConfig]) -> None:
    for path, reference in list_mentions(config):
        where = config.source.locate(*path)
        if _name(reference) in named:
            _refuse_extras(reference, where)
        elif _is_unknown(config, reference):
            raise ConfigError(
                f"there is no stage and no folder '{reference}'.",
                where=where,
                remedy=f"{nearest(_name(reference), named)} (a repository without an owner: hf://{reference})",
            )


def _refuse_extras(reference: ModelReference, where: str) -> None:
    if reference.model.revision or reference.lora:
        raise ConfigError(
            f"'{_name(reference)}' is a stage of this file, and {reference} asks for more than its output.",
            where=where,
            remedy=f"write '{_name(reference)}' alone, or './{_name(reference)}' for a folder of that name.",
        )


def _is_unknown(config: MergeConfig, reference: ModelReference) -> bool:
    """Whether a name that could be a stage's is none, nor that of a folder."""
    name = _name(reference)
    places = [os.path.expanduser(name)]
    places += [os.path.join(config.source.folder, name)] if config.source.folder else []
    return "/" not in name and not any(os.path.exists(place) for place in places)


def _refuse_cycle(named: Mapping[str, MergeConfig]) -> None:
    """Refuse stages that need each other, and name them in the order of their need."""
    done: set[str] = set()

    def follow(name: str, trail: tuple[str, ...]) -> None:
        if name in trail:
            cycle = (*trail[trail.index(name) :], name)
            raise ConfigError(
                f"the stages {' -> '.join(cycle)} need each other.",
                where=named[name].source.locate("name"),
                why="each is made from the output of the next.",
                remedy="let one of them use something else.",
            )
        if name not in done:
            for needed in list_needed(named[name], named):
                follow(needed, (*trail, name))
            done.add(name)

    for name in named:
        follow(name, ())


def _find_last(configs: Sequence[MergeConfig], named: Mapping[str, MergeConfig]) -> MergeConfig:
    """The one stage that no other needs."""
    needed = {name for config in configs for name in list_needed(config, named)}
    ends = [config for config in configs if config.name is None or config.name not in needed]
    if len(ends) > 1:
        told = [f"{config.name or 'the one without a name'} (line {_first_line(config)})" for config in ends]
        raise ConfigError(
            f"{configs[0].source.name} has {len(ends)} stages that no other uses: {', '.join(told)}.",
            why="one of them is the output, and the others would be made for nothing.",
            remedy="use them, or move them to files of their own.",
        )
    for config in configs:
        for key in ("publish", "chat_template"):
            if config is not ends[0] and getattr(config, key) is not None:
                raise ConfigError(
                    f"'{key}' is for the output, and the stage '{config.name}' is none.",
                    where=config.source.locate(key),
                    remedy="move it to the last stage, or the stage to a file of its own.",
                )
    return ends[0]


def _first_line(config: MergeConfig) -> int:
    return min(config.source.lines.values(), default=1)
