"""Map slices: decide for every tensor of the output what it is made of, before any weight is read."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from xmerge.architecture import ResolvedArchitecture, ResolvedModel, TensorSpec
from xmerge.checkpoints import MERGEABLE_DTYPES, dtype_of
from xmerge.config import MergeConfig
from xmerge.errors import CheckpointError, PlanError
from xmerge.methods import MergeMethod, find_method
from xmerge.methods.contract import Gram, GramUnknownError, Parameter
from xmerge.planning.alignment import Absent, Misfit, align
from xmerge.planning.output_config import choose_side_files, edit_config
from xmerge.planning.parameters import ParameterReader
from xmerge.planning.plan import Decision, LayerPlan, MergePlan, PlannedModel, Source, TensorPlan
from xmerge.planning.refusals import refuse_unsupported
from xmerge.planning.slices import Input, OutputLayer, lay_out
from xmerge.planning.warnings import list_foreign, list_warnings

COPY_METHOD = "passthrough"


def map_slices(config: MergeConfig, architecture: ResolvedArchitecture) -> MergePlan:
    """The plan of a merge.

    Raises:
        ConfigError: A filter matches no tensor.
        PlanError: The configuration asks for what cannot be done; nothing has been written.
        CheckpointError: A tensor that is to be merged is packed or of a dtype that cannot be combined.
    """
    refuse_unsupported(config, architecture)
    method = find_method(config.merge_method)
    layout = lay_out(config, architecture, method)
    mapper = _Mapper(config, architecture, method)
    layers = tuple(mapper.map_layer(layer) for layer in layout)
    mapper.reader.refuse_unmatched(config)
    mapper.refuse_misfits()
    mapper.refuse_silent_models(layout)
    config_text, edits = edit_config(config, architecture, layout, layers)
    return MergePlan(
        method=config.merge_method,
        models=_describe_models(architecture, layers, layout),
        target=architecture.target_index,
        layers=tuple(layer for layer in layers if layer.tensors),
        layer_map=tuple(_meeting(layer, len(architecture.models)) for layer in layout if layer.index is not None),
        config_text=config_text,
        config_edits=edits,
        side_files=choose_side_files(architecture.target),
        chat_template=config.chat_template,
        warnings=list_warnings(config, architecture, layout, layers, method),
        config_fingerprint=config.fingerprint,
    )


@dataclass(frozen=True)
class _Slot:
    """A tensor of the output, before it is decided what fills it."""

    name: str
    spec: TensorSpec
    layer: OutputLayer


@dataclass
class _Mapper:
    config: MergeConfig
    architecture: ResolvedArchitecture
    method: MergeMethod
    reader: ParameterReader = field(default_factory=ParameterReader)
    misfits: list[tuple[str, str]] = field(default_factory=list)
    """(output tensor, reason) of what was asked for and does not fit."""
    spoken: set[int] = field(default_factory=set)
    """Models that had a value for some tensor."""

    def map_layer(self, layer: OutputLayer) -> LayerPlan:
        """Everything about one layer of the output."""
        index = layer.index
        tensors = [self._map_tensor(slot) for slot in self._slots(layer)]
        ordered = sorted(tensors, key=lambda tensor: tensor.name)
        return LayerPlan(label=layer.label, index=index, tensors=tuple(ordered))

    def refuse_misfits(self) -> None:
        """Refuse what was asked for and cannot be done, all of it at once."""
        if not self.misfits:
            return
        reasons = list(dict.fromkeys(reason for _, reason in self.misfits))
        shown = "".join(f"\n    {reason}" for reason in reasons[:12])
        more = f"\n    and {len(reasons) - 12} more" if len(reasons) > 12 else ""
        raise PlanError(
            f"{len(self.misfits)} tensors of the output cannot be merged as asked, {self.misfits[0][0]} first.",
            where=self.config.source.locate("parameters"),
            why=f"shapes differ:{shown}{more}",
            remedy="filter the parameters to components that fit, or set 'on_mismatch: base' to keep the base's there.",
        )

    def refuse_silent_models(self, layout: Sequence[OutputLayer]) -> None:
        """Refuse a required per-model parameter that some model has nowhere."""
        needed = [each for each in self.method.parameters if each.per_model and each.default is None]
        for layer in layout:
            for number, each in enumerate(layer.inputs):
                if (
                    not needed
                    or not layer.merged
                    or each.model in self.spoken
                    or self._is_base_without_duties(layer, number)
                ):
                    continue
                label = self.architecture.models[each.model].label
                raise PlanError(
                    f"{self.method.name} needs '{needed[0].name}' for every model, and {label} has none.",
                    where=self.config.source.locate(*each.path),
                    remedy=f"write '{needed[0].name}' under the model's 'parameters', or in 'parameters' for all"
                    + (
                        f"; or leave out 'base_model', or set 'architecture: {label}' and take the model from 'base_model'."
                        if each.path == ("base_model",)
                        else "."
                    ),
                )

    def _is_base_without_duties(self, layer: OutputLayer, number: int) -> bool:
        return self.method.base == "required" and number == layer.base

    def _slots(self, layer: OutputLayer) -> Iterable[_Slot]:
        target = self.architecture.target
        for spec in target.by_layer.get(layer.template_layer, ()):
            if layer.index is None and spec.after_layers != layer.after_layers:
                continue
            if spec.role == "output" and target.tied:
                continue  # A stray head beside a tied embedding: transformers never reads it.
            name = spec.name if layer.index is None else spec.template.format(layer=layer.index)
            yield _Slot(name, spec, layer)

    def _map_tensor(self, slot: _Slot) -> TensorPlan:
        inputs = slot.layer.inputs
        fits = [self._align(slot, each) for each in inputs]
        keeper = self._choose_keeper(slot, fits)
        if not slot.layer.merged:
            return self._keep(slot, keeper, fits, "its layer is not listed")
        values = self._read_parameters(slot, fits)
        if isinstance(values, str):
            return self._keep(slot, keeper, fits, values)
        taking, shared, per_input, dropped = self._choose_inputs(slot, fits, values)
        if len(taking) <= 1 and self._only_base_is_left(slot, taking, keeper):
            return self._keep(slot, keeper, fits, dropped[0] if dropped else "no donor has a value for it", dropped)
        return self._combine(slot, fits, keeper, taking, shared, per_input, tuple(dropped))

    def _align(self, slot: _Slot, each: Input) -> Source | Absent | Misfit:
        architecture = self.architecture
        return align(slot.spec, architecture.target, architecture.models[each.model], each.model, each.layer)

    def _choose_keeper(self, slot: _Slot, fits: Sequence[Source | Absent | Misfit]) -> int:
        """The input whose bytes stay where nothing is merged: the base, else the target, else the first that fits."""
        inputs = slot.layer.inputs
        choices = [slot.layer.base] if slot.layer.base is not None else []
        choices += [i for i, each in enumerate(inputs) if each.model == self.architecture.target_index]
        choices += list(range(len(inputs)))
        for choice in choices:
            if isinstance(fits[choice], Source):
                return choice
        self.misfits.append((slot.name, _reason(fits[choices[0]])))
        return choices[0]

    def _read_parameters(self, slot: _Slot, fits: Sequence[Source | Absent | Misfit]) -> dict[str, Any] | str:
        """Every parameter's value: a number for all, or a list with a number or None for each input.

        A text says why the base's tensor stays: a required parameter has no value.
        """
        values: dict[str, Any] = {}
        for parameter in self.method.parameters:
            if parameter.per_model:
                values[parameter.name] = [self._read_for(slot, parameter, i, fit) for i, fit in enumerate(fits)]
            else:
                values[parameter.name] = self.reader.read_for_all(parameter, slot.layer, slot.name)
        for parameter in self.method.parameters:
            if values[parameter.name] is None:
                return f"'{parameter.name}' has no value for it"
            base = slot.layer.base if self.method.base == "as_input" else None
            if parameter.per_model and base is not None and values[parameter.name][base] is None:
                return f"'{parameter.name}' has no value for it at the base"
        return values

    def _read_for(self, slot: _Slot, parameter: Parameter, number: int, fit: Source | Absent | Misfit) -> float | None:
        if self._is_base_without_duties(slot.layer, number):
            return 0.0
        each = slot.layer.inputs[number]
        value = self.reader.read_for_one(parameter, slot.layer, each, _names(slot, each, fit))
        if value is not None:
            self.spoken.add(each.model)
        return value

    def _choose_inputs(
        self, slot: _Slot, fits: Sequence[Source | Absent | Misfit], values: dict[str, Any]
    ) -> tuple[list[int], dict[str, Any], dict[str, list[float | None]], list[str]]:
        """The inputs that take part, the base first where the method has one; and why the others do not."""
        shared = {name: value for name, value in values.items() if not isinstance(value, list)}
        per_input = {name: value for name, value in values.items() if isinstance(value, list)}
        order = list(range(len(slot.layer.inputs)))
        if self.method.base == "required" and slot.layer.base is not None:
            order.sort(key=lambda number: number != slot.layer.base)
        taking, dropped = [], []
        for number in order:
            fit = fits[number]
            label = self.architecture.models[slot.layer.inputs[number].model].label
            silent = [name for name, column in per_input.items() if column[number] is None]
            if silent:
                dropped.append(f"{label}: '{silent[0]}' has no value for it")
            elif isinstance(fit, Absent):
                dropped.append(fit.reason)
            else:
                taking.append(number)
        return taking, shared, per_input, dropped

    def _only_base_is_left(self, slot: _Slot, taking: list[int], keeper: int) -> bool:
        """Whether no donor takes part; a method of one input, such as passthrough, has no donors to lose."""
        return not taking or (len(slot.layer.inputs) > 1 and taking == [keeper])

    def _combine(
        self,
        slot: _Slot,
        fits: Sequence[Source | Absent | Misfit],
        keeper: int,
        taking: list[int],
        shared: dict[str, Any],
        per_input: dict[str, list[float | None]],
        dropped: tuple[str, ...],
    ) -> TensorPlan:
        parameters = {**shared, **{name: tuple(column[i] for i in taking) for name, column in per_input.items()}}
        coefficients = self._coefficients(slot, taking, parameters)
        active = taking
        if coefficients is not None:
            active = [i for i, c in zip(taking, coefficients, strict=True) if c != 0.0]
            if [c for c in coefficients if c != 0.0] == [1.0]:
                return self._copy(slot, fits, keeper, active[0], dropped)
        misfit = next((fits[i] for i in active if isinstance(fits[i], Misfit)), None)
        if misfit is not None:
            if self.config.on_mismatch == "error":
                self.misfits.append((slot.name, _reason(misfit)))
            return self._keep(slot, keeper, fits, f"it does not fit: {_reason(misfit)}", dropped)
        sources = [fit for fit in (fits[i] for i in active) if isinstance(fit, Source)]
        stays = self._why_not_combined(sources)
        if stays:
            return self._keep(slot, keeper, fits, stays, dropped)
        known = None if coefficients is None else tuple(c for c in coefficients if c != 0.0)
        base = active.index(keeper) if keeper in active else None
        return self._tensor(
            slot, "merge", "merged as asked", self.method, parameters, sources, known, base=base, dropped=dropped
        )

    def _coefficients(self, slot: _Slot, taking: list[int], parameters: dict[str, Any]) -> tuple[float, ...] | None:
        """The coefficients if they are known before the weights are read."""
        try:
            return self.method.coefficients(Gram(), len(taking), parameters)
        except GramUnknownError:
            return None
        except ValueError as error:
            labels = ", ".join(self.architecture.models[slot.layer.inputs[i].model].label for i in taking)
            raise PlanError(
                f"{slot.name} cannot be merged: {error}.",
                where=self.config.source.locate("parameters"),
                why=f"of {labels}.",
            ) from None

    def _why_not_combined(self, sources: Sequence[Source]) -> str | None:
        """Why a tensor of numbers that are no weights stays; packed weights are refused."""
        for source in sources:
            model = self.architecture.models[source.model]
            for segment in source.segments:
                if segment.dtype in MERGEABLE_DTYPES:
                    continue
                if model.quantization or segment.dtype.startswith("F"):
                    raise CheckpointError(
                        f"{model.label} holds {segment.tensor} as {segment.dtype}, which cannot be merged.",
                        why=f"its weights are packed ({model.quantization or segment.dtype}).",
                        remedy="merge a checkpoint in bfloat16, float16 or float32, and pack the result.",
                    )
                return f"{segment.dtype} numbers are not weights to combine"
        return None

    def _copy(
        self, slot: _Slot, fits: Sequence[Source | Absent | Misfit], keeper: int, chosen: int, dropped: tuple[str, ...]
    ) -> TensorPlan:
        fit = fits[chosen]
        if isinstance(fit, Misfit):
            if self.config.on_mismatch == "error":
                self.misfits.append((slot.name, fit.reason))
            return self._keep(slot, keeper, fits, f"it does not fit: {fit.reason}", dropped)
        if chosen == keeper:
            return self._keep(slot, keeper, fits, "its parameters leave it as it is", dropped)
        assert isinstance(fit, Source)
        label = self.architecture.models[fit.model].label
        return self._pass(slot, "copy", f"its parameters make it {label}'s", fit, dropped)

    def _keep(
        self,
        slot: _Slot,
        keeper: int,
        fits: Sequence[Source | Absent | Misfit],
        reason: str,
        dropped: Sequence[str] = (),
    ) -> TensorPlan:
        fit = fits[keeper]
        if not isinstance(fit, Source):  # Already recorded as a misfit: the plan will be refused.
            fit = Source(model=slot.layer.inputs[keeper].model, pin="", segments=())
        is_base = slot.layer.inputs[keeper].model in (self.architecture.target_index, self._base_index(slot))
        return self._pass(slot, "keep" if is_base else "copy", reason, fit, tuple(dropped))

    def _base_index(self, slot: _Slot) -> int | None:
        return None if slot.layer.base is None else slot.layer.inputs[slot.layer.base].model

    def _pass(self, slot: _Slot, decision: Decision, reason: str, fit: Source, dropped: tuple[str, ...]) -> TensorPlan:
        """One tensor through: its bytes, or its numbers where dtype or convention differ."""
        passthrough = find_method(COPY_METHOD)
        stored = {segment.dtype for segment in fit.segments}
        if fit.shift or (stored and stored != {self._dtype(slot)}):
            decision, reason = "cast", f"{reason}; written as {self._dtype(slot)}"
        return self._tensor(
            slot, decision, reason, passthrough, {"scale": (1.0,)}, [fit], (1.0,), base=0, dropped=dropped
        )

    def _tensor(
        self,
        slot: _Slot,
        decision: Decision,
        reason: str,
        method: MergeMethod,
        parameters: dict[str, Any],
        sources: Sequence[Source],
        coefficients: tuple[float, ...] | None,
        *,
        base: int | None,
        dropped: tuple[str, ...] = (),
    ) -> TensorPlan:
        return TensorPlan(
            name=slot.name,
            role=slot.spec.role,
            component=slot.spec.role or slot.spec.template,
            shape=slot.spec.shape,
            dtype=self._dtype(slot),
            decision=decision,
            reason=reason,
            method=method.name,
            method_version=method.version,
            parameters=tuple(sorted(parameters.items())),
            sources=tuple(sources),
            coefficients=coefficients,
            base=base,
            dropped=dropped,
        )

    def _dtype(self, slot: _Slot) -> str:
        if self.config.written_dtype and slot.spec.dtype in MERGEABLE_DTYPES:
            return dtype_of(self.config.written_dtype)
        return slot.spec.dtype


def _names(slot: _Slot, each: Input, fit: Source | Absent | Misfit) -> list[str]:
    """What the tensor goes by in an input: its names there, and the output's where the families' names differ."""
    if not isinstance(fit, Source):
        return [slot.name]
    names = [segment.tensor for segment in fit.segments]
    own = slot.spec.template.format(layer=each.layer) if each.layer is not None else slot.name
    return names if names == [own] else [*names, slot.name]


def _reason(fit: Source | Absent | Misfit) -> str:
    return fit.reason if isinstance(fit, Absent | Misfit) else ""


def _meeting(layer: OutputLayer, models: int) -> tuple[int | None, ...]:
    met: list[int | None] = [None] * models
    for each in layer.inputs:
        met[each.model] = each.layer
    return tuple(met)


def _describe_models(
    architecture: ResolvedArchitecture, layers: Sequence[LayerPlan], layout: Sequence[OutputLayer]
) -> tuple[PlannedModel, ...]:
    files: list[set[str]] = [set() for _ in architecture.models]
    used = [0] * len(architecture.models)
    for layer in layers:
        for tensor in layer.tensors:
            for source in tensor.sources:
                files[source.model].update(segment.file for segment in source.segments)
                used[source.model] += source.nbytes
    return tuple(
        _describe_model(model, sorted(files[index]), used[index], list_foreign(architecture, index, layout))
        for index, model in enumerate(architecture.models)
    )


def _describe_model(model: ResolvedModel, files: list[str], used: int, foreign: tuple[str, ...]) -> PlannedModel:
    location = model.location
    return PlannedModel(
        reference=location.reference,
        label=model.label,
        folder=location.folder,
        repo=location.repo,
        commit=location.commit,
        pin=model.checkpoint.pin,
        kind=model.kind,
        layers=model.layers,
        files=tuple(files),
        bytes_used=used,
        shards=tuple(
            (shard.file, shard.size, shard.header_sha256, shard.modified_ns) for shard in model.checkpoint.shards
        ),
        dropped=foreign,
    )
