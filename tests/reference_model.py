"""A language model computed from nothing but what xmerge says of it: roles, layouts, axes and traits.

It is written to be checked by eye, and to be compared with the program that a checkpoint was made for. A routed
feed-forward is computed where the router is a softmax over all experts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from xmerge.architecture import ResolvedModel, RolePart
from xmerge.architecture.traits import Rope, Traits

ACTIVATIONS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "silu": functional.silu,
    "gelu": functional.gelu,
    "gelu_new": lambda x: functional.gelu(x, approximate="tanh"),
    "gelu_pytorch_tanh": lambda x: functional.gelu(x, approximate="tanh"),
}


def read_part(weight: Tensor, part: RolePart) -> tuple[Tensor, list[str]]:
    """The numbers of one role, with a dimension for each axis, and the names of the axes."""
    counts, strides = [count for _, count, _ in part.loops], [stride for _, _, stride in part.loops]
    return torch.as_strided(weight.contiguous(), counts, strides, part.offset), [axis for axis, _, _ in part.loops]


@dataclass(frozen=True)
class ReferenceModel:
    """A model, with its weights by name."""

    model: ResolvedModel
    weights: Mapping[str, Tensor]

    @property
    def traits(self) -> Traits:
        """What no shape shows."""
        assert self.model.traits is not None
        return self.model.traits

    def compute(self, tokens: Tensor) -> Tensor:
        """The logits (tokens, vocab) of one text."""
        x = self.get(None, "token_embd", "vocab", "hidden")[tokens] * self.traits.tell("embedding_scale")
        if self.has(None, "position_embd"):
            x = x + self.get(None, "position_embd", "positions", "hidden")[: len(tokens)]
        for layer in range(self.model.layers):
            x = self.compute_layer(layer, x)
        head = "token_embd" if self.model.tied else "output"
        logits = self.norm(x, None, "output_norm") @ self.get(None, head, "vocab", "hidden").T
        logits = (logits + self.get_bias(None, "output", "vocab")) * self.traits.tell("logit_scale")
        return cap(logits, self.traits.tell("output_softcap"))

    def compute_layer(self, layer: int, x: Tensor) -> Tensor:
        """What a layer makes of (tokens, hidden)."""
        scale: float = self.traits.tell("residual_scale")
        normed = self.norm(x, layer, "attn_norm")
        added = scale * self.norm(self.attend(layer, normed), layer, "post_attention_norm")
        read = x if self.traits.tell("block") == "parallel" else x + added
        if self.has(layer, "ffn_norm") or self.traits.tell("block") == "sequential":
            normed = self.norm(read, layer, "ffn_norm")
        return x + added + scale * self.norm(self.feed_forward(layer, normed), layer, "post_ffw_norm")

    def attend(self, layer: int, x: Tensor) -> Tensor:
        """What attention gives for (tokens, hidden)."""
        q, k, v = (self.project(layer, f"attn_{each}", x) for each in "qkv")
        q, k = self.norm_heads(q, layer, "attn_q_norm"), self.norm_heads(k, layer, "attn_k_norm")
        rope = self.traits.rope_of(layer)
        if rope is not None:
            assert self.model.family is not None
            q, k = (rotate(each, rope, self.model.family.rope) for each in (q, k))
        if self.traits.tell_head_norm(layer) != "none":
            q, k = (normalize(each, self.traits.tell("norm_eps")) for each in (q, k))
        temperature = self.traits.temperature_of(layer)
        if temperature is not None:
            places = (torch.arange(len(x)) + temperature.start) // temperature.length
            q = q * (1 + temperature.growth * torch.log1p(places))[:, None, None]
        k, v = (each.repeat_interleave(q.shape[1] // each.shape[1], dim=1) for each in (k, v))
        scores = torch.einsum("ihd,jhd->hij", q, k) * self.traits.tell("softmax_scale")
        scores = cap(scores, self.traits.tell("attention_softcap"))
        scores = scores.masked_fill(~self.list_seen(layer, len(x)), -torch.inf)
        if self.has(layer, "attn_sinks"):
            sinks = self.get(layer, "attn_sinks", "heads")[:, None, None].expand(-1, len(x), 1)
            scores = torch.cat([scores, sinks], dim=-1)
        mixed = torch.einsum("hij,jhd->ihd", scores.softmax(-1)[..., : len(x)], v)
        output = self.get(layer, "attn_output", "hidden", "heads", "head_dim")
        return torch.einsum("ihd,ohd->io", mixed, output) + self.get_bias(layer, "attn_output", "hidden")

    def list_seen(self, layer: int, length: int) -> Tensor:
        """Whether a token (row) sees a token (column)."""
        place, window = torch.arange(length), self.traits.window_of(layer)
        seen = place[:, None] >= place[None, :]
        if self.traits.tell("looks") == "both ways":
            apart = (place[:, None] - place[None, :]).abs()
            return apart >= 0 if window is None else apart <= window // 2
        if window is None:
            return seen
        if "chunked" in str(self.traits.kind_of(layer)):
            return seen & (place[:, None] // window == place[None, :] // window)
        return seen & (place[:, None] - place[None, :] < window)

    def project(self, layer: int, role: str, x: Tensor) -> Tensor:
        """Queries, keys or values (tokens, heads, head_dim)."""
        weight = self.get(layer, role, "heads", "head_dim", "hidden")
        return torch.einsum("ti,hdi->thd", x, weight) + self.get_bias(layer, role, "heads", "head_dim")

    def feed_forward(self, layer: int, x: Tensor) -> Tensor:
        """What the feed-forward gives for (tokens, hidden), with the experts that are asked for every token."""
        if self.has(layer, "ffn_in"):
            inner = ACTIVATIONS[self.traits.tell("activation")](self.multiply(layer, "ffn_in", x, "ffn", "hidden"))
            return self.multiply(layer, "ffn_out", inner, "hidden", "ffn")
        if self.has(layer, "ffn_gate"):
            return self.gate(layer, "", "ffn", x)
        router = self.get(layer, "ffn_gate_inp", "experts", "hidden")
        shares = (x @ router.T + self.get_bias(layer, "ffn_gate_inp", "experts")).softmax(-1)
        given = torch.einsum("te,teh->th", shares, self.gate(layer, "_exps", "expert_ffn", x))
        if not self.has(layer, "ffn_gate_shexp"):
            return given
        always = torch.sigmoid(x @ self.get(layer, "ffn_gate_inp_shexp", "hidden"))
        return given + always[:, None] * self.gate(layer, "_shexp", "shared_ffn", x)

    def gate(self, layer: int, kind: str, inner: str, x: Tensor) -> Tensor:
        """A gated feed-forward; for experts (tokens, experts, hidden)."""
        experts = ("experts",) if kind == "_exps" else ()
        gate, up = (self.multiply(layer, f"ffn_{each}{kind}", x, *experts, inner, "hidden") for each in ("gate", "up"))
        if self.traits.tell("activation") == "clamped swiglu":
            gate, up = gate.clamp(max=7.0), up.clamp(-7.0, 7.0) + 1
            between = gate * torch.sigmoid(1.702 * gate) * up
        else:
            between = ACTIVATIONS[self.traits.tell("activation")](gate) * up
        return self.multiply(layer, f"ffn_down{kind}", between, *experts, "hidden", inner)

    def multiply(self, layer: int, role: str, x: Tensor, *axes: str) -> Tensor:
        """A matrix (..., out, in) times (tokens, ..., in), with its bias."""
        product = torch.einsum("...oi,t...i->t...o", self.get(layer, role, *axes), x.reshape(_fit(x, len(axes))))
        return product + self.get_bias(layer, role, *axes[:-1])

    def norm(self, x: Tensor, layer: int | None, role: str) -> Tensor:
        """(..., hidden) normed, or as it is where the model has no such norm."""
        if not self.has(layer, role):
            return x
        return self.apply_norm(x, self.get(layer, role, "hidden"), self.get_bias(layer, role, "hidden"))

    def norm_heads(self, x: Tensor, layer: int, role: str) -> Tensor:
        """(tokens, heads, head_dim) normed head by head or over all heads, as the norm's own shape says."""
        if not self.has(layer, role):
            return x
        held = self.model.by_role[layer, role]
        loops, shape = held[0][1].loops, held[0][1].shape
        if len(held) == 1 and len(loops) == 2 and len(shape) == 1:
            weight = self.get(layer, role, "heads", "head_dim").flatten()
            return self.apply_norm(x.flatten(1), weight, torch.zeros(())).view(x.shape)
        axes = ("heads", "head_dim") if len(held) > 1 or len(loops) == 2 else ("head_dim",)
        return self.apply_norm(x, self.get(layer, role, *axes), self.get_bias(layer, role, *axes))

    def apply_norm(self, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        """The family's kind of norm."""
        assert self.model.family is not None
        centered = x - x.mean(-1, keepdim=True) if self.model.family.norm == "layer" else x
        gain = weight + 1 if self.model.family.norm_gain == "1+w" else weight
        return normalize(centered, self.traits.tell("norm_eps")) * gain + bias

    def has(self, layer: int | None, role: str) -> bool:
        """Whether the model has something that does this."""
        return (layer, role) in self.model.by_role

    def get_bias(self, layer: int | None, role: str, *axes: str) -> Tensor:
        """The bias of a role, or a zero."""
        return self.get(layer, f"{role}_bias", *axes) if self.has(layer, f"{role}_bias") else torch.zeros(())

    def get(self, layer: int | None, role: str, *axes: str) -> Tensor:
        """The numbers of a role with these axes, in this order, wherever and however they are stored."""
        held = self.model.by_role[layer, role]
        read = [read_part(self.weights[spec.name], part) for spec, part in held]
        numbers, names = read[0]
        if len(read) > 1:
            numbers, names = torch.stack([each for each, _ in read]), [held[0][1].along, *names]
        if "group" in names:
            groups, within = names.index("kv_heads"), names.index("group")
            numbers = numbers.movedim((groups, within), (0, 1)).flatten(0, 1)
            names = ["heads", *(name for name in names if name not in ("kv_heads", "group"))]
        names = ["heads" if name == "kv_heads" else name for name in names]
        assert sorted(names) == sorted(axes), (role, names)
        return numbers.permute([names.index(axis) for axis in axes])


def normalize(x: Tensor, eps: float) -> Tensor:
    """Divided by the root mean square of the last dimension."""
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps)


