"""In what tensors of two models differ beyond their shapes, and what that means for putting one in the other's place.

The classes speak of the function of a tensor in its slot. None of them says that two models share a basis, which models
trained apart do not.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator
from typing import Any, Literal, get_args

from xmerge.architecture.models import ResolvedModel
from xmerge.architecture.traits import ROPE_KINDS, Rope, Traits
from xmerge.values import Value

Class = Literal["A", "B", "C", "D", "E"]
"""`A` exact; `B` exact after invertible steps; `C` fits, means something else; `D` needs a bridge between shapes;
`E` refused: no counterpart."""

CLASS_NAMES = {"A": "exact", "B": "convertible", "C": "approximate", "D": "needs a bridge", "E": "refused"}

ATTENTION = ("attn_q", "attn_k", "attn_v", "attn_output")
ROTATED = ("attn_q", "attn_k")
HEAD_NORMS = ("attn_q_norm", "attn_k_norm")
NORMS_OF_BLOCKS = ("attn_norm", "post_attention_norm", "ffn_norm", "post_ffw_norm")
LATENT = ("attn_q_a", "attn_q_b", "attn_q_mla", "attn_kv_a", "attn_kv_b", "attn_output_mla")
"""The matrices of attention through a latent vector."""
LATENT_ROTATED = ("attn_q_b", "attn_q_mla", "attn_kv_a")
FEED_FORWARD = ("ffn_gate", "ffn_up", "ffn_down", "ffn_in", "ffn_out")
READS_INPUT = {
    **dict.fromkeys(("attn_q", "attn_k", "attn_v", "attn_q_a", "attn_q_mla", "attn_kv_a"), "attn_norm"),
    **dict.fromkeys(("ffn_gate", "ffn_up", "ffn_in"), "ffn_norm"),
}
"""The matrices that read what a norm gives, with that norm's role."""
WRITES_OUTPUT = {
    **dict.fromkeys(("attn_output", "attn_output_mla"), "post_attention_norm"),
    **dict.fromkeys(("ffn_down", "ffn_out"), "post_ffw_norm"),
}
"""The matrices whose output is added to the residual stream, with the norm that may come between."""

ROUTER = "ffn_gate_inp"
SOFTMAX_SCALE, RESIDUAL_SCALE, INPUT_NORM = "softmax_scale", "residual_scale", "input_norm"
_SAME_ACTIVATION = {
    "swish": "silu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
}


class Difference(Value):
    """One way in which a donor's tensor is not the target's, in words."""

    grade: Class
    """What it makes of the tensor; `A`: worth knowing, and without consequence."""
    reason: str


def worst_class(classes: Iterable[Class]) -> Class:
    """The class of what has all of these."""
    return max(classes, default="A")


def find_differences(
    target: ResolvedModel,
    donor: ResolvedModel,
    role: str,
    layers: tuple[int, int] | None,
    folds: Collection[str] = (),
) -> tuple[Difference, ...]:
    """In what a donor's tensor differs from the target's of the same role and shape.

    Args:
        target: The model that receives.
        donor: The model that gives.
        role: What the tensor does.
        layers: The target's layer and the donor's; None outside the layers.
        folds: The folds that the configuration names.
    """
    ours, theirs = target.traits, donor.traits
    if ours is None or theirs is None or target is donor:
        return ()
    judge = _Judge(target, donor, ours, theirs, folds)
    return tuple(dict.fromkeys(judge.compare(role, layers)))


