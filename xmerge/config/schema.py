"""The schema of a merge configuration: every key of mergekit's with its meaning, and xmerge's own."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal, Self

from pydantic import (
    BeforeValidator,
    Discriminator,
    Field,
    NonNegativeInt,
    PrivateAttr,
    Tag,
    field_validator,
    model_serializer,
    model_validator,
)

from xmerge.config.settings import Parameters
from xmerge.config.source import ConfigSource
from xmerge.config.strict import Strict, complain, show
from xmerge.errors import nearest

FLOAT_DTYPES = ("bfloat16", "float16", "float32")
STAGE_NAME = re.compile(r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")
"""Of a stage, which is also the name of a folder; one of a model with a slash in it never means a stage."""
TAKEN_NAMES = ("base", "union")
"""Words that mean something else where a model may be named."""


class ModelPath(Strict):
    """A local folder, or a repository on the Hub with an optional branch, tag or commit."""

    path: str = Field(min_length=1)
    """A folder, or `org/name` on the Hub."""
    revision: str | None = Field(default=None, min_length=1)
    """Branch, tag or commit, for a repository on the Hub."""

    def __str__(self) -> str:
        return f"{self.path}@{self.revision}" if self.revision else self.path


def parse_model_path(raw: Any) -> Any:
    """`PATH[@REVISION]` as a mapping; a mapping as it is."""
    if not isinstance(raw, str):
        return raw
    path, at, revision = raw.partition("@")
    if "@" in revision:
        raise complain(f"{show(raw)} has more than one '@'; write it as a mapping with 'path' and 'revision'")
    if at and not revision:
        raise complain(f"{show(raw)} names no revision behind its '@'")
    return {"path": path, "revision": revision or None}


AnyModelPath = Annotated[ModelPath, BeforeValidator(parse_model_path, json_schema_input_type=str | ModelPath)]


class ModelReference(Strict):
    """A model, with an optional LoRA adapter: `PATH[@REVISION][+LORA[@REVISION]]`, or a mapping."""

    model: AnyModelPath
    """A folder, or `org/name[@REVISION]` on the Hub."""
    lora: AnyModelPath | None = None
    """An adapter. xmerge reads the key and refuses it: merge the adapter into its model first."""
    override_architecture: str | None = None
    """A class name that takes the place of `architectures` in the model's config.json."""

    def __str__(self) -> str:
        return f"{self.model}+{self.lora}" if self.lora else str(self.model)


def parse_model_reference(raw: Any) -> Any:
    """The text form of a model reference, or a bare `{path, revision}`, as a full mapping."""
    if isinstance(raw, dict | ModelReference):
        is_bare = isinstance(raw, dict) and "path" in raw and "model" not in raw
        return {"model": raw} if is_bare else raw
    if not isinstance(raw, str):
        hint = "; put a name like that in quotes" if isinstance(raw, bool | int | float) else ""
        raise complain(f"expected a model (a folder, org/name, or a mapping), got {show(raw)}{hint}")
    model, plus, lora = raw.partition("+")
    if "+" in lora:
        raise complain(f"{show(raw)} has more than one '+'; write it as a mapping with 'model' and 'lora'")
    if plus and not lora:
        raise complain(f"{show(raw)} names no adapter behind its '+'")
    return {"model": model, "lora": lora or None}


AnyModel = Annotated[
    ModelReference,
    BeforeValidator(
        parse_model_reference,
        json_schema_input_type=Annotated[str, Field(min_length=1)] | ModelReference | ModelPath,
    ),
]


class InputModel(Strict):
    """One model of a whole-model merge."""

    model: AnyModel
    """`PATH[@REVISION]`, or a mapping."""
    parameters: Parameters = {}
    """The method's parameters for this model."""


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

    @model_serializer
    def _as_written(self) -> tuple[int, int]:
        return self.start, self.end


def parse_layer_range(raw: Any) -> Any:
    """`[start, end]` as a mapping, refusing what is no range."""
    if isinstance(raw, LayerRange):
        return raw
    if not isinstance(raw, list | tuple) or len(raw) != 2 or not all(type(item) is int for item in raw):
        raise complain(f"expected [start, end], two whole numbers, got {show(raw)}")
    start, end = raw
    if start < 0:
        raise complain(f"layers count from 0; {show(raw)} starts below it")
    if end <= start:
        meant = f": did you mean {[end, start]}?" if 0 <= end < start else ""
        raise complain(f"{show(raw)} covers no layer; a range is [start, end) with start below end{meant}")
    return {"start": start, "end": end}


AnyLayerRange = Annotated[
    LayerRange,
    BeforeValidator(
        parse_layer_range,
        json_schema_input_type=Annotated[list[NonNegativeInt], Field(min_length=2, max_length=2)],
    ),
]


