"""What fills each tensor of the output: a merge of its inputs, one of them as it is, or the base's own bytes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from xmerge.architecture import Class, ResolvedArchitecture
from xmerge.architecture.quantization import PackedWeight, refuse_packed
from xmerge.checkpoints import MERGEABLE_DTYPES
from xmerge.config import MergeConfig
from xmerge.config.source import Path
from xmerge.errors import CheckpointError, PlanError
from xmerge.methods import MergeMethod, find_method
from xmerge.methods.contract import Gram, GramUnknownError, ParameterError
from xmerge.planning.alignment import SIDE_ROLES, Absent, Aligner, Misfit, Offer
from xmerge.planning.parameters import ParameterReader, Values
from xmerge.planning.plan import MISFIT, NONFINITE, Decision, LostBias, Source, TensorPlan
from xmerge.planning.slices import OutputLayer, walk_paths
from xmerge.planning.slots import Slot

COPY_METHOD = "passthrough"
Arguments = Mapping[str, float | tuple[float, ...]]
"""What a method is called with."""


@dataclass(frozen=True)
class Fault:
    """A tensor of the output that cannot be what was asked for."""

    tensor: str
    reason: str
    where: Path
    """What in the configuration asks for it."""
    grade: Class = "E"
    """How far it is from fitting."""


@dataclass
class Decider:
    """Decides tensor by tensor, and collects what cannot be done, so that all of it can be said at once."""

    config: MergeConfig
    architecture: ResolvedArchitecture
    method: MergeMethod
    reader: ParameterReader
    misfits: list[Fault] = field(default_factory=list)
    """What was asked to be merged and does not fit."""
    gaps: list[Fault] = field(default_factory=list)
    """What no model that meets there can fill."""
    _fits: dict[str, bool] = field(default_factory=dict)
    """Filter -> whether every donor has something that fits wherever it chooses a matrix of a layer."""

    def __post_init__(self) -> None:
        ignore_heads = self.config.on_different_heads == "merge"
        self._aligner = Aligner(self.architecture, self.config.folds, ignore_heads)

    def decide(self, slot: Slot) -> TensorPlan:
        """Everything about one tensor of the output."""
        offers = [self._ask(slot, number) for number in range(len(slot.layer.inputs))]
        self._note_fits(slot, offers)
        keeper = self._choose_keeper(slot, offers)
        case = _Case(slot, offers, keeper)
        return self._guard(case, self._fill(case))

    def _fill(self, case: _Case) -> TensorPlan:
        slot, offers = case.slot, case.offers
        if not slot.layer.merged:
            return self._keep(case, "its layer is not listed")
        values = self.reader.read(slot, offers)
        if values.missing:
            return self._keep(case, f"'{values.missing}' has no value for it")
        case.dropped += [
            f"{self.architecture.models[each].label} has no layer that meets this one" for each in slot.layer.missing
        ]
        taking = self._choose_inputs(case, values)
        stays = self._why_base_stays(case, values, taking)
        return self._keep(case, stays) if stays else self._combine(case, taking, values)

    def _guard(self, case: _Case, made: TensorPlan) -> TensorPlan:
        """The tensor with what becomes of it if a source holds NaN or infinity."""
        policy = self.config.on_nonfinite
        if policy == "propagate":
            return made.model_copy(update={"on_nonfinite": policy})
        if policy == "base" and case.keeper is not None:
            kept = self._keep(case, NONFINITE)
            # What is the base's already has nothing to fall back to.
            if kept.sources != made.sources:
                return made.model_copy(update={"on_nonfinite": policy, "fallback": kept})
        return made

    def list_fitting(self) -> list[str]:
        """The filters that choose matrices for which every donor has something that fits, and nothing else."""
        misfits = [each for each, fits in self._fits.items() if not fits]
        return [each for each, fits in self._fits.items() if fits and not any(each in other for other in misfits)]

    def _note_fits(self, slot: Slot, offers: Sequence[Offer]) -> None:
        if slot.layer.index is None or len(slot.spec.shape) < 2 or (slot.spec.role or "").endswith(SIDE_ROLES):
            return
        donors = [each.fit for each in offers if each.input.model != self.architecture.target_index]
        if donors:
            fits = all(isinstance(fit, Source) for fit in donors)
            self._fits[slot.spec.filter] = fits and self._fits.get(slot.spec.filter, True)

    def _ask(self, slot: Slot, number: int) -> Offer:
        each = slot.layer.inputs[number]
        label = self.architecture.models[each.model].label
        return Offer(each, label, self._aligner.align(slot.spec, each.model, each.layer))

    def _choose_keeper(self, slot: Slot, offers: Sequence[Offer]) -> int | None:
        """The input whose tensor stays where nothing is merged: the base, else the target, else the first that fits."""
        target = self.architecture.target_index
        order = sorted(
            range(len(offers)), key=lambda number: (number != slot.layer.base, offers[number].input.model != target)
        )
        for number in order:
            fit = offers[number].fit
            if isinstance(fit, Source) and (_find_uncombinable(fit) is None or not _needs_cast(slot, fit)):
                return number
        return None

    def _choose_inputs(self, case: _Case, values: Values) -> list[int]:
        """The inputs that take part, the base first where the method has one; the others are noted as dropped."""
        order = list(range(len(case.offers)))
        if self.method.base != "as_input":
            order.sort(key=lambda number: number != case.slot.layer.base)
        taking = []
        for number in order:
            offer, silent = case.offers[number], values.missing_for(number)
            if silent:
                case.dropped.append(f"{offer.label}: '{silent}' has no value for it")
            elif isinstance(offer.fit, Absent):
                case.dropped.append(offer.fit.reason)
            else:
                taking.append(number)
        return taking

    def _why_base_stays(self, case: _Case, values: Values, taking: Sequence[int]) -> str | None:
        """Why nothing is merged into the base's tensor, None where something is."""
        measured = self._is_measured(case)
        if measured and case.slot.layer.base not in taking:
            return case.dropped[0]
        if not measured and case.keeper is not None and self._is_base(case, case.keeper):
            silent = values.missing_for(case.keeper)
            if silent:
                return f"'{silent}' has no value for it at the base"
        if not taking or (taking == [case.keeper] and case.dropped):
            return case.dropped[0]
        apart = measured and self.method.base == "optional"
        if len(taking) - apart < self.method.inputs[0]:
            return case.dropped[0]
        return None

    def _is_measured(self, case: _Case) -> bool:
        """Whether the method measures from a base, which may have no layer that meets here."""
        layer, named = case.slot.layer, self.config.base_model
        if self.method.base == "optional":
            lost = named is not None and self.architecture.index_of(named) in layer.missing
            return layer.base is not None or lost
        return self.method.base == "required"

    def _combine(self, case: _Case, taking: Sequence[int], values: Values) -> TensorPlan:
        parameters = values.choose(taking)
        has_base = self.method.base == "optional" and self._is_measured(case)
        coefficients = self._find_coefficients(case, taking, parameters, has_base=has_base)
        active = [n for i, n in enumerate(taking) if coefficients is None or coefficients[i] != 0.0]
        known = None if coefficients is None else tuple(c for c in coefficients if c != 0.0)
        sources = []
        for number in active:
            fit = case.offers[number].fit
            # What is absent takes no part.
            assert not isinstance(fit, Absent)
            if isinstance(fit, Misfit):
                return self._keep_misfit(case, fit)
            sources.append(fit)
        if known == (1.0,):
            return self._pass_one(case, active[0], sources[0])
        stays = self._why_not_numbers(case, sources)
        if stays:
            return self._keep(case, stays)
        base = active.index(case.keeper) if case.keeper in active else None
        measured = has_base and known is None
        return self._plan(
            case, "merge", "merged as asked", self.method, parameters, sources, known, base, has_base=measured
        )

    def _find_coefficients(
        self, case: _Case, taking: Sequence[int], parameters: Arguments, *, has_base: bool
    ) -> tuple[float, ...] | None:
        """The coefficients if they are known before the weights are read."""
        try:
            found = self.method.coefficients(Gram(has_base=has_base), len(taking), parameters)
            return tuple(float(each) for each in found)
        except GramUnknownError:
            return None
        except ValueError as error:
            concerned = [taking[error.number]] if isinstance(error, ParameterError) else taking
            raise PlanError(
                f"{case.slot.name} cannot be merged: {error}.",
                where=self.config.source.locate(*_find_place(case.slot.layer)),
                why=f"of {', '.join(case.offers[number].label for number in concerned)}.",
                remedy="change the values, or filter them to other tensors.",
            ) from None

    def _keep_misfit(self, case: _Case, fit: Misfit) -> TensorPlan:
        if fit.packed is not None:
            raise self._refuse_packed(case, fit.packed)
        if self.config.on_mismatch == "error":
            self.misfits.append(Fault(case.slot.name, fit.reason, _find_place(case.slot.layer), fit.grade))
        return self._keep(case, f"{MISFIT} (class {fit.grade}): {fit.reason}")

    def _pass_one(self, case: _Case, number: int, source: Source) -> TensorPlan:
        """The method leaves one input as it is."""
        if number == case.keeper:
            return self._keep(case, "its parameters leave it as it is")
        stays = self._why_not_numbers(case, [source]) if _needs_cast(case.slot, source) else None
        if stays:
            return self._keep(case, stays)
        return self._pass(case, "copy", f"its parameters make it {case.offers[number].label}'s", source)

    def _keep(self, case: _Case, reason: str) -> TensorPlan:
        if case.keeper is None:
            self.gaps.append(Fault(case.slot.name, self._tell_gap(case), _find_place(case.slot.layer)))
            return self._pass(case, "keep", reason, Source(model=0, pin="", segments=()))
        source = case.offers[case.keeper].fit
        assert isinstance(source, Source)
        return self._pass(case, "keep" if self._is_base(case, case.keeper) else "copy", reason, source)

    def _is_base(self, case: _Case, number: int) -> bool:
        """Whether an input is the base, or the model that the output is one of."""
        return number == case.slot.layer.base or case.offers[number].input.model == self.architecture.target_index

    def _tell_gap(self, case: _Case) -> str:
        reasons = [offer.fit.reason for offer in case.offers if isinstance(offer.fit, Absent | Misfit)]
        return "; ".join(reasons) or f"{case.offers[0].label}'s cannot be converted to {case.slot.dtype}"

    def _why_not_numbers(self, case: _Case, sources: Sequence[Source]) -> str | None:
        """Why a tensor of numbers that are no weights stays as it is; packed weights are refused."""
        if case.slot.spec.packed is not None:
            raise self._refuse_packed(case, case.slot.spec.packed)
        found = next(filter(None, map(_find_uncombinable, sources)), None)
        return f"{found[1]} numbers are not weights to combine" if found else None

    def _refuse_packed(self, case: _Case, weight: PackedWeight) -> CheckpointError:
        where = self.config.source.locate(*_find_place(case.slot.layer))
        return refuse_packed(weight, into=weight is case.slot.spec.packed, where=where)

    def _pass(self, case: _Case, decision: Decision, reason: str, source: Source) -> TensorPlan:
        """One tensor through: its bytes, or its numbers where dtype or convention differ."""
        if _needs_cast(case.slot, source) or (decision == "copy" and self._find_lost_biases(case, [source])):
            # What is copied is never looked at, and a bias that is lost is measured beside its weight.
            decision = "convert"
            if any(segment.dtype != case.slot.dtype for segment in source.segments):
                reason = f"{reason}; written as {case.slot.dtype}"
        keeps = case.keeper is not None and case.offers[case.keeper].fit is source
        passthrough, parameters = find_method(COPY_METHOD), {"scale": (1.0,)}
        return self._plan(case, decision, reason, passthrough, parameters, [source], (1.0,), 0 if keeps else None)

    def _plan(
        self,
        case: _Case,
        decision: Decision,
        reason: str,
        method: MergeMethod,
        parameters: Arguments,
        sources: Sequence[Source],
        coefficients: tuple[float, ...] | None,
        base: int | None,
        *,
        has_base: bool = False,
    ) -> TensorPlan:
        return TensorPlan(
            name=case.slot.name,
            role=case.slot.spec.role,
            component=case.slot.component,
            shape=case.slot.spec.shape,
            dtype=case.slot.dtype,
            decision=decision,
            reason=reason,
            method=method.name,
            method_version=method.version,
            parameters=tuple(sorted(parameters.items())),
            sources=tuple(sources),
            coefficients=coefficients,
            readings=1 if coefficients is not None else method.count_readings(parameters),
            base=base,
            has_base=has_base,
            dropped=tuple(case.dropped),
            lost_biases=() if decision in ("keep", "copy") else self._find_lost_biases(case, sources),
        )

    def _find_lost_biases(self, case: _Case, sources: Sequence[Source]) -> tuple[LostBias, ...]:
        found = []
        for number, source in enumerate(sources):
            if source.model != self.architecture.target_index:
                offer = next(each for each in case.offers if each.fit is source)
                found.append(self._aligner.find_lost_biases(case.slot.spec, number, offer.input))
        return tuple(lost for lost in found if lost is not None)


@dataclass
class _Case:
    """A slot, what its inputs have for it, and what has been found so far."""

    slot: Slot
    offers: Sequence[Offer]
    keeper: int | None
    """The input whose tensor stays where nothing is merged; None: no input has one that fits."""
    dropped: list[str] = field(default_factory=list)
    """Inputs that take no part, each with its reason."""


def _needs_cast(slot: Slot, source: Source) -> bool:
    """Whether a tensor's numbers must be rewritten even if nothing is merged."""
    return not source.is_plain or any(segment.dtype != slot.dtype for segment in source.segments)


def _find_uncombinable(source: Source) -> tuple[str, str] | None:
    """A tensor of a source, with its dtype, that no arithmetic is defined for."""
    return next(((each.tensor, each.dtype) for each in source.segments if each.dtype not in MERGEABLE_DTYPES), None)


def _find_place(layer: OutputLayer) -> Path:
    """What in the configuration says how a layer is merged: its nearest parameters, else the method's name."""
    return next((path for path, parameters in walk_paths([layer]) if parameters), ("merge_method",))
