"""Compare two models component by component: what of the donor fits where in the base, how well, and why."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from xmerge.architecture import Class, ResolvedArchitecture, ResolvedModel, TensorSpec, worst_class
from xmerge.architecture.differences import ATTENTION, FEED_FORWARD
from xmerge.compatibility.naming import Origin, tell_origin
from xmerge.planning.alignment import Absent, Aligner, Fit, Misfit
from xmerge.planning.layer_map import spread
from xmerge.planning.packed import list_as_weights
from xmerge.planning.refusals import refuse_strangers
from xmerge.planning.slots import is_stray_head, name_component
from xmerge.planning.unknown import tell_unknown
from xmerge.planning.warnings import list_foreign_roles
from xmerge.values import Value

LATENT_ATTENTION = ("attn_q_a", "attn_q_b", "attn_q_mla", "attn_kv_a", "attn_kv_b", "attn_output_mla")


class ComparedModel(Value):
    """One side of a comparison."""

    label: str
    reference: str
    """As a recipe names it."""
    local: bool
    """Whether that is a folder."""
    kind: str
    """Its family, or its `model_type` where no family file exists."""
    known: bool
    """Whether a family file says what its tensors do; if not, they are compared by name."""
    unknown: str | None
    """Why none does."""
    origin: Origin
    """Where its shapes come from."""
    packed: str | None
    """How its weights are packed; None: they are plain numbers."""
    layers: int
    axes: dict[str, int]


class ComponentFit(Value):
    """One component of the base in the layers where the donor's fits alike."""

    component: str
    """Its role, or its name without the layer's number where nobody knows what it does."""
    roles: tuple[str, ...]
    """What it does, several for a fused tensor; empty where nobody knows."""
    axes: tuple[str, ...]
    """What its shape is made of."""
    grade: Class | None
    """None: only the base has it, and it stays."""
    reasons: tuple[str, ...]
    steps: tuple[str, ...]
    """The conversions, in words."""
    packed: bool
    """Whether base or donor holds it packed: then no recipe may name it, whatever it says of what does not fit."""
    layers: tuple[int, ...]
    """The base's layers; empty outside the layers."""
    names: tuple[str, ...]
    """What its tensors are called in the base; in the layers with `{layer}` for the number, and `{expert}` and the like
    where a family file says so."""
    filter: str | None
    """What chooses it in a recipe; None outside the layers."""
    nbytes: int
    """Bytes it has in the base."""
    donor_bytes: int
    """Bytes that a merge would read of the donor."""

    @property
    def is_projection(self) -> bool:
        """Whether it is a matrix of attention or feed-forward: norms and embeddings belong to a model's own basis."""
        kinds = {role.removesuffix("_exps").removesuffix("_shexp") for role in self.roles}
        return bool(kinds) and kinds <= {*ATTENTION, *LATENT_ATTENTION, *FEED_FORWARD}


class Compatibility(Value):
    """Everything a donor has for a base."""

    base: ComparedModel
    donor: ComparedModel
    components: tuple[ComponentFit, ...]
    dropped: tuple[str, ...]
    """What the donor has and the base has no place for."""

    def class_of(self, component: str) -> Class | None:
        """The worst class of a component in any layer; None: only the base has it."""
        found = [each.grade for each in self.components if each.component == component and each.grade]
        return worst_class(found) if found else None


def compare_models(base: ResolvedModel, donor: ResolvedModel) -> Compatibility:
    """Compare every tensor of the base with the donor's of the same role, layers meeting at the same share of depth.

    Raises:
        PlanError: Their types differ, and of one of them nobody knows what its tensors do.
    """
    refuse_strangers(base, donor)
    aligner = Aligner(ResolvedArchitecture((base, donor), (), 0))
    alike: dict[tuple[str, _Verdict], list[tuple[TensorSpec, Fit]]] = {}
    for spec in _list_tensors(base):
        layer = None if spec.layer is None else spread(spec.layer, base.layers, donor.layers)
        fit = aligner.align(spec, 1, layer)
        alike.setdefault((name_component(spec), _judge(fit, spec, layer)), []).append((spec, fit))
    return Compatibility(
        base=describe_side(base),
        donor=describe_side(donor),
        components=tuple(_describe(component, verdict, found) for (component, verdict), found in alike.items()),
        dropped=list_foreign_roles(base, donor, None),
    )


def describe_side(model: ResolvedModel) -> ComparedModel:
    """What a comparison tells of a model."""
    return ComparedModel(
        label=model.label,
        reference=model.location.reference,
        local=model.location.folder is not None,
        kind=model.kind,
        known=model.family is not None,
        unknown=None if model.family else tell_unknown(model),
        origin=tell_origin(model),
        packed=model.quantization,
        layers=model.layers,
        axes=dict(model.axes),
    )


class _Verdict(NamedTuple):
    """How well a donor's tensor fits."""

    grade: Class | None
    reasons: tuple[str, ...]
    steps: tuple[str, ...] = ()
    packed: bool = False


def _list_tensors(base: ResolvedModel) -> Iterator[TensorSpec]:
    """The base's tensors in the order of its family file, layer by layer; those without a role behind."""
    lines = [template.name for template in base.family.templates] if base.family else []
    places = {name: place for place, name in enumerate(lines)}
    own = [spec for spec in list_as_weights(base) if not is_stray_head(spec, base)]
    yield from sorted(own, key=lambda spec: (places.get(spec.line, len(places)), spec.line, spec.layer or 0, spec.name))


def _judge(fit: Fit, spec: TensorSpec, layer: int | None) -> _Verdict:
    """What a fit says, without what only names the place: the same reason in many layers is one reason."""
    match fit:
        case Absent(reason):
            return _Verdict(None, (_shorten(reason, spec, layer),))
        case Misfit(reason, grade, packed):
            return _Verdict(grade, (_shorten(reason, spec, layer),), packed=packed is not None)
        case _:
            return _Verdict(fit.fit, fit.notes, fit.steps)


def _shorten(reason: str, spec: TensorSpec, layer: int | None) -> str:
    for name in filter(None, (spec.role, spec.template)):
        reason = reason.removeprefix(f"{name}: ").replace(f" has no {name}", " has none")
        reason = reason.replace(f" holds {name} packed", " holds it packed")
        reason = reason.replace(f" what {name} does", " what it does")
    return reason.replace(f" in its layer {layer};", " there;")


def _describe(component: str, verdict: _Verdict, found: list[tuple[TensorSpec, Fit]]) -> ComponentFit:
    first = found[0][0]
    return ComponentFit(
        component=component,
        roles=tuple(part.role for part in first.parts),
        axes=tuple(dict.fromkeys(axis for part in first.parts for axis, _, _ in part.loops)),
        grade=verdict.grade,
        reasons=verdict.reasons,
        steps=verdict.steps,
        packed=verdict.packed,
        layers=tuple(sorted({spec.layer for spec, _ in found if spec.layer is not None})),
        names=tuple(dict.fromkeys(spec.line if spec.role else spec.template for spec, _ in found)),
        filter=None if first.layer is None else _find_filter(first),
        nbytes=sum(spec.stored.nbytes for spec, _ in found),
        donor_bytes=sum(each.nbytes for _, each in found if not isinstance(each, Absent | Misfit)),
    )


def _find_filter(spec: TensorSpec) -> str:
    """The part of its name that chooses a component in every layer, all of its experts with it."""
    if spec.role is not None:
        return spec.filter
    return name_component(spec).rpartition("{layer}.")[2].partition("*")[0].rstrip(".").removesuffix(".weight")