class SliceSource(Strict):
    """The layers of one model that go into a slice."""

    model: AnyModel
    """`PATH[@REVISION]`, or a mapping."""
    layer_range: AnyLayerRange
    """`[start, end]`, counted from 0: `[0, 16]` is layers 0 to 15."""
    parameters: Parameters = {}
    """The method's parameters for this model in this slice."""


class OutputSlice(Strict):
    """Consecutive layers of the output, and the layers they are made of."""

    sources: tuple[SliceSource, ...] = Field(json_schema_extra={"minItems": 1})
    """The models that give layers, each with its range; all ranges cover equally many layers."""
    base_model: AnyModel | None = None
    """Takes the place of the configuration's `base_model` in this slice."""
    parameters: Parameters = {}
    """The method's parameters for the tensors of this slice."""
    residual_weight: float | None = Field(default=None, allow_inf_nan=False)
    """Read for mergekit's sake, which never used it either."""

    @model_validator(mode="after")
    def _sources_span_equally_many_layers(self) -> Self:
        # Not `min_length`, which also counts a source that has a fault of its own as missing.
        if not self.sources:
            raise complain("a slice has at least one source", "sources")
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
    """A merge of whole models."""
    slices: tuple[OutputSlice, ...] = ()
    """Layer ranges, from the first layer of the output to the last."""
    parameters: Parameters = {}
    """The method's parameters for the tensors of this part."""

    @model_validator(mode="after")
    def _models_or_slices(self) -> Self:
        if bool(self.models) == bool(self.slices):
            raise complain("give exactly one of 'models' and 'slices'")
        return self


class TokenKind(Strict):
    """An embedding that is zero, or that of a certain token of a certain model."""

    kind: Literal["zero", "model_token"]
    """`zero`, or `model_token` with `model` and one of `token` and `token_id`."""
    model: AnyModel | None = None
    """The model whose token it is."""
    token: str | None = None
    """The token's text."""
    token_id: int | None = Field(default=None, ge=0, strict=True)
    """The token's number."""

    @model_validator(mode="after")
    def _names_one_token(self) -> Self:
        given = [key for key in ("model", "token", "token_id") if getattr(self, key) is not None]
        if given != [] if self.kind == "zero" else given not in (["model", "token"], ["model", "token_id"]):
            raise complain("'zero' stands alone; 'model_token' has 'model' and one of 'token' and 'token_id'", "kind")
        return self


def _tell_kind(raw: Any) -> str:
    return "a kind" if isinstance(raw, TokenKind) or (isinstance(raw, dict) and "kind" in raw) else "a model"


AnyTokenSource = Annotated[
    Annotated[AnyModel, Tag("a model")] | Annotated[TokenKind, Tag("a kind")], Discriminator(_tell_kind)
]


class TokenSource(Strict):
    """Where the embedding of one token comes from."""

    source: AnyTokenSource | None = None
    """A model, `{kind: zero}`, or `{kind: model_token, model: ..., token: ...}`."""
    force: bool = Field(default=False, strict=True)
    """Use it also where the model has an embedding of its own."""


class TokenizerConfig(Strict):
    """How the output's tokenizer is made."""

    source: Literal["base", "union"] | AnyModel = "union"
    """`base`, `union` of all models, or a model."""
    tokens: dict[str, TokenSource] = {}
    """Tokens whose embedding is chosen one by one."""
    pad_to_multiple_of: int | None = Field(default=None, ge=1, strict=True)
    """Round the number of embeddings up to a multiple of this."""


def _list_acknowledged(schema: dict[str, Any]) -> None:
    from xmerge.licences import list_licences

    schema["items"] = {"enum": [licence.id for licence in list_licences() if licence.refuses]}


