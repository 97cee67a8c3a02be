"""The plan: everything decided and nothing done; data only."""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from xmerge import garbage
from xmerge.architecture.differences import Class, worst_class
from xmerge.checkpoints.headers import DTYPE_BITS, build_header, size_of
from xmerge.licences import Notice, Verdict, judge_licences, name_notices
from xmerge.source_cards import Origin, SourceCard
from xmerge.values import Value, fingerprint_json

ENGINE_VERSION = 2
"""Raised whenever the same plan would give other bytes; part of every fingerprint."""

Decision = Literal["merge", "convert", "copy", "keep"]
"""`merge`: combined from several tensors or scaled. `convert`: one tensor in another dtype, order or convention.
`copy`: a donor's bytes. `keep`: the base's bytes."""

NonfinitePolicy = Literal["error", "base", "propagate"]
"""`error`: the merge stops. `base`: the base's tensor is kept. `propagate`: they are calculated with."""

MISFIT = "it does not fit"
"""How the reason begins for a tensor that was asked to be merged and is the base's all the same."""


NONFINITE = "a source holds NaN or infinity"
"""The reason for a tensor that was to be merged and is the base's because of such numbers."""


class Segment(Value):
    """Elements of a stored tensor, and where they go in the output's tensor."""

    tensor: str
    file: str
    dtype: str
    offset: int
    """The first one's place: bytes from the start of the file."""
    elements: int
    at: int = 0
    """Where the first one goes: elements from the start of the output's tensor."""
    order: tuple[tuple[int, int, int], ...] = ()
    """Loops, the output's outermost first: (how often, elements from one to the next in the source, the same in the
    output). Empty: consecutive in both."""
    scale: float = 1.0
    """Every number is multiplied by it as it is read: a scale of the donor's config.json, folded into its weights."""

    @property
    def nbytes(self) -> int:
        """Bytes it takes in the file."""
        return self.elements * DTYPE_BITS[self.dtype] // 8


class Gain(Value):
    """A norm's gain, folded into the columns of a matrix that reads what the norm gives.

    Element i of the matrix is multiplied by `donor[c] / base[c]`, with c = (i // stride) % length.
    """

    donor: Segment
    """The donor's norm weight."""
    base: Segment
    base_model: int
    base_pin: str
    donor_shift: float
    """Added to the donor's norm weight to make it a gain."""
    base_shift: float
    length: int
    stride: int


class Source(Value):
    """What one model gives to an output tensor."""

    model: int
    """Index among the plan's models."""
    pin: str
    """The model's commit, or the digest of its shards' headers."""
    segments: tuple[Segment, ...]
    """Together they fill the output's tensor, each element once."""
    shift: float = 0.0
    """Added to every number as it is read: brings a norm's weight to the base's convention."""
    gain: Gain | None = None
    steps: tuple[str, ...] = ()
    """The conversions, in words."""
    folds: tuple[str, ...] = ()
    """The folds of the configuration that change its numbers."""
    fit: Class = "A"
    """How well it fits where it goes."""
    notes: tuple[str, ...] = ()
    """In what the donor's tensor differs from the base's, in words."""

    @property
    def nbytes(self) -> int:
        """Bytes one reading of it takes."""
        return sum(segment.nbytes for segment in self.segments)

    @property
    def is_plain(self) -> bool:
        """Whether its bytes, as they lie in the file, are those of the output's tensor."""
        return (
            self.shift == 0.0
            and self.gain is None
            and not any(segment.order or segment.scale != 1.0 for segment in self.segments)
        )


class LostBias(Value):
    """Biases of a donor's that the base has no place for, beside the weight they belong to."""

    model: int
    source: int
    """Which of the tensor's sources is the weight."""
    roles: tuple[str, ...]
    biases: tuple[Segment, ...]


class Draws(Value):
    """What decides the random numbers of a tensor whose method draws some."""

    seed: int
    donors: tuple[str, ...] = ()
    """With the counter: for each source, whom its numbers are drawn for; nothing for one that draws none."""
    starts: tuple[int | None, ...] = ()
    """As mergekit draws them: for each source, how many numbers the merge draws before its own; None: it draws none."""
    dtype: str = "F32"
    """In which mergekit computes probabilities."""


