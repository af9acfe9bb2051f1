"""DINOv2's linear evaluation: one linear layer on the features of the last blocks, side by side."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..backbones.features import Features
from ..backbones.points import Layout, MissingPlace
from ..head import BadHead, Head
from .linear import HEAD_STD

if TYPE_CHECKING:
    from ..backbones.backbone import Backbone
    from ..batch import Batch

POOLINGS = ("token", "mean", "both")


class LastKHead(Head):
    """y = W [c_1, ..., c_k] + b, where c_i are pooled features of the last k blocks, each under a LayerNorm.

    What is pooled: "token" takes the class token of each block, "mean" the mean over the tokens (or over the cells of a
    map) of each, "both" the class token of each block and the mean over the tokens of the last.

    Source: the linear evaluation of DINOv2 (Oquab et al., arXiv 2304.07193), whose grid is k in (1, 4) with "token" and
    "both". There each block's output goes through the model's final norm; here through a LayerNorm without scale and
    shift, which the linear layer learns, so that the head reads nothing but `blocks.N`.

    Args:
        widths: channels of the blocks, in their order.
        outputs: numbers for each sample.
        places: names of the blocks.
        pooling: token, mean or both.
    """

    kind = "last_k"
    options = ("k", "pooling")

    def __init__(self, widths: Sequence[int], outputs: int, places: Sequence[str], pooling: str = "mean") -> None:
        super().__init__()
        if pooling not in POOLINGS or len(widths) != len(places) or not places:
            raise BadHead(
                f"The head 'last_k' needs as many widths as places and a pooling of {', '.join(POOLINGS)}, not"
                f" {list(widths)}, {list(places)} and {pooling!r}."
            )
        self.reads = tuple(places)
        self.pooling = pooling
        taken = list(widths) + ([widths[-1]] if pooling == "both" else [])
        self.norms = nn.ModuleList(nn.LayerNorm(width, elementwise_affine=False) for width in taken)
        self.linear = nn.Linear(sum(taken), outputs)
        nn.init.trunc_normal_(self.linear.weight, std=HEAD_STD)
        nn.init.zeros_(self.linear.bias)

    @classmethod
    def on(cls, backbone: Backbone, width: int, outputs: int, /, **options: Any) -> Head:
        """The head on the last `k` blocks (4 by default, or all that there are where `k` is not given).

        `pooling` is by default "both" where the backbone pools by its class token, and "mean" elsewhere.
        """
        rest = dict(options)
        there = [block for block in backbone.blocks if block.exit is not None and block.layout is not Layout.VECTOR]
        asked = rest.pop("k", None)
        if asked is not None and (not isinstance(asked, int) or isinstance(asked, bool) or asked < 1):
            raise BadHead(f"The head 'last_k' takes a whole number of blocks from 1 on as k, not {asked!r}.")
        if not there or (asked or 1) > len(there):
            raise MissingPlace(
                f"The head 'last_k' reads the last {asked or 4} blocks, and {backbone.facts.architecture} has"
                f" {len(there)} that can be read. Give a smaller k, or use a head that reads the pooled feature."
            )
        blocks = there[-(asked or min(4, len(there))) :]
        has_token = all(block.prefix > 0 for block in blocks)
        pooling = rest.pop("pooling", "both" if has_token and backbone.facts.pooling == "token" else "mean")
        if pooling in ("token", "both") and not has_token:
            raise MissingPlace(
                f"{blocks[0].name} of {backbone.facts.architecture} has no class token. Use last_k(pooling=mean)."
            )
        return cls.with_options(
            {**rest, "pooling": pooling},
            widths=[block.width for block in blocks],
            outputs=outputs,
            places=[block.name for block in blocks],
        )

    def forward(self, features: Features, batch: Batch | None = None) -> Any:
        """Tokens (B, N, D) or maps (B, H, W, D) of each block -> (B, outputs)."""
        parts: list[Tensor] = []
        for place in self.reads:
            parts.append(features.tokens(place).mean(1) if self.pooling == "mean" else features[place][:, 0])
        norms = list(self.norms)
        if self.pooling == "both":
            parts.append(features.tokens(self.reads[-1]).mean(1))
        return self.linear(torch.cat([norm(part) for norm, part in zip(norms, parts, strict=True)], dim=-1))
