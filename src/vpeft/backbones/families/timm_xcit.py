"""timm's XCiT: attention between channels, a branch of convolutions, and class attention behind the blocks.

A block has three branches: `attn_branch`, whose attention map is one of channels, so that it has no `attn.core`;
`local_branch`, two depthwise convolutions of the map; and `mlp_branch`. The convolutions need every token of the grid
and no other, so that tokens cannot be inserted.
"""

from __future__ import annotations

from typing import Any

from timm.models.xcit import ClassAttentionBlock, XCABlock, Xcit
from torch import Tensor, nn

from ..backbone import Backbone
from ..blocks import Block
from ..builders import Where, branch, norm, projection, site
from ..convolutional import norm_width
from ..convolutional_net import stem_places
from ..describe import UnknownBackbone, family
from ..places import Place, Site
from ..points import Layout, Point, StandIn
from ..timm_isotropic import isotropic, residual_block
from .timm_vit import attention_places, mlp_places


class EditedXcit(Xcit):
    """The model with an identity between the blocks of the patches and those of class attention."""

    def forward_cls(self, x: Tensor) -> Tensor:
        end: Any = self.vpeft_end
        out: Tensor = super().forward_cls(end(x))  # type: ignore[no-untyped-call]
        return out


@family("timm_xcit", "timm.models.xcit.Xcit")
def describe_timm_xcit(model: nn.Module) -> Backbone:
    """timm Xcit: the blocks are those of the patches; those of class attention are further places."""
    net: Any = model
    size, stride = tuple(net.patch_embed.img_size), int(net.patch_embed.patch_size)
    grid = (size[0] // stride, size[1] // stride)
    patches, _ = stem_places((net.patch_embed.proj,), (int(size[0]), int(size[1])))
    blocks = [
        _block(index, module, Where(index, Layout.TOKENS, grid, 0, stride)) for index, module in enumerate(net.blocks)
    ]
    behind = Where(len(blocks), Layout.TOKENS, grid, 1, stride)
    more: list[Place] = []
    if net.pos_embed is not None:
        positions = Where(-1, Layout.CHANNELS_FIRST, grid, 0, stride)
        more.append(projection("positions", net.pos_embed.token_projection, positions))
    for number, module in enumerate(net.cls_attn_blocks):
        more += _class_attention(f"class_blocks.{number}", module, behind)
    end = nn.Identity()
    return isotropic(
        "timm_xcit",
        model,
        blocks,
        None,
        Point(net.pos_drop, "output"),
        more=tuple(more),
        final=norm("norm", net.norm, Where(len(blocks), Layout.TOKENS, None, 1, stride), norm_width(net.norm)),
        end=Point(end, "input", needs=(StandIn(model, EditedXcit, {"vpeft_end": end}),)),
        patches=patches,
        rounding=("ceil", "ceil"),
    )


def _block(index: int, module: Any, where: Where) -> Block:
    kind: type = type(module)
    if kind is not XCABlock:
        raise UnknownBackbone(f"blocks.{index} is a {kind.__name__}; timm_xcit describes XCABlock.")
    name, width, local = f"blocks.{index}", norm_width(module.norm1), module.local_mp
    block = residual_block(
        index,
        module,
        attention_places(f"{name}.attn", module.attn, where, width, {}),
        mlp_places(f"{name}.mlp", module.mlp, where, width),
        where,
        None,
        gains=((module, "gamma1"), (module, "gamma2")),
    )
    mapped = where.but(Layout.CHANNELS_FIRST)
    inside: dict[str, Place] = {
        "conv1": projection(f"{name}.local.conv1", local.conv1, mapped),
        "norm": norm(f"{name}.local.norm", local.bn, mapped, width),
        "conv2": projection(f"{name}.local.conv2", local.conv2, mapped),
    }
    ends = Point(local, "input"), Point(local, "output")
    between: dict[str, Place] = {
        "norm3": norm(f"{name}.norm3", module.norm3, where, width),
        "local": site(f"{name}.local", Site, *ends, where, width, inside),
        "local_branch": branch(
            f"{name}.local_branch", Point(module.norm3, "input"), Point(module.drop_path3, "output"), where, width
        ),
    }
    parts = list(block.parts.items())
    at = next(number for number, (key, _) in enumerate(parts) if key == "norm2")
    block.parts = dict([*parts[:at], *between.items(), *parts[at:]])
    block.own["ls3.gamma"] = (module, "gamma3")
    return block


def _class_attention(name: str, module: Any, where: Where) -> list[Place]:
    """Norms and projections of a block in which the class token alone is attended and passes the MLP.

    What the norms give is also what the other tokens become, so that nothing reads it alone.
    """
    kind: type = type(module)
    if kind is not ClassAttentionBlock:
        raise UnknownBackbone(f"{name} is a {kind.__name__}; timm_xcit describes ClassAttentionBlock.")
    width, token = norm_width(module.norm1), Where(where.depth, Layout.TOKENS, None, 1, where.stride)
    return [
        norm(f"{name}.norm1", module.norm1, where, width),
        projection(f"{name}.attn.q", module.attn.q, where.but(Layout.VECTOR)),
        projection(f"{name}.attn.k", module.attn.k, where),
        projection(f"{name}.attn.v", module.attn.v, where),
        projection(f"{name}.attn.proj", module.attn.proj, token),
        norm(f"{name}.norm2", module.norm2, where if module.tokens_norm else token, width),
        projection(f"{name}.mlp.fc1", module.mlp.fc1, token),
        projection(f"{name}.mlp.fc2", module.mlp.fc2, token),
    ]