class TensorPlan(Value):
    """One tensor of the output: what it is made of, and how."""

    name: str
    role: str | None
    component: str
    """What it is listed under for people: its role, or its name without the layer's number."""
    shape: tuple[int, ...]
    dtype: str
    decision: Decision
    reason: str
    """Why it was decided so, in words."""
    method: str
    method_version: int
    parameters: tuple[tuple[str, float | tuple[float, ...]], ...]
    """What the method is called with; for several inputs one number each."""
    sources: tuple[Source, ...]
    """What is read: the inputs whose coefficient is not known to be 0, the base first where the method has one."""
    coefficients: tuple[float, ...] | None
    """One for each source; None: the method must see the weights first, or is a rule."""
    readings: int = 1
    """How often the sources are read, at most."""
    base: int | None = None
    """Which source is the base, if it is read."""
    has_base: bool = False
    """Whether a method that can do without a base measures from the first source."""
    draws: Draws | None = None
    """None: its method draws no random numbers."""
    dropped: tuple[str, ...] = ()
    """Donors that take no part, each with its reason."""
    on_nonfinite: NonfinitePolicy = "error"
    """What becomes of it if a source holds NaN or infinity."""
    fallback: TensorPlan | None = None
    """The base's tensor, which takes its place if a source holds NaN or infinity; None: there is no such way out."""
    lost_biases: tuple[LostBias, ...] = ()
    """Measured while the weights are read: how much a donor's output changes without them."""

    @property
    def fit(self) -> Class:
        """How well the worst of its sources fits."""
        return worst_class(source.fit for source in self.sources)

    @property
    def elements(self) -> int:
        """How many numbers it holds."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes it takes in the output."""
        return size_of(self.dtype, self.shape)

    @property
    def is_copied(self) -> bool:
        """Whether its bytes pass through untouched."""
        return self.decision in ("copy", "keep")

    @property
    def bytes_read(self) -> int:
        """Bytes that arithmetic needs; 0 for a copy."""
        if self.is_copied:
            return 0
        return sum(source.nbytes for source in self.sources) * self.readings


def list_segments(tensor: TensorPlan) -> Iterator[tuple[int, Segment]]:
    """(model, segment) of everything that is read for a tensor, the norms of folded gains with it."""
    for source in tensor.sources:
        yield from ((source.model, segment) for segment in source.segments)
        if source.gain is not None:
            yield source.model, source.gain.donor
            yield source.gain.base_model, source.gain.base
    for lost in tensor.lost_biases:
        yield from ((lost.model, bias) for bias in lost.biases)
    if tensor.fallback is not None:
        yield from list_segments(tensor.fallback)


_WORDS_OF_A_TENSOR: Any = {
    **dict.fromkeys(("role", "component", "reason", "readings", "dropped"), True),
    "lost_biases": {"__all__": {"model"}},
    "sources": {
        "__all__": {**dict.fromkeys(("model", "steps", "folds", "fit", "notes"), True), "gain": {"base_model"}}
    },
}
_WORDS: Any = {
    "label": True,
    "index": True,
    "tensors": {"__all__": {**_WORDS_OF_A_TENSOR, "fallback": _WORDS_OF_A_TENSOR}},
}
"""What of a layer's plan decides no byte: wording, what is told of the work, and a model's place among the others."""


