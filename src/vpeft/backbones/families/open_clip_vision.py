"""open_clip's image tower, alone (`model.visual`) or as one of the towers of a whole CLIP."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from vpeft.backbones import outline

from ..backbone import Backbone, Facts
from ..blocks import Block
from ..builders import Where, norm, projection
from ..describe import UnknownBackbone, family
from ..multihead import EditedMultihead, multihead_places
from ..places import Place
from ..points import Layout, Point
from ..tokens import TokenCarrier
from ..towers import Parts, pre_norm_block


def embedding_of(model: nn.Module, inputs: Tensor) -> Tensor:
    """What a tower gives: (B, E) in the space that both towers share."""
    out: Any = model(inputs)
    pooled: Tensor = out[0] if isinstance(out, tuple) else out
    return pooled


def no_classifier(model: nn.Module) -> nn.Module:
    """A tower ends in the shared space, so that nothing stands behind it."""
    return nn.Identity()


def clip_block(index: int, block: Any, where: Where, carrier: TokenCarrier, masked: bool) -> Block:
    """One of open_clip's default residual blocks; with `masked`, its attention must know of inserted tokens."""
    if type(block).__name__ != "ResidualAttentionBlock":
        raise UnknownBackbone(
            f"blocks.{index} is a {type(block).__name__}; the open_clip towers are described with their default"
            " block, ResidualAttentionBlock."
        )
    gains = tuple((scale, "gamma") if hasattr(scale, "gamma") else None for scale in (block.ls_1, block.ls_2))
    parts = Parts(
        block=block,
        norm1=block.ln_1,
        attn=block.attn,
        attn_end=block.ls_1,
        norm2=block.ln_2,
        mlp=block.mlp,
        projections={"fc1": block.mlp.c_fc, "fc2": block.mlp.c_proj},
        mlp_end=block.ls_2,
        gains=(gains[0], gains[1]),
    )
    made = pre_norm_block(index, parts, multihead_places(f"blocks.{index}.attn", block.attn, where), where, carrier)
    if masked:
        made.rewrites = {"insert_tokens": ((block.attn, EditedMultihead),)}
    return made


@family("open_clip_vision", "open_clip.transformer.VisionTransformer")
def describe_open_clip_vision(model: nn.Module) -> Backbone:
    """open_clip's image tower: class token, `nn.MultiheadAttention`, pooled by token, average or attention."""
    vit: Any = model
    width, stride = int(vit.conv1.out_channels), int(vit.patch_size[0])
    grid = (int(vit.grid_size[0]), int(vit.grid_size[1]))
    carrier = TokenCarrier(1)
    blocks = [
        clip_block(index, block, Where(index, Layout.TOKENS, grid, 1, stride), carrier, False)
        for index, block in enumerate(vit.transformer.resblocks)
    ]
    depth, where = len(blocks), Where(-1, Layout.TOKENS, grid, 1, stride)
    attends = vit.attn_pool is not None
    mean = None
    if vit.pool_type == "avg" and not attends:
        mean = Point(vit.transformer if vit.final_ln_after_pool else vit.ln_post, "output")
    trunk, stage = outline.tower(blocks, Where(0, Layout.TOKENS, grid, 1, stride), mean)
    embedding = outline.embedding(
        Point(vit.ln_pre, "output"),
        where,
        width,
        own={"cls_token": (vit, "class_embedding"), "pos_embed": (vit, "positional_embedding")},
    )
    others: list[Place] = [
        projection("patch", vit.conv1, Where(-1, Layout.CHANNELS_FIRST, grid, 0, stride)),
        embedding,
    ]
    if not isinstance(vit.ln_pre, nn.Identity):
        others.append(norm("norm_pre", vit.ln_pre, where, width))
    end = Where(depth, Layout.TOKENS, grid, 1, stride)
    if attends and vit.attn_pool_contrastive is None:
        end = Where(depth, Layout.TOKENS)  # what learnt queries brought back, so there is no grid
    elif not attends and vit.final_ln_after_pool:
        end = end.but(Layout.VECTOR)
    pooling = "map" if attends else {"tok": "token", "avg": "avg"}.get(vit.pool_type, vit.pool_type)
    return Backbone(
        module=vit,
        facts=Facts(
            family="open_clip_vision",
            library="open_clip",
            architecture=f"open_clip.{type(vit).__name__}",
            image_size=(int(vit.image_size[0]), int(vit.image_size[1])),
            depth=depth,
            width=int(vit.ln_post.weight.shape[0]) if vit.proj is None else int(vit.proj.shape[1]),
            prefix_tokens=1,
            pooling=pooling,
        ),
        pixels=outline.pixels(Point(vit.conv1, "input"), int(vit.conv1.in_channels)),
        trunk=trunk,
        stages=[stage],
        norm=norm("norm", vit.ln_post, end, int(vit.ln_post.weight.shape[0])),
        others=others,
        pooled=embedding_of,
        classifier=no_classifier,
        end=Point(vit.transformer, "output"),
    )
