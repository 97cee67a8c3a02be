"""A recipe to start from: it merges what crosses, and says beside everything else why it is left out."""

from __future__ import annotations

import yaml

from xmerge.architecture.differences import ATTENTION, CLASS_NAMES, FEED_FORWARD
from xmerge.compatibility.comparison import Compatibility, ComponentFit

START = 0.1
"""The t that the recipe suggests; of unrelated tensors slerp makes cos(9 degrees) = 0.988 and sin(9 degrees) = 0.156."""


def write_recipe(found: Compatibility, base: str, donor: str) -> str | None:
    """A recipe that merges what is exact or convertible, with the rest in comments; None: nothing is.

    Args:
        found: The comparison.
        base: How the recipe names the base.
        donor: How it names the donor.
    """
    crossing = {each.component: each for each in found.components if _crosses(found, each)}
    if not crossing:
        return None
    lines = [
        f"# What of {_one_line(found.donor)} crosses into {_one_line(found.base)} exactly or by conversion.",
        "# Of tensors that have nothing in common, slerp at t 0.1 takes 0.988 of the base and 0.156 of the donor.",
        "merge_method: slerp",
        f"base_model: {_quote(base)}",
        "models:",
        f"  - model: {_quote(base)}",
        f"  - model: {_quote(donor)}",
    ]
    if found.base_layers != found.donor_layers:
        lines.append(f"layer_map: proportional   # {found.base_layers} layers meet {found.donor_layers}")
    lines += ["parameters:", "  t:   # 0 is the base, 1 the donor; what no filter names is the base's, byte for byte"]
    lines += [_write_filter(each, CLASS_NAMES[each.grade or "E"]) for each in crossing.values()]
    left_out = _list_approximate(found)
    if left_out:
        lines.append("    # These fit and mean something else; take the # away to merge them too:")
        lines += [f"    # {_write_filter(each, each.reasons[0]).strip()}" for each in left_out]
    return "\n".join(lines) + "\n"


def _write_filter(each: ComponentFit, why: str) -> str:
    return f"    - {{filter: {_quote(each.filter)}, value: {START}}}   # {each.component}: {_one_line(why)}"


def _crosses(found: Compatibility, each: ComponentFit) -> bool:
    return each.filter is not None and _is_projection(each) and found.classes_of(each.component) in ("A", "B")


def _list_approximate(found: Compatibility) -> list[ComponentFit]:
    chosen: dict[str, ComponentFit] = {}
    for each in found.components:
        if each.filter and each.grade == "C" and _is_projection(each) and found.classes_of(each.component) == "C":
            chosen.setdefault(each.component, each)
    return list(chosen.values())


def _is_projection(each: ComponentFit) -> bool:
    """Whether it is a matrix of attention or feed-forward: norms and embeddings belong to each model's own basis."""
    roles = {role.removesuffix("_exps").removesuffix("_shexp") for role in each.component.split("+")}
    return roles <= {*ATTENTION, *FEED_FORWARD}


def _quote(text: str | None) -> str:
    """Text as one YAML scalar."""
    written = yaml.safe_dump(text, default_flow_style=True, allow_unicode=True, width=10_000)
    return written.removesuffix("\n...\n").strip()


def _one_line(text: str) -> str:
    return " ".join(text.split())
