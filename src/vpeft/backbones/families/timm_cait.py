"""timm's CaiT: attention whose heads talk to one another, and class attention behind the blocks of patches."""

from __future__ import annotations

from typing import Any

from timm.models.cait import Cait, LayerScaleBlock, LayerScaleBlockClassAttn, TalkingHeadAttn
from torch import Tensor, nn

from ..backbone import Backbone
from ..blocks import Block
from ..builders import Where, inner_parameters, norm, own_parameters, projection
from ..describe import UnknownBackbone, family
from ..places import Place
from ..points import Layout, Point, StandIn
from ..timm_isotropic import isotropic, residual_block
from ..tokens import TokenCarrier
from .timm_vit import attention_places, mlp_places


class EditedTalkingHeads(TalkingHeadAttn):
    """timm's attention with edits between q, k, v and their use; bit-equal without.

    The map that edits see is the one before each of the two linear mixtures of the heads.
    """

    def forward(self, x: Tensor) -> Tensor:
        batch, count, width = x.shape
        qkv = self.qkv(x).reshape(batch, count, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4)
        core: Any = self.vpeft_core
        q, k, v = core(qkv[0], qkv[1], qkv[2])
        scores = core.scores((q * self.scale) @ k.transpose(-2, -1))
        scores = self.proj_l(scores.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        weights = core.weights(scores.softmax(dim=-1))
        weights = self.attn_drop(self.proj_w(weights.permute(0, 2, 3, 1)).permute(0, 3, 1, 2))
        out: Tensor = self.proj((weights @ v).transpose(1, 2).reshape(batch, count, width))
        dropped: Tensor = self.proj_drop(out)
        return dropped


class EditedCait(Cait):
    """The model with an identity between the blocks of the patches and those of class attention."""

    def forward_cls(self, x: Tensor) -> Tensor:
        end: Any = self.vpeft_end
        out: Tensor = super().forward_cls(end(x))  # type: ignore[no-untyped-call]
        return out


KINDS: dict[type[nn.Module], type[nn.Module]] = {
    TalkingHeadAttn: EditedTalkingHeads,
    EditedTalkingHeads: EditedTalkingHeads,
}


@family("timm_cait", "timm.models.cait.Cait")
def describe_timm_cait(model: nn.Module) -> Backbone:
    """timm Cait: the blocks are those of the patches; the two of class attention are further places."""
    cait: Any = model
    stride, grid = int(cait.patch_embed.patch_size[0]), tuple(cait.patch_embed.grid_size)
    carrier = TokenCarrier(0)
    blocks = [
        _block(index, module, Where(index, Layout.TOKENS, grid, 0, stride), carrier)
        for index, module in enumerate(cait.blocks)
    ]
    behind = Where(len(blocks), Layout.TOKENS, grid, 1, stride)
    more: list[Place] = []
    for number, module in enumerate(cait.blocks_token_only):
        more += _class_attention(f"class_blocks.{number}", module, behind)
    end = nn.Identity()
    return isotropic(
        "timm_cait",
        model,
        blocks,
        carrier,
        Point(cait.pos_drop, "output"),
        more=tuple(more),
        final=norm("norm", cait.norm, Where(len(blocks), Layout.TOKENS, None, 1, stride), int(cait.embed_dim)),
        end=Point(end, "input", needs=(StandIn(model, EditedCait, {"vpeft_end": end}),)),
    )


def _block(index: int, module: Any, where: Where, carrier: TokenCarrier) -> Block:
    kind: type = type(module)
    if kind is not LayerScaleBlock:
        raise UnknownBackbone(f"blocks.{index} is a {kind.__name__}; timm_cait describes LayerScaleBlock.")
    name, width, attn = f"blocks.{index}", int(module.norm1.weight.shape[0]), module.attn
    own = own_parameters(attn)
    for inner in ("proj_l", "proj_w"):
        own |= inner_parameters(inner, getattr(attn, inner))
    drop = module.drop_path  # one for both branches
    first, second = (Point(drop, "output", calls=(attn, module.mlp), call=call) for call in (0, 1))
    return residual_block(
        index,
        module,
        attention_places(f"{name}.attn", attn, where, width, KINDS, own=own),
        mlp_places(f"{name}.mlp", module.mlp, where, width),
        where,
        carrier,
        gains=((module, "gamma_1"), (module, "gamma_2")),
        exits=(first, second),
    )


def _class_attention(name: str, module: Any, where: Where) -> list[Place]:
    """Norms and projections of a block in which the class token alone is computed."""
    kind: type = type(module)
    if kind is not LayerScaleBlockClassAttn:
        raise UnknownBackbone(f"{name} is a {kind.__name__}; timm_cait describes LayerScaleBlockClassAttn.")
    width, token = int(module.norm1.weight.shape[0]), Where(where.depth, Layout.TOKENS, None, 1, where.stride)
    q = projection(f"{name}.attn.q", module.attn.q, where.but(Layout.VECTOR))
    k, v = (projection(f"{name}.attn.{letter}", getattr(module.attn, letter), where) for letter in "kv")
    fc1 = projection(f"{name}.mlp.fc1", module.mlp.fc1, token)
    return [
        norm(f"{name}.norm1", module.norm1, where, width, (q, k, v)),
        q,
        k,
        v,
        projection(f"{name}.attn.proj", module.attn.proj, token),
        norm(f"{name}.norm2", module.norm2, token, width, (fc1,)),
        fc1,
        projection(f"{name}.mlp.fc2", module.mlp.fc2, token),
    ]
