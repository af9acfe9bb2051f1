"""`torch.nn.MultiheadAttention` as places: its joint weight lives in the attention itself, and nothing calls it.

torch hands `in_proj_weight` and `out_proj.weight` to a function, so a hook on either never fires, and in eval mode it
may take a fused kernel for the whole attention. While an edit is there, `EditedMultihead` stands in: it calls an
`InProjection` for q, k and v and `out_proj` as a module. With no adapter on, it steps aside for torch's own forward.
"""

from __future__ import annotations

from collections.abc import Iterator, MutableMapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

from .blocks import AttentionSite
from .builders import Where, attention_core, projection, site
from .describe import UnknownBackbone
from .places import Place
from .points import Point, StandIn
from .rewrites import EDITED


class Borrowed(MutableMapping[str, nn.Parameter | None]):
    """The `_parameters` of a module that has none of its own: each name is read and written where it really lives."""

    def __init__(self, owner: nn.Module, names: dict[str, str]) -> None:
        self.owner, self.names = owner, names

    def __getitem__(self, name: str) -> nn.Parameter | None:
        return self.owner._parameters[self.names[name]]

    def __setitem__(self, name: str, value: nn.Parameter | None) -> None:
        self.owner._parameters[self.names[name]] = value

    def __delitem__(self, name: str) -> None:
        raise KeyError(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __len__(self) -> int:
        return len(self.names)


class InProjection(nn.Linear):
    """The joint projection to q, k and v, (B, N, D) -> (B, N, 3 D), with the parameters of the attention that owns it.

    It is nobody's child, so that no key appears anywhere.
    """

    def __init__(self, owner: nn.MultiheadAttention) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = owner.embed_dim, 3 * owner.embed_dim
        self.__dict__["_parameters"] = Borrowed(owner, {"weight": "in_proj_weight", "bias": "in_proj_bias"})

    def forward(self, input: Tensor) -> Tensor:
        # sequence first, as torch computes it: another order of rows may round differently
        return F.linear(input.transpose(0, 1), self._weight(), self.bias).transpose(0, 1)

    def _weight(self) -> Tensor:
        return self.weight


class EditedInProjection(InProjection):
    """The same with edits of its weight."""

    def _weight(self) -> Tensor:
        edited: Tensor = self.vpeft_weight(self.weight)  # type: ignore[operator]
        return edited


class EditedOutProjection(NonDynamicallyQuantizableLinear):
    """The output projection with edits of its weight."""

    def forward(self, input: Tensor) -> Tensor:
        return F.linear(input, self.vpeft_weight(self.weight), self.bias)  # type: ignore[operator]


EDITED[InProjection] = EditedInProjection
EDITED[NonDynamicallyQuantizableLinear] = EditedOutProjection


class EditedMultihead(nn.MultiheadAttention):
    """torch's attention of a sequence to itself, (B, N, D), with edits at and between its projections.

    Bit-equal to torch's forward without edits, where torch does not take its fused kernel for inference. `key` and
    `value` are those of the query, as an edit may have changed that. A mask has one row and column for each token of
    the library's sequence: tokens that a carrier inserted behind its prefix see one another and what the last token of
    the prefix sees; every token behind them sees them. Further keys are open to every query.
    """

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        own: dict[str, Any] = self.__dict__
        switch = own.get("vpeft_switch")
        if switch is not None and switch.idle:
            return super().forward(
                query, key, value, key_padding_mask, need_weights, attn_mask, average_attn_weights, is_causal
            )
        batch, count, width = query.shape
        q, k, v = self._projected(query).chunk(3, dim=-1)
        q, k, v = (part.reshape(batch, count, self.num_heads, -1).transpose(1, 2) for part in (q, k, v))
        core = own.get("vpeft_core")
        if core is not None:
            q, k, v = core(q, k, v)
        mask = None if attn_mask is None else self._mask(attn_mask, q, k)
        dropout = self.dropout if self.training else 0.0
        if core is not None and core.needs_map:
            scores = core.scores((q * self.head_dim**-0.5) @ k.transpose(-2, -1))
            weights = core.weights((scores if mask is None else scores + mask).softmax(dim=-1))
            mixed = F.dropout(weights, dropout) @ v
        else:
            mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout)
        rows = mixed.permute(2, 0, 1, 3).reshape(count, batch, width)  # sequence first, as torch computes it
        out: Tensor = self.out_proj(rows.transpose(0, 1))
        return out, None

    def _projected(self, x: Tensor) -> Tensor:
        """(B, N, D) -> (B, N, 3 D), through the module that edits know, if any edit is there."""
        joint = self.__dict__.get("vpeft_in_proj")
        out: Tensor = (InProjection(self) if joint is None else joint)(x)
        return out

    def _mask(self, mask: Tensor, q: Tensor, k: Tensor) -> Tensor:
        """The library's mask, (N, N) or (B * heads, N, N), for the queries and keys that there are now."""
        if mask.dtype == torch.bool:
            mask = torch.zeros_like(mask, dtype=q.dtype).masked_fill(mask, -torch.inf)
        mask = mask.to(q.dtype)
        if mask.dim() == 3:
            mask = mask.reshape(q.shape[0], self.num_heads, *mask.shape[1:])
        tokens = q.shape[2] - mask.shape[-1]
        if tokens:
            at = int(self.__dict__["vpeft_carrier"].prefix)
            column = mask[..., at : at + 1].expand(*mask.shape[:-1], tokens).clone()
            column[..., at:, :] = 0.0
            mask = torch.cat([mask[..., :at], column, mask[..., at:]], dim=-1)
            rows = mask[..., at - 1 : at, :].expand(*mask.shape[:-2], tokens, -1).clone()
            rows[..., at : at + tokens] = 0.0
            mask = torch.cat([mask[..., :at, :], rows, mask[..., at:, :]], dim=-2)
        return F.pad(mask, (k.shape[2] - mask.shape[-1], 0))


def multihead_places(name: str, module: nn.MultiheadAttention, where: Where) -> AttentionSite:
    """Places of a self-attention of torch: q, k, v as slices of the joint weight, the core, the output projection.

    Raises:
        UnknownBackbone: it is no plain self-attention with the batch first.
    """
    if type(module) is not nn.MultiheadAttention and not isinstance(module, EditedMultihead):
        raise UnknownBackbone(f"{name} is a {type(module).__name__}, not torch's MultiheadAttention.")
    if not module.batch_first or module.in_proj_weight is None or module.bias_k is not None or module.add_zero_attn:
        raise UnknownBackbone(
            f"{name} has its batch second, separate weights or further keys; places are known for a self-attention"
            " with one joint weight and batch_first=True."
        )
    joint = InProjection(module)
    needs = (StandIn(module, EditedMultihead, {"vpeft_in_proj": joint}),)
    third = module.embed_dim
    made = {"qkv": projection(f"{name}.qkv", joint, where)}
    for offset, letter in enumerate("qkv"):
        made[letter] = projection(f"{name}.{letter}", joint, where, (offset * third, (offset + 1) * third))
    made["proj"] = projection(f"{name}.proj", module.out_proj, where)
    for part in made.values():
        part.enter = Point(part.module, "input", needs=needs)
        part.exit = Point(part.module, "output", needs=needs)
    parts: dict[str, Place] = dict(made)
    parts["core"] = attention_core(f"{name}.core", module, EditedMultihead, where, third, module.num_heads)
    enter, exit = Point(module, "input", needs=needs), Point(module, "output", 0)
    return site(name, AttentionSite, enter, exit, where, third, parts, None, (made["qkv"],))
