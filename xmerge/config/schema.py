"""The schema of a merge configuration: every key of mergekit's with its meaning, and xmerge's own."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, PrivateAttr, model_validator

from xmerge.config.settings import Parameters
from xmerge.config.source import ConfigSource
from xmerge.config.strict import Strict, complain

FLOAT_DTYPES = ("bfloat16", "float16", "float32")


class ModelPath(Strict):
    """A local folder, or a repository on the Hub with an optional branch, tag or commit."""

    path: str = Field(min_length=1)
    """A folder, or `org/name` on the Hub."""
    revision: str | None = None
    """Branch, tag or commit, for a repository on the Hub."""

    def __str__(self) -> str:
        return f"{self.path}@{self.revision}" if self.revision else self.path


def parse_model_path(raw: Any) -> Any:
    """`PATH[@REVISION]` as a mapping; a mapping as it is."""
    if not isinstance(raw, str):
        return raw
    path, _, revision = raw.partition("@")
    if "@" in revision:
        raise complain(f"'{raw}' has more than one '@'; write it as a mapping with 'path' and 'revision'")
    return {"path": path, "revision": revision or None}


AnyModelPath = Annotated[ModelPath, BeforeValidator(parse_model_path, json_schema_input_type=str | ModelPath)]


class ModelReference(Strict):
    """A model, with an optional LoRA adapter: `PATH[@REVISION][+LORA[@REVISION]]`, or a mapping."""

    model: AnyModelPath
    lora: AnyModelPath | None = None
    override_architecture: str | None = None
    """A class name that takes the place of `architectures` in the model's config.json."""

    def __str__(self) -> str:
        return f"{self.model}+{self.lora}" if self.lora else str(self.model)


def parse_model_reference(raw: Any) -> Any:
    """The text form of a model reference, or a bare `{path, revision}`, as a full mapping."""
    if isinstance(raw, dict) and "path" in raw:
        return {"model": raw}
    if not isinstance(raw, str):
        return raw
    model, _, lora = raw.partition("+")
    if "+" in lora:
        raise complain(f"'{raw}' has more than one '+'; write it as a mapping with 'model' and 'lora'")
    return {"model": model, "lora": lora or None}


AnyModel = Annotated[
    ModelReference, BeforeValidator(parse_model_reference, json_schema_input_type=str | ModelReference)
]


class InputModel(Strict):
    """One model of a whole-model merge."""

    model: AnyModel
    parameters: Parameters = {}


class LayerRange(Strict):
    """Consecutive layers, half-open: `[0, 16]` is 0 to 15."""

    start: int = Field(ge=0)
    end: int

    @property
    def length(self) -> int:
        """How many layers it covers."""
        return self.end - self.start

    def __str__(self) -> str:
        return f"[{self.start}, {self.end}]"


def parse_layer_range(raw: Any) -> Any:
    """`[start, end]` as a mapping, refusing what is no range."""
    if isinstance(raw, list | tuple):
        if len(raw) != 2 or not all(type(item) is int for item in raw):
            raise complain(f"expected [start, end], two whole numbers, got {list(raw)}")
        start, end = raw
        if start < 0:
            raise complain(f"layers count from 0; {list(raw)} starts below it")
        if end <= start:
            raise complain(
                f"{list(raw)} covers no layer; a range is [start, end) with start below end"
                + (f": did you mean {[end, start]}?" if end < start else "")
            )
        return {"start": start, "end": end}
    return raw


AnyLayerRange = Annotated[
    LayerRange,
    BeforeValidator(
        parse_layer_range,
        json_schema_input_type=Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=2, max_length=2)],
    ),
]


class SliceSource(Strict):
    """The layers of one model that go into a slice."""

    model: AnyModel
    layer_range: AnyLayerRange
    parameters: Parameters = {}


class OutputSlice(Strict):
    """Consecutive layers of the output, and the layers they are made of."""

    sources: tuple[SliceSource, ...] = Field(min_length=1)
    base_model: AnyModel | None = None
    """Takes the place of the configuration's `base_model` in this slice."""
    parameters: Parameters = {}
    residual_weight: float | None = None
    """Read for mergekit's sake, which never used it either."""

    @model_validator(mode="after")
    def _sources_span_equally_many_layers(self) -> Self:
        first = self.sources[0].layer_range
        for index, source in enumerate(self.sources[1:], start=1):
            if source.layer_range.length != first.length:
                raise complain(
                    f"{source.model} gives {source.layer_range.length} layers {source.layer_range} where "
                    f"{self.sources[0].model} gives {first.length} {first}; the sources of a slice span equally many",
                    "sources",
                    index,
                    "layer_range",
                )
        return self


class ModuleDefinition(Strict):
    """One part of a model of several parts; a plain language model has the one part `default`."""

    models: tuple[InputModel, ...] = ()
    slices: tuple[OutputSlice, ...] = ()
    parameters: Parameters = {}

    @model_validator(mode="after")
    def _models_or_slices(self) -> Self:
        if bool(self.models) == bool(self.slices):
            raise complain("give exactly one of 'models' and 'slices'")
        return self


class TokenSource(Strict):
    """Where the embedding of one token comes from."""

    source: AnyModel | dict[str, Any] | None = None
    force: bool = False