def cap(x: Tensor, most: float | str | None) -> Tensor:
    """Kept softly between -most and most."""
    return most * torch.tanh(x / most) if isinstance(most, int | float) else x


def rotate(x: Tensor, rope: Rope, pairs: str) -> Tensor:
    """(tokens, heads, head_dim) turned by its place, pair by pair."""
    assert rope.kind == "default", rope
    half = rope.rotary // 2
    angles = torch.arange(len(x))[:, None] * rope.theta ** (-torch.arange(half) / half)[None, :]
    cos, sin = angles.cos()[:, None, :], angles.sin()[:, None, :]
    turned, rest = x[..., : rope.rotary], x[..., rope.rotary :]
    a, b = (turned[..., :half], turned[..., half:]) if pairs == "half" else (turned[..., ::2], turned[..., 1::2])
    a, b = a * cos - b * sin, b * cos + a * sin
    turned = torch.cat([a, b], dim=-1) if pairs == "half" else torch.stack([a, b], dim=-1).flatten(-2)
    return torch.cat([turned, rest], dim=-1)


def _fit(x: Tensor, axes: int) -> tuple[int, ...]:
    """The shape of (tokens, in) as (tokens, 1, in) where there are experts."""
    return (len(x), 1, x.shape[-1]) if axes == 3 and x.dim() == 2 else tuple(x.shape)