class _Judge:
    """Compares two models role by role."""

    def __init__(
        self, target: ResolvedModel, donor: ResolvedModel, ours: Traits, theirs: Traits, folds: Collection[str]
    ) -> None:
        self.target, self.donor, self.ours, self.theirs, self.folds = target, donor, ours, theirs, folds

    def compare(self, role: str, layers: tuple[int, int] | None) -> Iterator[Difference]:
        weight = role.removesuffix("_bias")
        kind = weight.removesuffix("_exps").removesuffix("_shexp")
        if weight.endswith("_norm"):
            yield from self._compare_norms(weight, layers)
        if weight in ("token_embd", "output"):
            yield from self._compare_vocabularies(weight)
        if weight in (*ROTATED, *LATENT_ROTATED):
            assert layers is not None
            yield from self._compare_scores(weight, layers)
        if weight in ("attn_q", "attn_output"):
            yield from self._compare_groups()
        if kind in FEED_FORWARD:
            yield from self._compare_activations()
        yield from self._compare_experts(weight)
        if weight in (*ATTENTION, *LATENT) or kind in FEED_FORWARD:
            yield from self._compare_blocks()
            yield from self._compare_inputs(kind)
            yield from self._compare_outputs(kind)
        if weight == role:
            yield from self._compare_biases(role)

    def _compare_blocks(self) -> Iterator[Difference]:
        yield from self._compare_trait("block", "attention and feed-forward of a layer are")

    def _compare_scores(self, weight: str, layers: tuple[int, int]) -> Iterator[Difference]:
        """Everything between queries and keys and what they weigh."""
        if weight in ROTATED:
            yield from self._compare_head_norms(weight)
            yield from self._compare_told("before they meet, q and k also go through", Traits.tell_head_norm, layers)
        yield from self._compare_rotation(layers)
        yield from self._compare_trait("positions", "positions are also told by")
        yield from self._compare_told("the layer sees", Traits.tell_sight, layers)
        yield from self._compare_trait("looks", "a token looks")
        yield from self._compare_told("attention scores grow with the position", _tell_temperature, layers)
        yield from self._compare_trait("attention_softcap", "attention scores are capped at")
        yield from self._compare_sinks()
        if weight == "attn_q":
            yield from self._compare_scale(SOFTMAX_SCALE, "attention scores are multiplied by")
        if weight in ("attn_q_b", "attn_q_mla"):
            yield from self._compare_trait(SOFTMAX_SCALE, "attention scores are multiplied by")

    def _compare_norms(self, weight: str, layers: tuple[int, int] | None) -> Iterator[Difference]:
        ours, theirs = self.ours.family.norm, self.theirs.family.norm
        if ours != theirs:
            yield self._differ("C", "a norm is", *(_NORMS[each] for each in (ours, theirs)))
        ours, theirs = self.ours.tell("norm_eps"), self.theirs.tell("norm_eps")
        if ours != theirs:
            yield self._differ("A", "the epsilon of norms is", _show(ours), _show(theirs))
        if weight in NORMS_OF_BLOCKS:
            yield from self._compare_blocks()
        # A gain of queries and keys is one for each speed of rotation, and has learned the scale of scores.
        if weight in HEAD_NORMS:
            assert layers is not None
            yield from self._compare_rotation(layers)
        if weight == "attn_q_norm":
            yield from self._compare_trait(SOFTMAX_SCALE, "attention scores are multiplied by")

    def _compare_vocabularies(self, role: str) -> Iterator[Difference]:
        if self.ours.family.family != self.theirs.family.family:
            yield Difference(
                grade="C",
                reason=f"its rows are tokens, which {self.target.label} and {self.donor.label} may number differently",
            )
        if role == "token_embd":
            yield from self._compare_trait("embedding_scale", "embeddings are multiplied by")
            if self.target.tied and not self.donor.tied:
                told = (
                    f"{self.target.label} also computes its logits with it, {self.donor.label} with a matrix of its "
                    "own, which is dropped: merging it changes both ends of the model"
                )
                yield Difference(grade="C", reason=told)
        if role == "output" or self.target.tied:
            yield from self._compare_trait("logit_scale", "logits are multiplied by")
            yield from self._compare_trait("output_softcap", "logits are capped at")
        if role == "output" and self.donor.tied and not self.target.tied:
            told = f"{self.donor.label} has no output matrix of its own; its embedding is taken"
            yield Difference(grade="A", reason=told)

    def _compare_head_norms(self, role: str) -> Iterator[Difference]:
        ours, theirs = (_scope_of_norm(model, role) for model in (self.target, self.donor))
        if ours == theirs:
            return
        if theirs is None:
            yield Difference(
                grade="C",
                reason=f"{self.target.label} normalizes {ours} and {self.donor.label} does not: its q and k are "
                "rescaled",
            )
        elif ours is None:
            yield Difference(
                grade="C",
                reason=f"{self.donor.label} normalizes {theirs} and {self.target.label} does not: its q and k lose "
                f"their scale. Measured, no formula makes up for that; {self._tell_way_around()} avoids it",
            )
        else:
            yield self._differ("C", "what is normalized of q and k is", ours, theirs)

    def _tell_way_around(self) -> str:
        filters = [self.target.filter_of(role) for role in ("attn_v", "attn_output")]
        if None in filters:
            return "leaving the tensor with q and k to the base"
        return f"filtering to '{filters[0]}' and '{filters[1]}'"

    def _compare_rotation(self, layers: tuple[int, int]) -> Iterator[Difference]:
        ours, theirs = self.ours.rope_of(layers[0]), self.theirs.rope_of(layers[1])
        if ours == theirs:
            return
        pairs = ((self.target.label, ours), (self.donor.label, theirs))
        unknown = next(((label, rope.kind) for label, rope in pairs if rope and rope.kind not in ROPE_KINDS), None)
        if unknown is not None:
            yield Difference(
                grade="E",
                reason=f"{unknown[0]}/config.json has the rope type '{unknown[1]}', and what it does to q and k is "
                f"unknown; known are {', '.join(sorted(ROPE_KINDS))}",
            )
        elif ours is None or theirs is None:
            yield self._differ("C", "positions turn q and k", _tell_rope(ours), _tell_rope(theirs))
        else:
            if ours.rotary != theirs.rotary:
                shares = [f"{rope.rotary} of {self.target.axes['head_dim']} numbers" for rope in (ours, theirs)]
                yield self._differ("C", "positions turn of each head", *shares)
            if (ours.theta, ours.kind, ours.scaling) != (theirs.theta, theirs.kind, theirs.scaling):
                speeds = _tell_apart(ours, theirs)
                what = "positions turn q and k at other speeds, which no weights make up for:"
                yield self._differ("C", what, *speeds)

    def _compare_told(
        self, what: str, tell: Callable[[Traits, int], str], layers: tuple[int, int]
    ) -> Iterator[Difference]:
        """What may be otherwise in every layer."""
        ours, theirs = tell(self.ours, layers[0]), tell(self.theirs, layers[1])
        if ours != theirs:
            yield self._differ("C", what, ours, theirs)

    def _compare_groups(self) -> Iterator[Difference]:
        ours, theirs = (model.axes.get("kv_heads", 1) for model in (self.target, self.donor))
        if ours != theirs:
            yield self._differ("C", "query heads share key and value heads:", f"{ours} of them", f"{theirs} of them")

    def _compare_activations(self) -> Iterator[Difference]:
        ours, theirs = (str(each.tell("activation")) for each in (self.ours, self.theirs))
        if _SAME_ACTIVATION.get(ours, ours) != _SAME_ACTIVATION.get(theirs, theirs):
            yield self._differ("C", "the activation is", ours, theirs)

    def _compare_experts(self, weight: str) -> Iterator[Difference]:
        if weight.endswith("_shexp"):
            yield from self._compare_shared_gates()
        if not weight.endswith("_exps") and weight != ROUTER:
            return
        if self.ours.family.family != self.theirs.family.family:
            told = f"{self.target.label} and {self.donor.label} number their experts independently of each other"
            yield Difference(grade="C", reason=told)
        yield from self._compare_trait("experts_used", "of its experts each token uses")
        yield from self._compare_trait("routing", "experts are weighed by")
        yield from self._compare_trait("routed_scale", "what experts give is multiplied by")

    def _compare_shared_gates(self) -> Iterator[Difference]:
        ours, theirs = ("ffn_gate_inp_shexp" in model.roles for model in (self.target, self.donor))
        if ours != theirs:
            has, lacks = (self.target, self.donor) if ours else (self.donor, self.target)
            told = f"{has.label} weighs its shared expert by a gate of its own and {lacks.label} does not"
            yield Difference(grade="C", reason=told)

    def _compare_sinks(self) -> Iterator[Difference]:
        ours, theirs = ("attn_sinks" in model.roles for model in (self.target, self.donor))
        if ours != theirs:
            has, lacks = (self.target, self.donor) if ours else (self.donor, self.target)
            told = f"{has.label} lets a head attend to nothing (attn_sinks) and {lacks.label} does not"
            yield Difference(grade="C", reason=told)

    def _compare_inputs(self, kind: str) -> Iterator[Difference]:
        """Whether a matrix reads the same kind of normed input."""
        if kind not in READS_INPUT:
            return
        told = []
        for model, traits in ((self.target, self.ours), (self.donor, self.theirs)):
            norm = find_input_norm(model, kind)
            told.append(_NORMS[traits.family.norm] if norm else "not normed")
        if told[0] != told[1]:
            yield self._differ("C", "what it reads is", *told)

    def _compare_outputs(self, kind: str) -> Iterator[Difference]:
        if kind not in WRITES_OUTPUT:
            return
        told = [
            "normed" if WRITES_OUTPUT[kind] in model.roles else "added as it is" for model in (self.target, self.donor)
        ]
        if told[0] != told[1]:
            yield self._differ("C", "what it gives is", *told)
        yield from self._compare_scale(RESIDUAL_SCALE, "what it gives is multiplied by")

    def _compare_biases(self, role: str) -> Iterator[Difference]:
        ours, theirs = (f"{role}_bias" in model.roles for model in (self.target, self.donor))
        if ours != theirs:
            has, lacks = (self.target, self.donor) if ours else (self.donor, self.target)
            lost = "" if ours else f"; {self.donor.label}'s is dropped"
            yield Difference(grade="C", reason=f"{has.label} adds a bias and {lacks.label} does not{lost}")

    def _compare_scale(self, fold: str, what: str) -> Iterator[Difference]:
        ours, theirs = self.ours.tell(fold), self.theirs.tell(fold)
        if ours == theirs:
            return
        if is_undone(self.target, fold):
            yield self._differ("C", what, _show(ours), _show(theirs))
        elif fold in self.folds:
            yield Difference(grade="B", reason=f"{what} {_show(theirs)} in {self.donor.label}: folded into the weights")
        else:
            yield self._differ("C", what, _show(ours), _show(theirs), f" ('folds: [{fold}]' makes up for it)")

    def _compare_trait(self, trait: str, what: str) -> Iterator[Difference]:
        ours, theirs = self.ours.tell(trait), self.theirs.tell(trait)
        if ours != theirs:
            yield self._differ("C", what, _show(ours), _show(theirs))

    def _differ(self, grade: Class, what: str, ours: str, theirs: str, more: str = "") -> Difference:
        told = [f"{each} in {model.label}" for each, model in ((ours, self.target), (theirs, self.donor))]
        without = [model.label for each, model in ((ours, self.target), (theirs, self.donor)) if each == "none"]
        if without:
            told = [*(each for each in told if not each.startswith("none in ")), f"not in {without[0]}"]
        reason = f"{what} {', '.join(told)}{more}"
        return Difference(grade=grade, reason=reason)


