"""Blocks of timm's VisionTransformer in which attention and MLP run side by side, from one norm to one addition.

The one branch is `mlp_branch`, its norm `norm2`. One fused linear, `in_proj`, has the rows of `mlp.fc1`, then of q, k
and v. Where one linear also writes both outputs (`out_proj`), attention and MLP have no outputs of their own. In
differential attention queries and keys have twice the heads of the values, so that there is no `attn.core`.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from timm.models.vision_transformer import DiffParallelScalingBlock, ParallelScalingBlock
from torch import Tensor, nn

from vpeft.backbones import outline

from ..blocks import AttentionSite, Block, MlpSite
from ..builders import Where, attention_core, branch, norm, projection, skip, stream
from ..convolutional import drop_rate, norm_width
from ..places import Place
from ..points import Point
from ..tokens import TokenCarrier
from ..verbs import Verb
from .timm_vit import BLOCKS, attend


class EditedParallelBlock(ParallelScalingBlock):
    """timm's block with edits between q, k, v and their use; bit-equal to it without edits."""

    def forward(self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
        batch, count, width = x.shape
        hidden, *parts = torch.split(self.in_proj(self.in_norm(x)), self.in_split, dim=-1)
        hidden = hidden if self.mlp_bias is None else hidden + self.mlp_bias
        q, k, v = (part.view(batch, count, self.num_heads, self.head_dim) for part in parts)
        q, k, v = self.q_norm(q).transpose(1, 2), self.k_norm(k).transpose(1, 2), v.transpose(1, 2)
        mixed = attend(self, q, k, v, attn_mask, is_causal)
        mixed = mixed.transpose(1, 2).reshape(batch, count, width)
        hidden = self.mlp_drop(self.mlp_act(hidden))
        module: Any = self
        if module.out_proj is not None:
            y = module.out_proj(torch.cat((mixed, hidden), dim=-1))
        else:
            y = module.attn_out_proj(mixed) + module.mlp_out_proj(hidden)
        out: Tensor = x + self.drop_path(self.ls(y))
        return out


def parallel_block(index: int, module: Any, where: Where, carrier: TokenCarrier) -> Block:
    """A block whose only branch holds attention and MLP."""
    name, width = f"blocks.{index}", norm_width(module.in_norm)
    reads = projection(f"{name}.in_proj", module.in_proj, where)
    writes = getattr(module, "out_proj", None)
    out = None if writes is None else projection(f"{name}.out_proj", writes, where)
    attn, mlp = _attention(f"{name}.attn", module, where, width), _mlp(f"{name}.mlp", module, where, width)
    around = branch(
        f"{name}.mlp_branch", Point(module.in_norm, "input"), Point(module.drop_path, "output"), where, width
    )
    around.writer = out
    around.gain = (module.ls, "gamma") if hasattr(module.ls, "gamma") else None
    parts: dict[str, Place] = {
        "norm2": norm(f"{name}.norm2", module.in_norm, where, width, (reads,)),
        "in_proj": reads,
        "attn": attn,
        "mlp": mlp,
        **({} if out is None else {"out_proj": out}),
        "mlp_branch": around,
        "skip2": skip(f"{name}.skip2", around, where),
        "stream2": stream(f"{name}.stream2", around, where),
    }
    return outline.block(index, module, parts, where, width, carrier=carrier, drop_path=drop_rate(module.drop_path))


def _ends(module: Any, writer: Any) -> tuple[Point | None, Point | None, frozenset[Verb]]:
    """Where attention or MLP begins and ends, and what can be done with it; nowhere if one linear writes both."""
    if writer is None:
        return None, None, frozenset({"unfreeze"})
    verbs: frozenset[Verb] = frozenset({"after", "parallel", "tap", "unfreeze"})
    return Point(module.in_norm, "output"), Point(writer, "output"), verbs


def _attention(name: str, module: Any, where: Where, width: int) -> AttentionSite:
    first, writer = int(module.in_split[0]), getattr(module, "attn_out_proj", None)
    rows = {"qkv": (first, first + 3 * width)}
    rows |= {letter: (first + at * width, first + (at + 1) * width) for at, letter in enumerate("qkv")}
    parts: dict[str, Place] = {
        key: projection(f"{name}.{key}", module.in_proj, where, span) for key, span in rows.items()
    }
    for inner in ("q_norm", "k_norm", "sub_norm"):
        layer = getattr(module, inner, None)
        if layer is not None and not isinstance(layer, nn.Identity):
            parts[inner] = norm(f"{name}.{inner}", layer, where, norm_width(layer))
    if not isinstance(module, DiffParallelScalingBlock):
        parts["core"] = attention_core(f"{name}.core", module, EditedParallelBlock, where, width, int(module.num_heads))
    if writer is not None:
        parts["proj"] = projection(f"{name}.proj", writer, where)
    enter, exit, verbs = _ends(module, writer)
    return AttentionSite(name=name, width=width, enter=enter, exit=exit, verbs=verbs, parts=parts, **where.shared())


def _mlp(name: str, module: Any, where: Where, width: int) -> MlpSite:
    writer = getattr(module, "mlp_out_proj", None)
    parts: dict[str, Place] = {"fc1": projection(f"{name}.fc1", module.in_proj, where, (0, int(module.in_split[0])))}
    if writer is not None:
        parts["fc2"] = projection(f"{name}.fc2", writer, where)
    own = {"bias": (cast(nn.Module, module), "mlp_bias")} if module.mlp_bias is not None else {}
    enter, exit, verbs = _ends(module, writer)
    return MlpSite(name=name, width=width, enter=enter, exit=exit, verbs=verbs, own=own, parts=parts, **where.shared())


BLOCKS.update({ParallelScalingBlock: parallel_block, DiffParallelScalingBlock: parallel_block})
BLOCKS[EditedParallelBlock] = parallel_block
