"""E2VPT: masked prompts in every block, and prompts that join keys and values."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from ..backbones.backbone import Backbone
from ..backbones.edits import Edit
from ..backbones.points import MissingPlace
from ..layers.prompt import PromptTokens, per_width, xavier_bound
from ..method import BadField, register
from .vpt_deep import VPTDeep

if TYPE_CHECKING:
    from ..injection.tuned_model import TunedModel


@register("e2vpt", category="addition", family="prompt", paper="2307.13770", year=2023, venue="ICCV")
class E2VPT(VPTDeep):
    """VPT-Deep whose tokens pass two masks that all blocks share, and n rows more among keys and values.

    Inserted is drop(Proj(P_i)) * xi[:, c mod S] * rho, P_i (p, D), rho (p,), xi (p, S), c the channel. In each head of
    block i, k becomes [Z_i; k] and v becomes [Z_i; v] with the same Z_i (heads, n, d); queries stay.

    1. Train with `masks`, which start at one. 2. `pruned` scores the masks' entries by their gradient over the training
    images and gives the method whose lowest entries are zero. 3. Train that one from the start (rewinding). Whether
    the segments are ranked within each token, as here, was not verified. A masked token stays among the tokens as
    zeros, as in the code. Weights are not touched by scoring; the code takes optimiser steps meanwhile.

    While it is not zero, rho changes next to nothing: the norm takes the scale of a token away.
    """

    variants = ({"segments": 8}, {"segments": 4})

    tokens: int = Field(default=10, gt=0)
    """p; the paper has 1 to 100 by task"""
    kv_tokens: int = Field(default=5, gt=0)
    """n; 1, 5, 10 or 50"""
    dropout: float = Field(default=0.1, ge=0.0, lt=1.0)
    """on the tokens, for each sample and block, and on Z"""
    masks: bool = True
    """whether rho and xi are there and train; the first stage"""
    segments: int = Field(default=16, gt=0)
    """S; it must divide the width"""
    zero_tokens: tuple[int, ...] = ()
    """tokens that are masked out, from `pruned`"""
    zero_segments: tuple[tuple[int, ...], ...] = ()
    """for each token the segments that are masked out, from `pruned`"""

    def edits(self, backbone: Backbone) -> Iterator[Edit]:
        backbone.require("attn.core")
        if self.masks and (self.zero_tokens or self.zero_segments):
            raise BadField("E2VPT trains its masks or has fixed ones: give masks=False with zero_tokens.")
        bound = xavier_bound(backbone, self.project or backbone.blocks[0].dim)
        projections: dict[int, nn.Linear] = {}
        masked = self.masks or bool(self.zero_tokens or self.zero_segments)
        masks = Masks(self.tokens, self.segments, self.masks) if masked else None
        if masks is not None:
            masks.put_zeros(self.zero_tokens, self.zero_segments)
        for block in backbone.blocks:
            if self.blocks is not None and block.index not in self.blocks:
                continue
            if masked and block.dim % self.segments:
                raise MissingPlace(
                    f"{block.name} has {block.dim} channels, which {self.segments} segments do not divide."
                )
            project = None if self.project is None else per_width(projections, self.project, block.dim)
            layer = MaskedTokens(self.tokens, self.project or block.dim, bound, self.dropout, project, masks)
            yield block.insert_tokens(layer, lifetime="pooled" if self.pooled else "span")
            core = block.attn.core
            yield core.extend(KeyValueTokens(core.heads, core.head_width, self.kv_tokens, self.dropout))

    def pruned(
        self, tuned: TunedModel, batches: Iterable[tuple[Tensor, Tensor]], tokens: float, segments: float
    ) -> E2VPT:
        """The method of the second training: the share `tokens` of the tokens and `segments` of each token's segments
        with the lowest gradients of the cross-entropy (signed, as the code has it) is masked out.

        At least one token and four segments stay. `tuned` was trained with `masks=True` and has its head.

        Raises:
            BadField: it has no trained masks, or there are no batches.
        """
        found = [module for module in tuned.adapter().modules() if isinstance(module, Masks)]
        if not found or not self.masks:
            raise BadField("E2VPT.pruned scores trained masks: train with masks=True first.")
        rho, xi = found[0].rho, found[0].xi
        totals, count = [torch.zeros_like(rho), torch.zeros_like(xi)], 0
        mode = tuned.training
        tuned.eval()
        for images, labels in batches:
            slopes = torch.autograd.grad(F.cross_entropy(tuned(images), labels), (rho, xi))
            totals, count = [total + slope for total, slope in zip(totals, slopes, strict=True)], count + 1
        tuned.train(mode)
        if not count:
            raise BadField("E2VPT.pruned needs labelled images to score the masks.")
        off = min(math.floor(tokens * self.tokens), self.tokens - 1)
        drop = min(math.floor(segments * self.segments), max(self.segments - 4, 0))
        rows = totals[1].argsort(dim=1)[:, :drop].sort(dim=1).values.tolist()
        fixed = {
            "masks": False,
            "zero_tokens": tuple(sorted(totals[0].argsort()[:off].tolist())),
            "zero_segments": tuple(tuple(row) for row in rows) if drop else (),
        }
        return self.model_copy(update=fixed)


class Masks(nn.Module):
    """rho (p,) and xi (p, S): trained, or fixed with some entries zero."""

    rho: Tensor
    xi: Tensor

    def __init__(self, tokens: int, segments: int, trained: bool) -> None:
        super().__init__()
        for name, start in (("rho", torch.ones(tokens)), ("xi", torch.ones(tokens, segments))):
            if trained:
                self.register_parameter(name, nn.Parameter(start))
            else:
                self.register_buffer(name, start, persistent=False)

    @torch.no_grad()
    def put_zeros(self, tokens: tuple[int, ...], segments: tuple[tuple[int, ...], ...]) -> None:
        """Mask out some tokens, and for each token some segments."""
        for token in tokens:
            self.rho[token] = 0.0
        for token, row in enumerate(segments):
            for segment in row:
                self.xi[token, segment] = 0.0

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, p, D) -> the same shape."""
        times = tokens.shape[-1] // self.xi.shape[1]
        return tokens * self.xi.repeat(1, times) * self.rho[:, None]


class MaskedTokens(PromptTokens):
    """The tokens of VPT, with masks that other blocks share."""

    def __init__(
        self, count: int, width: int, bound: float, dropout: float, project: nn.Linear | None, masks: Masks | None
    ) -> None:
        super().__init__(count, width, bound, dropout, project)
        self.masks = masks

    def rows(self, tokens: Tensor, batch: int) -> Tensor:
        made = super().rows(tokens, batch)
        return made if self.masks is None else self.masks(made)


class KeyValueTokens(nn.Module):
    """k, v (B, h, N, d) -> [Z; k], [Z; v] with one Z (h, n, d), Kaiming-uniform with fan in n d; q does not change."""

    def __init__(self, heads: int, head_width: int, count: int, dropout: float) -> None:
        super().__init__()
        self.Z = nn.Parameter(nn.init.kaiming_uniform_(torch.empty(heads, count, head_width)))
        self.dropout = nn.Dropout(dropout)

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        rows = self.dropout(self.Z.to(k.dtype).expand(k.shape[0], -1, -1, -1))
        return q, torch.cat([rows, k], dim=2), torch.cat([rows, v], dim=2)
