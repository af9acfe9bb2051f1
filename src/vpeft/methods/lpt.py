"""LPT: prompts for all classes, and prompts for groups of similar images that keys choose."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from ..backbones.backbone import Backbone
from ..backbones.edits import Edit
from ..backbones.points import MissingPlace
from ..layers.frozen_block import FrozenBlock, run_past_hooks
from ..method import BadField, Method, register

if TYPE_CHECKING:
    from ..injection.tuned_model import TunedModel


@register("lpt", category="addition", family="prompt", paper="2210.01033", year=2023, venue="ICLR")
class LPT(Method):
    """Long-tailed prompt tuning: shared prompts S as VPT-Deep, then in the last L_g blocks group prompts beside them.

    Block i sees [x; S_i], S_i (p, D), and from block L - L_g on [x; S_i; G_i]; the prompts leave behind each block.
    G = the mean over the k chosen of pool[id] (L_g, p, D), id those of the M keys K (M, D) with the largest
    cos(q, K_id); q is the class token that the model with S alone has of the same image, without gradients. The
    penalty is -0.5 times the sum of these k cosines, averaged over the batch: keys learn by it alone.

    stage="shared" trains S; `grouped` then gives the method of the second stage and the tensors it starts from, whose S
    is fixed: stage="groups". "both" trains all at once, for a single run; that is ours. All start N(0, 0.02).

    Not part of this, as they belong to a task: the loss A-GCL, the balanced batches and the cosine classifier with its
    dropout of 0.1 (the head `cosine` is there). q is computed from the blocks themselves, so the backbone must be a
    plain chain of norm, attention and MLP; where it has no class token, q is the mean of its tokens, and a final norm
    of another width is left out.
    """

    prompts: int = Field(default=10, gt=0)
    """p"""
    pool: int = Field(default=20, gt=0)
    """M"""
    chosen: int = Field(default=2, gt=0)
    """k"""
    group_blocks: int | None = Field(default=None, gt=0)
    """L_g; None is half of the blocks (6 of 12)"""
    stage: Literal["shared", "groups", "both"] = "both"
    """what trains: S; keys and pool, with S fixed; or all"""
    pull: float = Field(default=0.5, ge=0.0)
    """weight of the cosines in the loss"""

    @property
    def starts_as_identity(self) -> bool:
        return False

    def edits(self, backbone: Backbone) -> Iterator[Edit]:
        if self.chosen > self.pool:
            raise BadField(f"LPT chooses {self.chosen} of {self.pool} keys: take `chosen` at most as large as `pool`.")
        blocks, depth = backbone.blocks, len(backbone.blocks)
        first = depth if self.stage == "shared" else max(depth - (self.group_blocks or (depth + 1) // 2), 0)
        shared = [
            SharedPrompts(self.prompts, block.dim, self.stage != "groups", block.index - first) for block in blocks
        ]
        found: tuple[Edit, ...] = ()
        for block, layer in zip(blocks, shared, strict=True):
            if block.index == first:
                if backbone.inputs.layout == "tokens":
                    raise MissingPlace("LPT asks its keys by the feature of an image, and this backbone reads texts.")
                chain = [FrozenBlock(later) for later in blocks[first:]]
                norm = backbone.norm.exit if backbone.has_norm and backbone.norm.width == block.dim else None
                groups = GroupPrompts(
                    self, block.dim, block.prefix, chain, shared[first:], None if norm is None else norm.module
                )
                found = (block.input.tap(groups),)
                yield from found
            yield block.insert_tokens(layer, reads=found)

    def penalty(self, tuned: TunedModel) -> Tensor | None:
        if not self.pull:
            return None
        for edit in tuned.adapter().edits:
            if isinstance(edit.layer, GroupPrompts) and edit.layer.cosines is not None:
                cosines, edit.layer.cosines = edit.layer.cosines, None
                return -self.pull * cosines
        return None

    @torch.no_grad()
    def grouped(self, tuned: TunedModel, name: str | None = None) -> tuple[LPT, dict[str, Tensor]]:
        """The method of the second stage, and what it takes over from the first: S and the head.

        Load them over those of a new model: `again.load_adapter_state({**again.adapter_state(), **kept})`.
        """
        if self.stage != "shared":
            raise BadField(f"LPT.grouped goes on from stage='shared', and this one has {self.stage!r}.")
        kept = {key: value.clone() for key, value in tuned.adapter_state(name).items()}
        return self.model_copy(update={"stage": "groups"}), kept


class SharedPrompts(nn.Module):
    """h (B, P + N, D) and perhaps G (B, L_g, p, D) -> S, or S and the block's own part of G, (B, n, D)."""

    tokens: Tensor

    def __init__(self, count: int, width: int, trained: bool, number: int) -> None:
        super().__init__()
        start = nn.init.trunc_normal_(torch.empty(count, width), std=0.02)
        if trained:
            self.tokens = nn.Parameter(start)
        else:
            self.register_buffer("tokens", start)
        self.number = number

    def forward(self, hidden: Tensor, groups: Tensor | None = None) -> Tensor:
        rows = self.tokens.expand(len(hidden), -1, -1)
        return rows if groups is None else torch.cat([rows, groups[:, self.number]], dim=1)


class GroupPrompts(nn.Module):
    """x (B, P + N, D), what enters the first of the L_g blocks -> G (B, L_g, p, D).

    Attributes:
        cosines: the sum over the chosen keys of their cosines with the query, averaged over the batch; of the last pass
            with gradients, until the penalty takes it.
    """

    def __init__(
        self,
        method: LPT,
        width: int,
        prefix: int,
        chain: list[FrozenBlock],
        shared: list[SharedPrompts],
        norm: nn.Module | None,
    ) -> None:
        super().__init__()
        self.keys = nn.Parameter(nn.init.trunc_normal_(torch.empty(method.pool, width), std=0.02))
        pool = torch.empty(method.pool, len(chain), method.prompts, width)
        self.pool = nn.Parameter(nn.init.trunc_normal_(pool, std=0.02))
        self.count, self.prefix = method.chosen, prefix
        # no children: the blocks are the backbone's, and S belongs to the edits that insert it
        self.chain, self.shared, self.norms = tuple(chain), tuple(shared), () if norm is None else (norm,)
        self.cosines: Tensor | None = None
        if not method.pull:
            self.dormant = {"keys": "they learn by the penalty alone, whose weight is zero"}

    @torch.no_grad()
    def query(self, x: Tensor) -> Tensor:
        """(B, D): the class token of the model with S alone."""
        length = x.shape[1]
        for block, prompts in zip(self.chain, self.shared, strict=True):
            x = block(torch.cat([x, prompts(x).to(x.dtype)], dim=1))[:, :length]
        x = run_past_hooks(self.norms, x)
        return x[:, 0] if self.prefix else x.mean(dim=1)

    def forward(self, x: Tensor) -> Tensor:
        query = F.normalize(self.query(x).to(self.keys.dtype), dim=-1)
        cosines, ids = (query @ F.normalize(self.keys, dim=-1).mT).topk(self.count, dim=1)
        if torch.is_grad_enabled() and not torch.compiler.is_exporting():
            self.cosines = cosines.sum() / x.shape[0]
        return self.pool[ids].mean(dim=1)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "cosines": None}  # part of a graph, which no copy has