class TokenizerConfig(Strict):
    """How the output's tokenizer is made."""

    source: Literal["base", "union"] | AnyModel = "union"
    tokens: dict[str, TokenSource] = {}
    pad_to_multiple_of: int | None = Field(default=None, ge=1)


class PublishTarget(Strict):
    """Where the output is uploaded to when it has been validated."""

    repo: str = Field(min_length=1)
    """`org/name` on the Hub."""
    visibility: Literal["private", "public"] = "private"
    branch: str | None = None


def parse_dtype(raw: Any) -> Any:
    """A dtype's name without mergekit's optional `torch.`, refused unless weights can be written in it."""
    if raw is None:
        return None
    name = str(raw).removeprefix("torch.")
    if name not in FLOAT_DTYPES:
        raise complain(f"'{raw}' is no dtype that a merge can be written in; valid here: {', '.join(FLOAT_DTYPES)}")
    return name


Dtype = Annotated[
    Literal["bfloat16", "float16", "float32"] | None, BeforeValidator(parse_dtype, json_schema_input_type=str | None)
]


def parse_layer_map(raw: Any) -> Any:
    """`exact`, `proportional`, or a list of [base layer, donor layer] pairs."""
    if raw in ("exact", "proportional"):
        return raw
    if not isinstance(raw, list | tuple) or not raw:
        raise complain(f"expected exact, proportional or a list of [base layer, donor layer], got {raw!r}")
    for index, pair in enumerate(raw):
        if not isinstance(pair, list | tuple) or len(pair) != 2 or not all(type(i) is int and i >= 0 for i in pair):
            raise complain(f"expected [base layer, donor layer], two whole numbers from 0, got {pair!r}", index)
    bases = [pair[0] for pair in raw]
    for index, layer in enumerate(bases):
        if layer in bases[:index]:
            raise complain(f"base layer {layer} stands twice; one donor layer meets one base layer", index)
    return raw


LayerMap = Annotated[
    Literal["exact", "proportional"] | tuple[tuple[int, int], ...],
    BeforeValidator(parse_layer_map, json_schema_input_type=Literal["exact", "proportional"] | list[tuple[int, int]]),
]


class MergeConfig(Strict):
    """A merge, as a person describes it."""

    merge_method: str
    """How tensors are combined; `xmerge methods` lists them."""
    models: tuple[InputModel, ...] = ()
    """A merge of whole models; the first is the base unless `base_model` says otherwise."""
    slices: tuple[OutputSlice, ...] = ()
    """An output assembled from layer ranges."""
    modules: dict[str, ModuleDefinition] = {}
    """`models` or `slices` for each part of a model of several parts."""
    base_model: AnyModel | None = None
    """The model that the others are measured from, and whose architecture the output has."""
    dtype: Dtype = None
    """What the output is written in, unless `out_dtype` is given; the arithmetic is always float32."""
    out_dtype: Dtype = None
    """What the output is written in; default: `dtype`, else what the base has."""
    tokenizer_source: Literal["base", "union"] | AnyModel | None = None
    tokenizer: TokenizerConfig | None = None
    chat_template: str | None = None
    """A Jinja template for the output; default: the base's."""
    parameters: Parameters = {}
    """The method's parameters for every tensor."""
    architecture: Literal["base"] | AnyModel = "base"
    """Whose architecture, config and tokenizer the output has: `base`, or a model of this configuration."""
    on_mismatch: Literal["error", "base"] = "error"
    """When a donor's tensor does not fit: refuse the plan, or keep the base's tensor and record it."""
    unlisted_layers: Literal["drop", "base"] = "drop"
    """With `slices`: the output has only the listed layers, or the base's other layers stay in place."""
    layer_map: LayerMap = "exact"
    """With `models` of different depth: which donor layer meets which base layer."""
    globals: Parameters = {}
    """Parameters for the tensors outside the layers; default: as mergekit reads them."""
    random_seed: int = Field(default=0, ge=0, lt=2**63)
    publish: PublishTarget | None = None

    _source: ConfigSource = PrivateAttr(default_factory=ConfigSource)

    @property
    def source(self) -> ConfigSource:
        """The text it was read from, and which line says what."""
        return self._source

    def with_source(self, source: ConfigSource) -> Self:
        """The same configuration, knowing the text it was read from."""
        copy = self.model_copy()
        copy._source = source
        return copy

    @model_validator(mode="after")
    def _exactly_one_way(self) -> Self:
        given = [key for key in ("models", "slices", "modules") if getattr(self, key)]
        if len(given) != 1:
            had = f"; this one has {' and '.join(given)}" if given else ""
            raise complain(f"a configuration has exactly one of 'models', 'slices' and 'modules'{had}")
        return self

    @model_validator(mode="after")
    def _one_tokenizer(self) -> Self:
        if self.tokenizer is not None and self.tokenizer_source is not None:
            raise complain(
                "'tokenizer' and 'tokenizer_source' exclude each other; keep 'tokenizer'", "tokenizer_source"
            )
        return self

    @property
    def written_dtype(self) -> str | None:
        """What the output is written in; None: as the base has it."""
        return self.out_dtype or self.dtype
