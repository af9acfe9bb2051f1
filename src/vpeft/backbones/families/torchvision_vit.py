"""torchvision's VisionTransformer: class token, learnt positions, `nn.MultiheadAttention`, one image size."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from vpeft.backbones import outline

from ..backbone import Backbone, Facts
from ..builders import Where, norm, projection
from ..describe import UnknownBackbone, family
from ..multihead import multihead_places
from ..places import Place
from ..points import Layout, Point
from ..tokens import TokenCarrier
from ..towers import Parts, pre_norm_block


def _pooled(model: nn.Module, images: Tensor) -> Tensor:
    vit: Any = model
    x = vit._process_input(images)
    x = vit.encoder(torch.cat([vit.class_token.expand(x.shape[0], -1, -1), x], dim=1))[:, 0]
    if isinstance(vit.heads, nn.Sequential):
        for layer in list(vit.heads)[:-1]:
            x = layer(x)
    pooled: Tensor = x
    return pooled


def _classifier(model: nn.Module) -> nn.Module:
    heads = model.heads
    found = heads[-1] if isinstance(heads, nn.Sequential) else heads
    assert isinstance(found, nn.Module)
    return found


@family("torchvision_vit", "torchvision.models.vision_transformer.VisionTransformer")
def describe_torchvision_vit(model: nn.Module) -> Backbone:
    """torchvision VisionTransformer (vit_b_16 ... vit_h_14, with a patch or a convolutional stem)."""
    vit: Any = model
    width, stride = int(vit.hidden_dim), int(vit.patch_size)
    side = int(vit.image_size) // stride
    where = Where(-1, Layout.TOKENS, (side, side), 1, stride)
    carrier = TokenCarrier(1)
    blocks = []
    for index, block in enumerate(vit.encoder.layers):
        here = Where(index, Layout.TOKENS, where.grid, 1, stride)
        fc1, fc2 = (layer for layer in block.mlp if isinstance(layer, nn.Linear))
        parts = Parts(
            block=block,
            norm1=block.ln_1,
            attn=block.self_attention,
            attn_end=block.dropout,
            norm2=block.ln_2,
            mlp=block.mlp,
            projections={"fc1": fc1, "fc2": fc2},
            mlp_end=block.mlp,
        )
        attn = multihead_places(f"blocks.{index}.attn", block.self_attention, here)
        blocks.append(pre_norm_block(index, parts, attn, here, carrier))
    depth = len(blocks)
    trunk, stage = outline.tower(blocks, Where(0, Layout.TOKENS, where.grid, 1, stride))
    embedding = outline.embedding(
        Point(vit.encoder.dropout, "output"),
        where,
        width,
        own={"cls_token": (vit, "class_token"), "pos_embed": (vit.encoder, "pos_embedding")},
    )
    others = [*_stem(vit.conv_proj, where), embedding]
    head: Any = vit.heads
    if isinstance(head, nn.Sequential) and len(head) > 1:
        others.append(projection("pre_logits", head[0], Where(depth, Layout.VECTOR)))
        first_head: Any = head[0]
        width_out = int(first_head.out_features)
    else:
        width_out = width
    first = others[0]
    return Backbone(
        module=vit,
        facts=Facts(
            family="torchvision_vit",
            library="torchvision",
            architecture=type(vit).__name__,
            image_size=(int(vit.image_size), int(vit.image_size)),
            depth=depth,
            width=width_out,
            prefix_tokens=1,
            pooling="token",
        ),
        pixels=outline.pixels(Point(vit.conv_proj, "input"), first.width_in),
        trunk=trunk,
        stages=[stage],
        norm=norm("norm", vit.encoder.ln, Where(depth, Layout.TOKENS, where.grid, 1, stride), width),
        others=others,
        pooled=_pooled,
        classifier=_classifier,
        end=Point(vit.encoder.ln, "input"),
    )


def _stem(stem: nn.Module, where: Where) -> list[Place]:
    """The patch projection, or each convolution and norm of a convolutional stem."""
    mapped = Where(-1, Layout.CHANNELS_FIRST, where.grid, 0, where.stride)
    if isinstance(stem, nn.Conv2d):
        return [projection("patch", stem, mapped)]
    found: list[Place] = []
    convolutions = 0
    for layer in stem.modules():
        if isinstance(layer, nn.Conv2d):
            found.append(projection(f"patch_{convolutions}" if convolutions else "patch", layer, mapped))
            convolutions += 1
        elif isinstance(layer, nn.BatchNorm2d):
            found.append(norm(f"patch_norm_{convolutions - 1}", layer, mapped, layer.num_features))
    if not found:
        raise UnknownBackbone(f"The stem is a {type(stem).__name__} without a convolution.")
    return found
