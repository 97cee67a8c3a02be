"""Compare two models component by component: what of the donor fits where in the base, how well, and why."""

from __future__ import annotations

from collections.abc import Iterator

from xmerge.architecture import Class, ResolvedArchitecture, ResolvedModel, TensorSpec, worst_class
from xmerge.planning.alignment import Absent, Aligner, Fit, Misfit
from xmerge.planning.layer_map import spread
from xmerge.planning.slots import is_stray_head
from xmerge.planning.warnings import list_foreign_roles
from xmerge.values import Value


class ComponentFit(Value):
    """One component of the base in the layers where the donor's fits alike."""

    component: str
    """Its role, or its name without the layer's number where nobody knows what it does."""
    grade: Class | None
    """None: only the base has it, and it stays."""
    reasons: tuple[str, ...]
    steps: tuple[str, ...]
    """The conversions, in words."""
    layers: tuple[int, ...]
    """The base's layers; empty outside the layers."""
    filter: str | None
    """What chooses it in a recipe; None: no filter chooses it alone."""
    nbytes: int
    """Bytes it has in the base."""
    donor_bytes: int
    """Bytes that a merge would read of the donor."""


class Compatibility(Value):
    """Everything a donor has for a base."""

    base: str
    donor: str
    base_kind: str
    donor_kind: str
    base_layers: int
    donor_layers: int
    components: tuple[ComponentFit, ...]
    dropped: tuple[str, ...]
    """What the donor has and the base has no place for."""

    def classes_of(self, component: str) -> Class | None:
        """The worst class of a component in any layer; None: only the base has it."""
        found = [each.grade for each in self.components if each.component == component and each.grade]
        return worst_class(found) if found else None


def compare_models(base: ResolvedModel, donor: ResolvedModel) -> Compatibility:
    """Compare every tensor of the base with the donor's of the same role, layers meeting at the same share of depth."""
    aligner = Aligner(ResolvedArchitecture((base, donor), (), 0))
    alike: dict[tuple[object, ...], list[tuple[TensorSpec, Fit]]] = {}
    for spec in _list_tensors(base):
        layer = None if spec.layer is None else spread(spec.layer, base.layers, donor.layers)
        fit = aligner.align(spec, 1, layer)
        alike.setdefault((spec.role or spec.line, *_judge(fit)), []).append((spec, fit))
    return Compatibility(
        base=base.label,
        donor=donor.label,
        base_kind=base.kind,
        donor_kind=donor.kind,
        base_layers=base.layers,
        donor_layers=donor.layers,
        components=tuple(_describe(base, found) for found in alike.values()),
        dropped=list_foreign_roles(base, donor, None),
    )


def _list_tensors(base: ResolvedModel) -> Iterator[TensorSpec]:
    """The base's tensors in the order of its family file, layer by layer; those without a role behind."""
    lines = [template.name for template in base.family.templates] if base.family else []
    places = {name: place for place, name in enumerate(lines)}
    own = [spec for spec in base.tensors if not is_stray_head(spec, base)]
    yield from sorted(own, key=lambda spec: (places.get(spec.line, len(places)), spec.line, spec.layer or 0, spec.name))


def _judge(fit: Fit) -> tuple[Class | None, tuple[str, ...], tuple[str, ...]]:
    """(class, reasons, steps)."""
    match fit:
        case Absent(reason):
            return None, (reason,), ()
        case Misfit(reason, grade):
            return grade, (reason,), ()
        case _:
            return fit.fit, fit.notes, fit.steps


def _describe(base: ResolvedModel, found: list[tuple[TensorSpec, Fit]]) -> ComponentFit:
    first, fit = found[0]
    grade, reasons, steps = _judge(fit)
    return ComponentFit(
        component=first.role or first.line,
        grade=grade,
        reasons=reasons,
        steps=steps,
        layers=tuple(sorted({spec.layer for spec, _ in found if spec.layer is not None})),
        filter=base.filter_of(first.role) if first.role else None,
        nbytes=sum(spec.stored.nbytes for spec, _ in found),
        donor_bytes=sum(each.nbytes for _, each in found if not isinstance(each, Absent | Misfit)),
    )