class PublishTarget(Strict):
    """Where the output is uploaded to when it has been validated."""

    repo: str = Field(min_length=1)
    """`org/name` on the Hub."""
    visibility: Literal["private", "public"] = "private"
    """Who may see a repository that does not exist yet."""
    branch: str | None = Field(default=None, min_length=1)
    """The branch that receives it; default: the repository's main branch."""
    acknowledge: tuple[str, ...] = Field(default=(), json_schema_extra=_list_acknowledged)
    """Licences of the models whose words forbid publishing the merge, and which do not stop it."""

    @field_validator("acknowledge")
    @classmethod
    def _are_known(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        from xmerge.licences import list_licences

        known = [licence.id for licence in list_licences() if licence.refuses]
        for index, name in enumerate(names):
            if name not in known:
                raise complain(f"{show(name)} is no licence that is to be acknowledged; {nearest(name, known)}", index)
        return names


def parse_dtype(raw: Any) -> Any:
    """A dtype's name without mergekit's optional `torch.`, refused unless weights can be written in it."""
    if raw is None:
        return None
    name = raw.removeprefix("torch.") if isinstance(raw, str) else None
    if name not in FLOAT_DTYPES:
        raise complain(f"{show(raw)} is no dtype that a merge can be written in; valid here: {', '.join(FLOAT_DTYPES)}")
    return name


Dtype = Annotated[
    Literal["bfloat16", "float16", "float32"] | None,
    BeforeValidator(
        parse_dtype,
        json_schema_input_type=Literal[
            "bfloat16", "float16", "float32", "torch.bfloat16", "torch.float16", "torch.float32"
        ]
        | None,
    ),
]


def parse_layer_map(raw: Any) -> Any:
    """`exact`, `proportional`, or a list of [base layer, donor layer] pairs."""
    if raw in ("exact", "proportional"):
        return raw
    if not isinstance(raw, list | tuple) or not raw:
        raise complain(f"expected exact, proportional or a list of [base layer, donor layer], got {show(raw)}")
    for index, pair in enumerate(raw):
        if not isinstance(pair, list | tuple) or len(pair) != 2 or not all(type(i) is int and i >= 0 for i in pair):
            raise complain(f"expected [base layer, donor layer], two whole numbers from 0, got {show(pair)}", index)
    bases = [pair[0] for pair in raw]
    for index, layer in enumerate(bases):
        if layer in bases[:index]:
            raise complain(f"base layer {layer} stands twice; one donor layer meets one base layer", index)
    return raw


LayerMap = Annotated[
    Literal["exact", "proportional"] | tuple[tuple[int, int], ...],
    BeforeValidator(
        parse_layer_map,
        json_schema_input_type=Literal["exact", "proportional"]
        | Annotated[list[tuple[NonNegativeInt, NonNegativeInt]], Field(min_length=1)],
    ),
]


def _list_methods(schema: dict[str, Any]) -> None:
    from xmerge.methods import list_methods

    schema["enum"] = [method.name for method in list_methods()]


class MergeConfig(Strict):
    """A merge, as a person describes it."""

    name: str | None = Field(default=None, json_schema_extra={"pattern": STAGE_NAME.pattern})
    """What the other documents of the file call the output, to use it as a model."""
    merge_method: str = Field(json_schema_extra=_list_methods)
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
    """The older way to say `tokenizer: {source: ...}`."""
    tokenizer: TokenizerConfig | None = None
    """How the output's tokenizer is made; default: it is the base's."""
    chat_template: str | None = None
    """A Jinja template for the output; default: the base's."""
    parameters: Parameters = {}
    """The method's parameters for every tensor."""
    architecture: Literal["base"] | AnyModel = "base"
    """Whose architecture, config and tokenizer the output has: `base`, or a model of this configuration."""
    on_mismatch: Literal["error", "base"] = "error"
    """When a donor's tensor does not fit: refuse the plan, or keep the base's tensor and record it."""
    on_nonfinite: Literal["error", "base", "propagate"] = "error"
    """When a tensor that is merged holds NaN or infinity: stop the merge, keep the base's tensor and record it, or
    calculate with them."""
    on_different_heads: Literal["error", "merge"] = "error"
    """When q, k, v or o have equal shapes and heads of other sizes: refuse them, or merge row with row all the same."""
    folds: tuple[Literal["input_norm", "softmax_scale", "residual_scale"], ...] = ()
    """What of a donor goes into its weights before they are merged: the gains of the norms before q, k, v and the
    feed-forward, the scale of its attention scores, the scale of what its layers add."""
    unlisted_layers: Literal["drop", "base"] = "drop"
    """With `slices`: the output has only the listed layers, or the base's other layers stay in place."""
    layer_map: LayerMap = "exact"
    """With `models` of different depth: which donor layer meets which base layer."""
    globals: Parameters = {}
    """Parameters for the tensors outside the layers; default: as mergekit reads them."""
    random_seed: int = Field(default=0, ge=0, lt=2**63, strict=True)
    """For methods that draw random numbers."""
    rng: Literal["counter", "mergekit"] = "counter"
    """How they are drawn: from seed, tensor and donor alone, or one after another over the whole merge as mergekit does
    on a CPU, for the same masks as mergekit's with that seed."""
    publish: PublishTarget | None = None
    """Where the output is uploaded to when it has been validated; default: nowhere."""

    _source: ConfigSource = PrivateAttr(default_factory=ConfigSource)

    @property
    def source(self) -> ConfigSource:
        """The text it was read from, and which line says what."""
        return self._source

    def with_source(self, source: ConfigSource) -> Self:
        """The same configuration, knowing the text it was read from."""
        copy = self.model_copy()
        copy._source = source  # noqa: SLF001 - Its own class.
        return copy

    @field_validator("name")
    @classmethod
    def _is_plain(cls, name: str | None) -> str | None:
        if name is not None and (not STAGE_NAME.fullmatch(name) or name in TAKEN_NAMES):
            raise complain(
                f"{show(name)} cannot be the name of a stage: letters, digits, '.', '_' and '-', up to 64, the first "
                f"a letter or digit, and neither {' nor '.join(TAKEN_NAMES)}"
            )
        return name

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
