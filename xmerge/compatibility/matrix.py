"""Compare every model of a folder with every other; one that cannot be read stops nobody."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from xmerge.architecture import Class, ResolvedModel, worst_class
from xmerge.compatibility.comparison import ComparedModel, Compatibility, ComponentFit, compare_models, describe_side
from xmerge.compatibility.naming import describe_models_named, list_model_folders, show_name
from xmerge.errors import CheckpointError, PlanError, XmergeError
from xmerge.values import Value

PARTS = {"q": "q", "k": "k", "v": "v", "o": "o", "feed-forward": "f"}
"""What a cell sums up, each with its sign in `_PARTS_OF_ROLES`."""
_PARTS_OF_ROLES = {
    "attn_q": "q",
    "attn_q_a": "q",
    "attn_q_b": "q",
    "attn_q_mla": "q",
    "attn_k": "k",
    "attn_v": "v",
    "attn_kv_a": "kv",
    "attn_kv_b": "kv",
    "attn_output": "o",
    "attn_output_mla": "o",
}


class Unreadable(Value):
    """A folder whose model cannot be compared, and the error that says why."""

    folder: str
    what: str
    why: str | None
    remedy: str | None


class Unrelated(Value):
    """Two models that nothing can be said of, because nobody knows what the tensors of one of them do."""

    base: str
    donor: str
    what: str


class Matrix(Value):
    """Every pair of models in a folder, each as base and as donor."""

    models: tuple[ComparedModel, ...]
    """Those that could be read, by name."""
    pairs: tuple[Compatibility | Unrelated, ...]
    """Row by row: the first model as base with every donor, then the second."""
    unreadable: tuple[Unreadable, ...]

    def row(self, number: int) -> Sequence[Compatibility | Unrelated]:
        """One base with every donor."""
        return self.pairs[number * len(self.models) : (number + 1) * len(self.models)]


def compare_folder(folder: Path) -> Matrix:
    """Compare all models in a folder.

    Raises:
        CheckpointError: There is none, or none of them can be read.
    """
    models: list[ResolvedModel] = []
    unreadable: list[Unreadable] = []
    for path in list_model_folders(folder):
        try:
            models += describe_models_named([str(path)])
        except XmergeError as error:
            told = Unreadable(folder=show_name(path.name), what=error.what, why=error.why, remedy=error.remedy)
            unreadable.append(told)
    if not models:
        raise CheckpointError(
            f"none of the {len(unreadable)} models in {show_name(str(folder))} can be read.",
            why=f"{unreadable[0].folder}: {unreadable[0].what}",
            remedy=unreadable[0].remedy,
        )
    return Matrix(
        models=tuple(map(describe_side, models)),
        pairs=tuple(_compare(base, donor) for base in models for donor in models),
        unreadable=tuple(unreadable),
    )


def grade_parts(found: Compatibility) -> tuple[Class | None, ...]:
    """The worst class of each of `PARTS`; where nobody knows the parts, of all that is compared by name."""
    if not found.base.known:
        return (_find_worst(found.components),)
    matrices = [each for each in found.components if each.is_projection]
    return tuple(_find_worst([each for each in matrices if _is_part(each, sign)]) for sign in PARTS.values())


def _is_part(each: ComponentFit, sign: str) -> bool:
    return any(sign in _PARTS_OF_ROLES.get(role, "f") for role in each.roles)


def _find_worst(components: Sequence[ComponentFit]) -> Class | None:
    grades = [each.grade for each in components if each.grade is not None]
    return worst_class(grades) if grades else None


def _compare(base: ResolvedModel, donor: ResolvedModel) -> Compatibility | Unrelated:
    try:
        return compare_models(base, donor)
    except (PlanError, CheckpointError) as error:
        return Unrelated(base=base.label, donor=donor.label, what=error.what)
