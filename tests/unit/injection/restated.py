"""The three tiny backbones computed by hand, with a function applied wherever a test wants one.

`Fns` maps (place, side) of one block to a function of the tensor there; "skip" is a side too. Nothing here uses a hook.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Fns = dict[tuple[str, str], Callable[[Tensor], Tensor]]


def _pass(fns: Fns, place: str, side: str, x: Tensor) -> Tensor:
    return fns.get((place, side), lambda h: h)(x)


def _project(fns: Fns, name: str, layer: nn.Module, x: Tensor) -> Tensor:
    x = _pass(fns, name, "in", x)
    weight = _pass(fns, name, "weight", layer.weight)
    if isinstance(layer, nn.Conv2d):
        x = F.conv2d(x, weight, layer.bias, layer.stride, layer.padding, layer.dilation, layer.groups)
    else:
        x = F.linear(x, weight, layer.bias)
    return _pass(fns, name, "out", x)


def _norm(fns: Fns, name: str, layer: nn.Module, x: Tensor) -> Tensor:
    return _pass(fns, name, "out", layer.forward(_pass(fns, name, "in", x)))


def _mlp(fns: Fns, mlp: nn.Module, x: Tensor) -> Tensor:
    x = _pass(fns, "mlp", "in", x)
    x = F.gelu(_project(fns, "mlp.fc1", mlp.fc1, x))
    return _pass(fns, "mlp", "out", _project(fns, "mlp.fc2", mlp.fc2, x))


def _attend(fns: Fns, attn: nn.Module, x: Tensor, bias: Tensor | None = None) -> Tensor:
    x = _pass(fns, "attn", "in", x)
    batch, count, width = x.shape
    heads = attn.num_heads
    x = _project(fns, "attn.qkv", attn.qkv, x)
    q, k, v = (_pass(fns, f"attn.{n}", "out", part) for n, part in zip("qkv", x.chunk(3, -1), strict=True))
    q, k, v = (t.reshape(batch, count, heads, -1).transpose(1, 2) for t in (q, k, v))
    q, k, v = fns.get(("attn.core", "qkv"), lambda t: t)((q, k, v))  # type: ignore[arg-type, misc]
    scores = q @ k.transpose(-2, -1) * (width // heads) ** -0.5
    if bias is not None:
        scores = scores + F.pad(bias, (k.shape[2] - count, 0))
    x = (scores.softmax(-1) @ v).transpose(1, 2).reshape(batch, count, width)
    return _pass(fns, "attn", "out", _project(fns, "attn.proj", attn.proj, x))


def _branch(fns: Fns, name: str, skip: str, x: Tensor, compute: Callable[[Tensor], Tensor]) -> Tensor:
    shortcut = _pass(fns, skip, "skip", x)
    x = shortcut + _pass(fns, name, "out", compute(_pass(fns, name, "in", x)))
    return _pass(fns, skip.replace("skip", "stream"), "out", x)


def vit(model: nn.Module, images: Tensor, index: int, fns: Fns) -> Tensor:
    x = model.patch_embed.proj(images).flatten(2).transpose(1, 2)
    x = torch.cat([model.cls_token.expand(len(x), -1, -1), x], 1) + model.pos_embed
    for number, block in enumerate(model.blocks):
        use = fns if number == index else {}
        x = _pass(use, "block", "in", x)
        x = _branch(
            use, "attn_branch", "skip1", x, lambda h: _attend(use, block.attn, _norm(use, "norm1", block.norm1, h))
        )
        x = _branch(use, "mlp_branch", "skip2", x, lambda h: _mlp(use, block.mlp, _norm(use, "norm2", block.norm2, h)))
        x = _pass(use, "block", "out", x)
    return model.norm(x)[:, 0]


def swin(model: nn.Module, images: Tensor, index: int, fns: Fns) -> Tensor:
    x = model.patch_embed.norm(model.patch_embed.proj(images).permute(0, 2, 3, 1))
    number = 0
    for stage in model.layers:
        if not isinstance(stage.downsample, nn.Identity):
            b, h, w, c = x.shape
            fourfold = x.reshape(b, h // 2, 2, w // 2, 2, c).permute(0, 1, 3, 4, 2, 5).flatten(3)
            x = stage.downsample.reduction(stage.downsample.norm(fourfold))
        for block in stage.blocks:
            use = fns if number == index else {}
            x = _pass(use, "block", "in", x)
            b, h, w, c = x.shape
            x = _branch(
                use, "attn_branch", "skip1", x, lambda t: _windows(use, block, _norm(use, "norm1", block.norm1, t))
            )
            x = x.reshape(b, -1, c)
            x = _branch(
                use, "mlp_branch", "skip2", x, lambda t: _mlp(use, block.mlp, _norm(use, "norm2", block.norm2, t))
            )
            x = _pass(use, "block", "out", x.reshape(b, h, w, c))
            number += 1
    return model.norm(x).mean((1, 2))


def _windows(fns: Fns, block: nn.Module, x: Tensor) -> Tensor:
    """Shifted windows, one at a time."""
    (size, _), shift = block.window_size, block.shift_size[0]
    x = torch.roll(x, (-shift, -shift), (1, 2))
    b, h, w, c = x.shape
    table = block.attn.relative_position_bias_table[block.attn.relative_position_index.flatten()]
    bias = table.reshape(size * size, size * size, -1).permute(2, 0, 1)[None]
    cut = x.reshape(b, h // size, size, w // size, size, c).transpose(2, 3).reshape(-1, size * size, c)
    if block.attn_mask is not None:
        bias = bias + block.attn_mask.repeat(b, 1, 1)[:, None]
    out = _attend(fns, block.attn, cut, bias)
    out = out.reshape(b, h // size, w // size, size, size, c).transpose(2, 3).reshape(b, h, w, c)
    return torch.roll(out, (shift, shift), (1, 2))


def convnext(model: nn.Module, images: Tensor, index: int, fns: Fns) -> Tensor:
    x = model.stem(images)
    number = 0
    for stage in model.stages:
        x = stage.downsample(x)
        for block in stage.blocks:
            use = fns if number == index else {}

            def compute(h: Tensor, use: Fns = use, block: nn.Module = block) -> Tensor:
                h = _project(use, "conv", block.conv_dw, h).permute(0, 2, 3, 1)
                h = _mlp(use, block.mlp, _norm(use, "norm2", block.norm, h))
                return h.permute(0, 3, 1, 2) * block.gamma[:, None, None]

            x = _pass(use, "block", "out", _branch(use, "mlp_branch", "skip2", _pass(use, "block", "in", x), compute))
            number += 1
    return model.head.norm(x.mean((2, 3), keepdim=True)).flatten(1)


RESTATED = {"timm_vit": vit, "timm_swin": swin, "timm_convnext": convnext}
