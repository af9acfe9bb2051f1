"""UniPT: a light map of every block's output, guided by the final feature, is blended into it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from pydantic import Field
from torch import Tensor, nn

from ..backbones.backbone import Backbone
from ..backbones.edits import Edit
from ..layers.pooling import Pooling, pool, side_pooling
from ..method import Method, register

EPS = 1e-6
FEW = 16


@register("unipt", category="addition", family="side", paper="2308.14316", year=2024, venue="CVPR")
class UniPT(Method):
    """The frozen feature asks the outputs of all blocks by ReLU attention, and what they answer is added to it.

    g (B, E) the pooled feature, h_l (B, N, D) the embedding and each block's output, m = E / f channels.
    a = W_a ReLU(g) + b, t_l = W_l ReLU(h_l) + b_l; R_l = ReLU(a t_l^T), each row divided by its sum; v_l = R_l t_l +
    the class token of t_l; beta = softmax over l of w (a * mean t_l); y = g + W_up ReLU(sum_l beta_l v_l) + b_up. No
    gradient enters the frozen model. All maps start as nn.Linear does, so step 0 is not the frozen model.

    This is the form of the authors' code for CLIP4Clip, where one feature asks; their codes for other models differ
    (norms on the maps, an identity in R). The feature is pooled behind the final norm. Where there is no class token
    the mean of t_l stands for it, which is ours; the mean runs over all tokens.
    """

    reduction: int = Field(default=4, gt=0)
    """f; 1, 2 or 4 in the code"""

    @property
    def starts_as_identity(self) -> bool:
        return False

    def edits(self, backbone: Backbone) -> Iterator[Edit]:
        read = (backbone.embedding, *backbone.blocks)
        how = side_pooling(backbone.facts.pooling, backbone.facts.prefix_tokens)
        blend = GuidedBlend([place.width for place in read], backbone.facts.width, self.reduction, how)
        yield backbone.outlet.after(blend, reads=read)


class GuidedBlend(nn.Module):
    """(g (B, E), h_0, h_1, ...) -> y (B, E)."""

    dormant = {"confidence.bias": "a shift of all layers leaves the softmax over them as it is"}

    def __init__(self, widths: Sequence[int], width: int, reduction: int, how: Pooling) -> None:
        super().__init__()
        narrow, self.how = max(1, width // reduction), how
        self.ask, self.up = nn.Linear(width, narrow), nn.Linear(narrow, width)
        self.downs = nn.ModuleList(nn.Linear(wide, narrow) for wide in widths)
        self.confidence = nn.Linear(narrow, 1)
        if narrow < FEW:
            why = f"all {narrow} channels may be negative for all images, where the ReLU behind them has no gradient"
            silent = (key for key, _ in self.named_parameters() if key != "up.bias")
            self.dormant = {**dict.fromkeys(silent, why), **self.dormant}

    def forward(self, g: Tensor, *values: Tensor) -> Tensor:
        a = self.ask(g.relu())
        answers, sure = [], []
        for down, h in zip(self.downs, values, strict=True):
            t = down(h.flatten(1, -2).relu())
            share = (t @ a[..., None]).relu()  # (B, N, 1)
            share = share / share.sum(dim=1, keepdim=True).clamp(min=EPS)
            answers.append((share * t).sum(dim=1) + pool(t, self.how))
            sure.append(self.confidence(a * t.mean(dim=1)))
        beta = torch.cat(sure, dim=1).softmax(dim=1)
        out: Tensor = g + self.up((beta[..., None] * torch.stack(answers, dim=1)).sum(dim=1).relu())
        return out