class LayerPlan(Value):
    """The unit of work: the tensors before the layers, of one layer, or after the layers. It becomes one shard."""

    label: str
    index: int | None
    """The output's layer; None outside the layers."""
    tensors: tuple[TensorPlan, ...]

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of what decides the shard's bytes; words and the models' places in the plan are no part of it."""
        with garbage.left_alone():
            data = self.model_dump(mode="json", exclude=_WORDS, exclude_defaults=True)
            return fingerprint_json({"engine": ENGINE_VERSION, **data})

    @cached_property
    def header(self) -> bytes:
        """The first bytes of the shard."""
        return build_header((tensor.name, tensor.dtype, tensor.shape) for tensor in self.tensors)[0]

    @property
    def bytes_written(self) -> int:
        """Bytes of tensor data in the shard."""
        return sum(tensor.nbytes for tensor in self.tensors)

    @property
    def bytes_copied(self) -> int:
        """Bytes that pass through untouched."""
        return sum(tensor.nbytes for tensor in self.tensors if tensor.is_copied)

    @property
    def bytes_read(self) -> int:
        """Bytes that arithmetic needs."""
        return sum(tensor.bytes_read for tensor in self.tensors)


class PlannedModel(Value):
    """A model of the plan, and what of it is used."""

    reference: str
    label: str
    folder: Path | None
    repo: str | None
    commit: str | None
    pin: str
    kind: str
    """Its family, or its model type where no family file exists."""
    layers: int
    files: tuple[str, ...]
    """The shards that the plan reads."""
    bytes_used: int
    """Bytes of tensors that the plan reads or copies."""
    shards: tuple[tuple[str, int, str, int], ...]
    """(file, size, digest of its header, time of its last change in ns or 0) of every shard it has."""
    dropped: tuple[str, ...]
    """Components that the target does not have: foreign tensors, not carried over."""
    card: SourceCard = SourceCard()
    """What it says of itself, and of its licence."""
    made_of: tuple[Origin, ...] | None = None
    """For the output of an earlier stage, what that is made of."""

    @property
    def origins(self) -> tuple[Origin, ...]:
        """The models that it is made of, or is."""
        if self.made_of is not None:
            return self.made_of
        return (Origin(label=self.label, repo=self.repo, commit=self.commit, card=self.card),)


class MergePlan(Value):
    """A whole merge, decided."""

    method: str
    models: tuple[PlannedModel, ...]
    """In the order of the configuration, the base first if it is named."""
    target: int
    """Which model gives architecture, config.json and tokenizer."""
    layers: tuple[LayerPlan, ...]
    layer_map: tuple[tuple[int | None, ...], ...]
    """For each layer of the output, each model's layer that meets there (None: no part)."""
    config_text: str
    """The output's config.json."""
    config_edits: tuple[str, ...]
    side_files: tuple[str, ...]
    """Tokenizer and other files that go along from the target."""
    side_files_digest: str
    """SHA-256 of what they hold."""
    chat_template: str | None
    warnings: tuple[str, ...]
    config_fingerprint: str
    """Of the configuration as it was read."""

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of what decides the output's bytes: no path and no wording is part of it."""
        with garbage.left_alone():
            return fingerprint_json(
                {
                    "layers": [layer.fingerprint for layer in self.layers],
                    "config": self.config_text,
                    "side_files": [self.side_files, self.side_files_digest],
                    "chat_template": self.chat_template,
                    "target": self.models[self.target].pin,
                    "cards": [model.card.model_dump(mode="json") for model in self.models],
                }
            )

    @cached_property
    def origins(self) -> tuple[Origin, ...]:
        """The models that it is made of, also by way of earlier stages, each once."""
        return tuple(
            {(each.label, each.repo, each.commit): each for model in self.models for each in model.origins}.values()
        )

    @cached_property
    def licensing(self) -> Verdict:
        """What the models' licences say of their merge."""
        return judge_licences([origin.card for origin in self.origins])

    @cached_property
    def notices(self) -> tuple[Notice, ...]:
        """The licence texts that go along."""
        return name_notices([(model.label, model.card) for model in self.models], self.licensing)

    @property
    def title(self) -> str:
        """Method, base and donors, in a few words."""
        base = self.models[self.target].label
        donors = [model.label for index, model in enumerate(self.models) if index != self.target]
        return f"{self.method} {' + '.join([base, *donors])}"

    @property
    def tensors(self) -> tuple[TensorPlan, ...]:
        """Every tensor of the output, layer by layer."""
        return tuple(tensor for layer in self.layers for tensor in layer.tensors)

    @property
    def bytes_written(self) -> int:
        """Bytes of tensor data in the output."""
        return sum(layer.bytes_written for layer in self.layers)

    def shard_name(self, layer: int) -> str:
        """The file that the layer at a place in `layers` becomes."""
        return f"model-{layer + 1:05d}-of-{len(self.layers):05d}.safetensors"