_NORMS = {"rms": "an RMS norm", "layer": "a LayerNorm (which also takes away the mean)"}


def is_undone(target: ResolvedModel, fold: str) -> bool:
    """Whether a norm of the target's takes away again what a fold would work into the weights."""
    if fold == SOFTMAX_SCALE:
        return "attn_q_norm" in target.roles
    return fold == RESIDUAL_SCALE and bool({"post_attention_norm", "post_ffw_norm"} & target.roles)


def find_input_norm(model: ResolvedModel, kind: str) -> str | None:
    """The role of the norm whose output a matrix reads: in a parallel block, one norm may serve both."""
    own = READS_INPUT[kind]
    if own in model.roles:
        return own
    parallel = model.traits is not None and model.traits.tell("block") == "parallel"
    return "attn_norm" if parallel and "attn_norm" in model.roles else None


def _scope_of_norm(model: ResolvedModel, role: str) -> str | None:
    """What a norm on queries or keys covers, and of what kind it is."""
    held = model.by_role.get((0, f"{role}_norm"))
    if held is None or model.family is None:
        return None
    part = held[0][1]
    # A weight for each head is stored as [heads, head_dim]; one row of them all is a norm over all heads.
    axes = [axis for axis, _, _ in part.loops]
    scope = "queries and keys over all heads" if len(part.shape) == 1 and len(axes) > 1 else "every query and key head"
    return scope if model.family.norm == "rms" else f"{scope}, taking away the mean"


def _tell_rope(rope: Rope | None) -> str:
    return "not at all" if rope is None else f"by {rope}"


def _tell_temperature(traits: Traits, layer: int) -> str:
    temperature = traits.temperature_of(layer)
    return "not at all" if temperature is None else str(temperature)


def _tell_apart(ours: Rope, theirs: Rope) -> tuple[str, str]:
    told = str(ours), str(theirs)
    if told[0] != told[1]:
        return told
    # The same in short, so what differs is in the rest.
    apart = [sorted(set(a.scaling) - set(b.scaling)) for a, b in ((ours, theirs), (theirs, ours))]
    ours_told, theirs_told = (", ".join(f"{key} {value}" for key, value in each) or "no more" for each in apart)
    return ours_told, theirs_told


def _show(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, int | float) else str(value)


assert tuple(CLASS_NAMES) == get_args(Class)
