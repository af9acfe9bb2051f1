"""L2P: each image chooses its prompts from a pool, by what the frozen model sees in it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from ..backbones.backbone import Backbone
from ..backbones.edits import Edit
from ..backbones.points import Layout, MissingPlace
from ..layers.pull import Pull
from ..method import Method, register

if TYPE_CHECKING:
    from ..injection.tuned_model import TunedModel


@register("l2p", category="addition", family="prompt", paper="2112.08654", year=2022, venue="CVPR")
class L2P(Method):
    """A pool of M prompts (l, D) with keys (M, D); the k of the nearest keys join the sequence before block 0.

    q is the frozen model's pooled feature of the image, s_m = cos(q, K_m); the ids are the k largest s. The feature is
    the mean of the k l prompts behind the final norm. The loss gains -pull * mean over images of sum_k s_k. For a
    stream of tasks; in a single training it is a prompt pool.

    Departures: each image chooses for itself, so that a prediction depends on no other image of its batch; the public
    ports let the batch vote, which `selection="batch"` reproduces. Prompts get no position embedding; the port adds the
    class token's, a constant.
    """

    variants = ({"feature": "own"},)

    pool: int = Field(default=10, gt=0)
    """M"""
    length: int = Field(default=5, gt=0)
    """l, tokens of one prompt"""
    top_k: int = Field(default=5, gt=0)
    """k, prompts of one image, at most M"""
    pull: float = Field(default=0.1, ge=0)
    """weight of the part of the loss that draws chosen keys to the images"""
    feature: Literal["prompts", "own"] = "prompts"
    """what the head reads: the mean of the prompts, or the backbone's own pooled feature"""
    selection: Literal["image", "batch"] = "image"
    """image: each image chooses; batch: the k ids that most images of the batch chose serve all of them, as in the
    public ports, so that a prediction depends on the batch"""

    @property
    def starts_as_identity(self) -> bool:
        return False

    def edits(self, backbone: Backbone) -> Iterator[Edit]:
        trunk = backbone.trunk
        if any(block.layout is not Layout.TOKENS or block.width != trunk.width_in for block in backbone.blocks):
            raise MissingPlace(
                f"The trunk of {backbone.facts.architecture} is not one sequence of one width, through which L2P's"
                " prompts travel to be read at its end."
            )
        if any(block.has("attn.core") and block.attn.core.per_window for block in backbone.blocks):
            raise MissingPlace(
                f"The trunk of {backbone.facts.architecture} attends within windows; L2P needs one sequence."
            )
        width = backbone.norm.width if backbone.has_norm else trunk.width_in
        if self.feature == "prompts" and {width, backbone.facts.width} != {trunk.width_in}:
            raise MissingPlace(
                f"The outlet of {backbone.facts.architecture} is no token of the trunk behind a norm, so a mean of"
                " prompts cannot stand for it. Write l2p(feature=own)."
            )
        layer = PromptPool(
            self.pool,
            self.length,
            trunk.width_in,
            backbone.query.width,
            min(self.top_k, self.pool),
            vote=self.selection == "batch",
        )
        inserted = trunk.insert_tokens(layer, reads=(backbone.query,))
        yield inserted
        if self.feature == "prompts":
            end = backbone.norm.exit if backbone.has_norm else None
            yield backbone.outlet.after(PromptMean(None if end is None else end.module), reads=(inserted,))

    def penalty(self, tuned: TunedModel) -> Tensor | None:
        parts = [
            found
            for edit in tuned.adapter().edits
            if isinstance(edit.layer, PromptPool) and (found := edit.layer.pulled.take()) is not None
        ]
        return None if not parts else -self.pull * torch.stack(parts).sum()


class PromptPool(nn.Module):
    """(h, q) -> the prompts (B, k l, D) of the k keys nearest to q (B, Dq) by cosine.

    Args:
        pool, length, width: M, l, D.
        query: Dq.
        top_k: k.
        vote: whether the k ids that most images chose serve the whole batch.
    """

    def __init__(self, pool: int, length: int, width: int, query: int, top_k: int, *, vote: bool) -> None:
        super().__init__()
        self.prompts = nn.Parameter(torch.empty(pool, length, width).uniform_(-1, 1))
        self.keys = nn.Parameter(torch.empty(pool, query).uniform_(-1, 1))
        self.top_k, self.vote = top_k, vote
        self.pulled = Pull()

    def forward(self, hidden: Tensor, query: Tensor) -> Tensor:
        keys = functional.normalize(self.keys, dim=1)
        similar = functional.normalize(query.to(keys.dtype), dim=1) @ keys.T
        ids = similar.topk(self.top_k, dim=1).indices
        if self.vote:
            votes = torch.zeros_like(similar).scatter_(1, ids, 1.0).sum(0)
            ids = votes.topk(self.top_k).indices.expand_as(ids)
        self.pulled.note(similar.gather(1, ids).sum() / query.shape[0])
        return self.prompts[ids].flatten(1, 2)


class PromptMean(nn.Module):
    """(f, prompts (B, n, D) at the end of the trunk) -> the mean of the prompts behind the frozen final norm, (B, D).

    The norm is the backbone's live module, held so that it is no part of the adapter.
    """

    def __init__(self, norm: nn.Module | None) -> None:
        super().__init__()
        self.norm = (norm,)

    def forward(self, feature: Tensor, prompts: Tensor) -> Tensor:
        (norm,) = self.norm
        # past the norm's own hooks: they belong to the sequence
        return (prompts if norm is None else norm.forward(prompts)).mean(1)
