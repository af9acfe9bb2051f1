"""Learnt queries that go through frozen blocks with the image tokens, and the fusion of their outputs."""

from __future__ import annotations

import torch
from timm.layers.drop import DropPath
from torch import Tensor, nn
from torch.nn import functional as F

from ..backbones.blocks import Block
from ..backbones.points import MissingPlace
from ..backbones.rows import Rows
from .frozen_block import norm_of_heads, run_past_hooks

EPS = 1e-5  # all norms of SynQT's side path; the backbone's own have 1e-6


class ResidualAdapter(nn.Module):
    """x -> x + drop(W_2 drop(GELU(W_1 x + b_1)) + b_2), W_1 (R, D), W_2 (D, R); starts as PyTorch's linear maps do."""

    def __init__(self, width: int, bottleneck: int, dropout: float) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(width, bottleneck), nn.Linear(bottleneck, width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.dropout(self.fc2(self.dropout(F.gelu(self.fc1(x)))))
        return x + out


class QueryMixer(nn.Module):
    """p (B, t, D) -> p + a Attn(LN p), then + f M(LN p), then dropout.

    Attn has one head, scale D^-0.5, a second norm for queries and one for keys and values, and residual adapters in the
    place of its four projections; M is a residual adapter; a and f are learnt numbers.
    """

    dormant = {"k.fc2.bias": "a shift of all keys leaves the softmax as it is, so its gradient is zero"}

    def __init__(self, width: int, bottleneck: int, inner: int, attn: float, ffn: float, dropout: float) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width, EPS), nn.LayerNorm(width, EPS)
        self.q_norm, self.kv_norm = nn.LayerNorm(width, EPS), nn.LayerNorm(width, EPS)
        self.q, self.k, self.v, self.proj = (ResidualAdapter(width, inner, 0.0) for _ in range(4))
        self.mlp = ResidualAdapter(width, bottleneck, dropout)
        self.attn_scale, self.ffn_scale = nn.Parameter(torch.tensor([attn])), nn.Parameter(torch.tensor([ffn]))
        self.rate, self.dropout = dropout, nn.Dropout(dropout)

    def forward(self, p: Tensor) -> Tensor:
        normed = self.norm1(p)
        q, pair = self.q(self.q_norm(normed)), self.kv_norm(normed)
        rate = self.rate if self.training else 0.0
        mixed = F.scaled_dot_product_attention(q, self.k(pair), self.v(pair), dropout_p=rate)
        p = p + self.attn_scale * self.dropout(self.proj(mixed))
        out: Tensor = self.dropout(p + self.ffn_scale * self.mlp(self.norm2(p)))
        return out


class FrozenPath:
    """One frozen block as queries see it: its own weights, with keys and values from the image tokens.

    Args:
        before, proj, after: what the attention branch runs before the attention, the output projection, and what it
            runs behind the attention (LayerScale, drop path).
        query: the weight and bias of the projection of queries.
        norms: modules for the heads of q and k, where the model has them.
        mlp: what the MLP branch runs.
        heads: number of heads.

    It holds the backbone's live modules and is no module itself, so that they are no part of an adapter.
    """

    def __init__(
        self,
        before: tuple[nn.Module, ...],
        query: tuple[nn.Module, Rows | None],
        norms: tuple[nn.Module | None, nn.Module | None],
        proj: nn.Module,
        after: tuple[nn.Module, ...],
        mlp: tuple[nn.Module, ...],
        heads: int,
    ) -> None:
        self.before, self.query, self.norms, self.proj = before, query, norms, proj
        self.after, self.mlp, self.heads = after, mlp, heads

    def __call__(self, p: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """p (B, t, D), k and v (B, N, D) -> the queries after the block and both of its updates of them."""
        q = run_past_hooks(self.before, p)
        module, rows = self.query
        weight, bias = module.weight, module.bias
        rows = rows or Rows(0, len(weight))  # type: ignore[arg-type]
        q = F.linear(q, rows.take(weight, 0), None if bias is None else rows.take(bias, 0))  # type: ignore[arg-type]
        split = [x.reshape(*x.shape[:2], self.heads, -1).transpose(1, 2) for x in (q, k, v)]
        for i, norm in enumerate(self.norms):
            split[i] = split[i] if norm is None else norm.forward(split[i])
        mixed = F.scaled_dot_product_attention(split[0], split[1], split[2]).transpose(1, 2).flatten(2)
        h = run_past_hooks(self.after, self.proj.forward(mixed))
        change = run_past_hooks(self.mlp, p + h)
        return p + h + change, h, change


def frozen_path(block: Block) -> FrozenPath:
    """Return the path of queries through a block; MissingPlace if its attention is gated or normalised inside."""
    attn, steps = block.attn, block.attn_branch.steps
    assert attn.exit is not None
    if attn.has("gate") or attn.has("norm"):
        raise MissingPlace(
            f"The attention of {block.name} is gated or normed inside, which queries beside it do not know."
        )
    at = steps.index(attn.exit.module)
    return FrozenPath(
        before=steps[:at],
        query=(attn.q.module, attn.q.rows),
        norms=(norm_of_heads(attn, "q_norm"), norm_of_heads(attn, "k_norm")),
        proj=attn.proj.module,
        after=steps[at + 1 :],
        mlp=block.mlp_branch.steps,
        heads=attn.core.heads,
    )


class QueryFusion(nn.Module):
    """Features F (B, n + 1, D), the last output first -> LN(mean_j w_j g(F_j)), (B, D).

    g(f) = f + A(LN f), one A for all; w = [1, tanh(drop(GELU(W g(F_0))))]. Every feature but the first is dropped for a
    sample with the rate `drop_path`.
    """

    def __init__(self, width: int, count: int, bottleneck: int, dropout: float, drop_path: float) -> None:
        super().__init__()
        self.norm, self.out = nn.LayerNorm(width, EPS), nn.LayerNorm(width, EPS)
        self.adapter = ResidualAdapter(width, bottleneck, dropout)
        self.weigh, self.dropout = nn.Linear(width, count), nn.Dropout(dropout)
        self.drop_path = DropPath(drop_path)

    def forward(self, features: Tensor) -> Tensor:
        refined = features + self.adapter(self.norm(features))
        first, others = refined[:, 0], refined[:, 1:]
        weights = torch.tanh(self.dropout(F.gelu(self.weigh(first))))
        kept = self.drop_path(others.flatten(0, 1)).reshape(others.shape)
        total = first + (weights[..., None] * kept).sum(dim=1)
        out: Tensor = self.out(total / features.shape[1])
        return out
