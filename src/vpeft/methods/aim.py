"""AIM: the frozen attention runs once more over time, and adapters follow time, space and the MLP."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from ..backbones.backbone import Backbone
from ..backbones.blocks import Block
from ..backbones.edits import Edit
from ..backbones.places import Place
from ..backbones.points import Layout, MissingPlace
from ..layers.bottleneck import Bottleneck
from ..layers.drop_path import DropPath
from ..method import Method, register


@register("aim", family="adapter", paper="2302.03024", year=2023, venue="ICLR")
class AIM(Method):
    """Each block's frozen norm and attention are used over time, then over space, each followed by an adapter.

    With A(v) = W_2 GELU(W_1 v + b_1) + b_2, W_1 (D / 4, D): x += DP(A_t(attn(LN1 x_T))), where x_T holds the T tokens
    of one position as a sequence; x += h + A_s(h), h = attn(LN1 x); x += MLP(y) + DP(s A_m(y)), y = LN2 x. A learnt
    embedding of each frame (zeros) joins all tokens of the frame, and the final norm trains. W_2 starts at zero.

    The authors add the embedding before CLIP's first norm; here it is added behind it, where blocks begin. LayerScale,
    which the paper's models lack, does not act on the attention over time. Frames without an embedding of their own
    (another number of frames) get interpolated ones. The paper's Swin is refused: its windows have a fixed size.
    """

    variants = ({"temporal": False},)

    temporal: bool = True
    """attention over time, with its adapter"""
    spatial: bool = True
    """the adapter behind attention over space"""
    joint: bool = True
    """the adapter beside the MLP"""
    ratio: float = Field(default=0.25, gt=0.0)
    """hidden channels of an adapter, as a part of D"""
    scale: float = 0.5
    """s; the authors take 0.5 for Kinetics and 1 for Something-Something"""
    temporal_adapters: Literal[1, 2] = 1
    """2 puts another, with a skip, before the attention over time, as for Something-Something"""
    drop_path: float = Field(default=0.2, ge=0.0, lt=1.0)
    """DP, for each frame"""

    def edits(self, backbone: Backbone) -> Iterator[Edit]:
        backbone.require_time("AIM", single=True)
        assert backbone.inputs.frames is not None
        yield backbone.embedding.after(FrameEmbedding(backbone.inputs.frames, backbone.embedding.width))
        for block in backbone.blocks:
            if self.temporal:
                require_plain_attention(block)
                before = self._adapter(block.dim, residual=True) if self.temporal_adapters == 2 else None
                adapter = self._adapter(block.dim)
                yield block.before(AttentionOverTime(block.norm1, block.attn, adapter, before, self.drop_path))
            if self.spatial:
                yield block.attn.after(self._adapter(block.attn.width, residual=True))
            if self.joint:
                beside = self._adapter(block.mlp.width, scale=self.scale)
                yield block.mlp.parallel(nn.Sequential(beside, DropPath(self.drop_path)))
        if backbone.has_norm and "unfreeze" in backbone.norm.verbs:
            yield backbone.norm.unfreeze()

    def _adapter(self, width: int, *, residual: bool = False, scale: float = 1.0) -> Bottleneck:
        hidden = max(1, int(width * self.ratio))
        layer = Bottleneck(width, hidden, activation="gelu", residual=residual, scale=scale)
        nn.init.trunc_normal_(layer.down.weight, std=0.02)
        return layer


def require_plain_attention(block: Block) -> None:
    """Raise `MissingPlace` unless the block's attention takes sequences of any length, without positions of its own."""
    plain = block.has("attn") and block.has("norm1") and "insert_tokens" in block.verbs
    if plain and block.attn.layout is Layout.TOKENS and not block.rewrites.get("insert_tokens"):
        return
    raise MissingPlace(
        f"AIM runs the attention of {block.name} over time, and it takes no sequence of another length: it has windows,"
        " a bias for each position, or none. AIM(temporal=False) leaves that out."
    )


class FrameEmbedding(nn.Module):
    """x -> x + e[t] for all tokens of frame t: (B * T, N, D) or (B * T, H, W, D); e (T, D) starts at zero."""

    wants_frames = True

    def __init__(self, frames: int, width: int) -> None:
        super().__init__()
        self.embedding = nn.Parameter(torch.zeros(frames, width))

    def forward(self, x: Tensor, *, frames: int) -> Tensor:
        table: Tensor = self.embedding
        if len(table) != frames:
            table = F.interpolate(table.T[None], size=frames, mode="linear", align_corners=False)[0].T
        clips = x.reshape(-1, frames, *x.shape[1:])
        return (clips + table.reshape(frames, *([1] * (x.dim() - 2)), -1)).flatten(0, 1)


class AttentionOverTime(nn.Module):
    """x -> x + DP(A(attn(A_in(norm x)))), where attention sees the T tokens of one position of a clip as a sequence.

    It holds the places of the frozen norm and attention, which stay modules of the backbone.
    """

    wants_frames = True

    def __init__(
        self, norm: Place, attention: Place, adapter: Bottleneck, before: Bottleneck | None, drop_path: float
    ) -> None:
        super().__init__()
        self.norm, self.attention = norm, attention
        self.adapter = adapter
        self.before = before if before is not None else nn.Identity()
        if before is not None:
            reason = "the adapters before and behind the attention start at zero, so it learns from the third step on"
            before.dormant = dict.fromkeys(("down.weight", "down.bias"), reason)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor, *, frames: int) -> Tensor:
        tokens = self.before(self.norm.run(x))
        count, width = tokens.shape[1:]
        clips = tokens.reshape(-1, frames, count, width)
        batch = clips.shape[0]
        over_time = clips.transpose(1, 2).reshape(batch * count, frames, width)
        mixed = self.adapter(self.attention.run(over_time))
        back = mixed.reshape(batch, count, frames, -1).transpose(1, 2).reshape(x.shape)
        out: Tensor = x + self.drop_path(back)
        return out
