"""One frozen block of a plain transformer, or its attention, run on tokens beside the model's own pass."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..backbones.blocks import AttentionSite, Block
from ..backbones.places import Projection
from ..backbones.points import MissingPlace


def run_past_hooks(steps: tuple[nn.Module, ...], x: Tensor) -> Tensor:
    """Run modules in order, in the precision of their weights, past their hooks: those belong to the image tokens."""
    for step in steps:
        own = next(step.parameters(), None)
        x = step.forward(x if own is None or own.dtype == torch.float32 else x.to(own.dtype))
    return x


def norm_of_heads(attn: AttentionSite, name: str) -> nn.Module | None:
    """The module of `q_norm` or `k_norm`, where the attention has one."""
    end = attn.parts[name].exit if attn.has(name) else None
    return None if end is None else end.module


class FrozenAttention:
    """Scaled dot-product attention with the projections of one attention of the backbone.

    It holds the backbone's live modules and is no module itself, so that they are no part of an adapter.

    Raises:
        MissingPlace: the attention is gated or normalised inside, or has other projections than linear ones.
    """

    def __init__(self, attn: AttentionSite) -> None:
        self.projections: dict[str, Projection] = {"q": attn.q, "k": attn.k, "v": attn.v, "proj": attn.proj}
        self.norms = {letter: norm_of_heads(attn, f"{letter}_norm") for letter in "qk"}
        self.heads = attn.core.heads
        linear = all(place.weight.dim() == 2 for place in self.projections.values())
        if attn.has("gate") or attn.has("norm") or not linear:
            raise MissingPlace(
                f"The attention of {attn.name} is gated or normed inside, or its projections are not linear, so other"
                " tokens cannot be run through it."
            )

    def project(self, name: str, x: Tensor) -> Tensor:
        """x (..., D) through one projection: "q", "k", "v" or "proj"."""
        place = self.projections[name]
        weight = place.module.weight  # where an edit changes it, the weight in use
        assert isinstance(weight, Tensor)
        weight = weight if place.rows is None else place.rows.take(weight, 0)
        return F.linear(x.to(weight.dtype), weight, place.bias)

    def split(self, name: str, x: Tensor) -> Tensor:
        """Projected tokens (B, N, h d) -> (B, h, N, d), through the norm of the heads where the model has one."""
        x = x.reshape(*x.shape[:-1], self.heads, -1).transpose(1, 2)
        norm = self.norms.get(name)
        return x if norm is None else norm.forward(x)

    def __call__(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Tokens x (B, N, D) attend to `context` (B, M, D), by default to each other -> (B, N, D)."""
        seen = x if context is None else context
        q, k, v = (self.split(name, self.project(name, given)) for name, given in (("q", x), ("k", seen), ("v", seen)))
        mixed = F.scaled_dot_product_attention(q, k, v)
        return self.project("proj", mixed.transpose(1, 2).flatten(2))


class FrozenBlock:
    """x (B, N, D) -> the same shape: one block of the backbone with its own weights, for tokens without positions.

    Raises:
        MissingPlace: the block attends within windows, pools, or is no plain chain of norm, attention and MLP.
    """

    def __init__(self, block: Block) -> None:
        attn, steps = block.attn, block.attn_branch.steps
        core = attn.core
        assert attn.exit is not None
        if core.per_window or core.reduced or attn.exit.module not in steps or not block.mlp_branch.steps:
            raise MissingPlace(
                f"{block.name} attends within windows, pools its tokens or is no plain chain of norm, attention and"
                " MLP, so other tokens cannot be run through it."
            )
        at = steps.index(attn.exit.module)
        self.before, self.after, self.mlp = steps[:at], steps[at + 1 :], block.mlp_branch.steps
        self.attention = FrozenAttention(attn)

    def __call__(self, x: Tensor) -> Tensor:
        x = x + run_past_hooks(self.after, self.attention(run_past_hooks(self.before, x)))
        return x + self.mlp_branch(x)

    def mlp_branch(self, x: Tensor) -> Tensor:
        """What the MLP branch adds to x (B, N, D)."""
        return run_past_hooks(self.mlp, x)
