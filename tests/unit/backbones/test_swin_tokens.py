"""Tokens that travel beside Swin's map, against a plain restatement of VPT's windows, merging and pooling."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from timm.models.swin_transformer import PatchMerging, SwinTransformer, window_partition, window_reverse
from torch import Tensor, nn
from torch.nn import functional as F

import vpeft
from tests.families import timm_attention, torchvision_models
from tests.models import images_for, tiny_swin, tiny_vit
from vpeft.backbones.backbone import Backbone
from vpeft.backbones.edits import Edit
from vpeft.methods import Method


class Tokens(nn.Module):
    """The same n tokens for every sample."""

    def __init__(self, count: int, width: int) -> None:
        super().__init__()
        self.tokens = nn.Parameter(torch.randn(count, width))

    def forward(self, hidden: Tensor) -> Tensor:
        return self.tokens.expand(hidden.shape[0], -1, -1)


class Insert(Method):
    """Three tokens into one span."""

    span: str = "trunk"
    lifetime: str = "pooled"

    @property
    def starts_as_identity(self) -> bool:
        return False

    def edits(self, backbone: Backbone) -> list[Edit]:  # type: ignore[override]
        place = backbone.place(self.span)
        return [place.insert_tokens(Tokens(3, place.width_in), lifetime=self.lifetime)]  # type: ignore[arg-type]


def windows_of_one_image(block: nn.Module, grid: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """One Swin block on one image, (H, W, D) and (n, D), window by window with explicit softmax."""
    attn, (high, wide), n = block.attn, block.window_size, len(tokens)
    height, width, D = grid.shape
    rows = F.layer_norm(torch.cat([tokens, grid.reshape(-1, D)]), (D,), block.norm1.weight, block.norm1.bias)
    shift = tuple(block.shift_size)
    shifted = torch.roll(rows[n:].reshape(1, height, width, D), (-shift[0], -shift[1]), dims=(1, 2))
    windows = window_partition(shifted, (high, wide)).reshape(-1, high * wide, D)
    bias = attn.relative_position_bias_table[attn.relative_position_index.view(-1)]
    bias = bias.view(high * wide, high * wide, -1).permute(2, 0, 1)
    outs, own = [], torch.zeros(n, D)
    for number, window in enumerate(windows):
        x = torch.cat([rows[:n], window])
        q, k, v = (x @ attn.qkv.weight.T + attn.qkv.bias).reshape(len(x), 3, attn.num_heads, -1).permute(1, 2, 0, 3)
        scores = q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5
        scores[:, n:, n:] += bias
        if block.attn_mask is not None:
            scores[:, n:, n:] += block.attn_mask[number]
        out = (scores.softmax(-1) @ v).transpose(0, 1).reshape(len(x), D) @ attn.proj.weight.T + attn.proj.bias
        own += out[:n] / len(windows)
        outs.append(out[n:].reshape(high, wide, D))
    back = torch.roll(window_reverse(torch.stack(outs), (high, wide), height, width), shift, dims=(1, 2))[0]
    sequence = torch.cat([tokens + own, (grid + back).reshape(-1, D)])
    normed = F.layer_norm(sequence, (D,), block.norm2.weight, block.norm2.bias)
    sequence = sequence + block.mlp.fc2(F.gelu(block.mlp.fc1(normed)))
    return sequence[n:].reshape(height, width, D), sequence[:n]


def restated(swin: SwinTransformer, image: Tensor, tokens: Tensor, pooled: bool) -> Tensor:
    """Pooled feature (D) of one image with tokens that enter before the first block."""
    grid = swin.patch_embed(image[None])[0]
    for layer in swin.layers:
        if isinstance(layer.downsample, PatchMerging):
            grid = layer.downsample(grid[None])[0]
            four = torch.cat([tokens] * 4, dim=-1)
            four = F.layer_norm(four, four.shape[-1:], layer.downsample.norm.weight, layer.downsample.norm.bias)
            tokens = four @ layer.downsample.reduction.weight.T
        for block in layer.blocks:
            grid, tokens = windows_of_one_image(block, grid, tokens)
    flat = grid.reshape(-1, grid.shape[-1])
    rows = torch.cat([tokens, flat]) if pooled else flat
    return F.layer_norm(rows, rows.shape[-1:], swin.norm.weight, swin.norm.bias).mean(dim=0)


@pytest.mark.parametrize("lifetime", ["pooled", "span"])
def test_swin_carries_tokens_as_vpt_does(lifetime: str) -> None:
    model = tiny_swin()
    images = images_for(model, 3)
    tuned = vpeft.tune(copy.deepcopy(model), Insert(lifetime=lifetime), show=False)
    ((_, tokens),) = tuned.trainable()
    expected = torch.stack([restated(model, image, tokens, lifetime == "pooled") for image in images])
    assert torch.allclose(tuned.features(images), expected, atol=2e-5)


def _attended(attn: Any, rows: Tensor, open_to: Tensor, n: int, cosine: bool) -> Tensor:
    """Attention over n tokens and one window of torchvision, (n + cells, D); `open_to` says which cells see which."""
    D, heads = rows.shape[1], attn.num_heads
    bias = attn.qkv.bias.clone()
    if cosine:
        bias[D : 2 * D] = 0
    q, k, v = (rows @ attn.qkv.weight.T + bias).reshape(len(rows), 3, heads, -1).permute(1, 2, 0, 3)
    if cosine:
        q, k = F.normalize(q, dim=-1), F.normalize(k, dim=-1)
        scores = q @ k.transpose(-1, -2) * attn.logit_scale.clamp(max=math.log(100)).exp()
    else:
        scores = q @ k.transpose(-1, -2) * (D // heads) ** -0.5
    scores[:, n:, n:] += attn.get_relative_position_bias()[0]
    scores[:, n:, n:] += torch.where(open_to, 0.0, -100.0)
    out: Tensor = (scores.softmax(-1) @ v).transpose(0, 1).reshape(len(rows), D) @ attn.proj.weight.T + attn.proj.bias
    return out


def torchvision_block(block: Any, grid: Tensor, tokens: Tensor, cosine: bool) -> tuple[Tensor, Tensor]:
    """One block of torchvision on one image, (H, W, D) and (n, D), cell by cell where it matters."""
    (height, width, D), n, side = grid.shape, len(tokens), block.attn.window_size[0]
    shift = block.attn.shift_size[0] if height > side else 0
    entering = torch.cat([tokens, grid.reshape(-1, D)])
    rows = entering if cosine else block.norm1(entering)
    cells = rows[n:].reshape(height, width, D)
    mapped, own, windows = torch.zeros_like(cells), torch.zeros(n, D), (height // side) * (width // side)
    for top in range(0, height, side):
        for left in range(0, width, side):
            # where each cell of this window comes from, before the roll; cells see each other if neither wrapped alone
            down = [(top + i + shift) for i in range(side)]
            across = [(left + j + shift) for j in range(side)]
            where = [(y % height, x % width, y >= height, x >= width) for y in down for x in across]
            window = torch.stack([cells[y, x] for y, x, _, _ in where])
            seen = torch.tensor([[a[2:] == b[2:] for b in where] for a in where])
            out = _attended(block.attn, torch.cat([rows[:n], window]), seen, n, cosine)
            own += out[:n] / windows
            for (y, x, _, _), value in zip(where, out[n:], strict=True):
                mapped[y, x] = value
    joined = torch.cat([own, mapped.reshape(-1, D)])
    sequence = entering + (block.norm1(joined) if cosine else joined)
    sequence = sequence + (block.norm2(block.mlp(sequence)) if cosine else block.mlp(block.norm2(sequence)))
    return sequence[n:].reshape(height, width, D), sequence[:n]


@pytest.mark.parametrize("version", [1, 2])
@torch.no_grad()
def test_torchvisions_swin_carries_tokens_as_vpt_does(version: int) -> None:
    model: Any = (torchvision_models.swin if version == 1 else torchvision_models.swin_v2)().eval()
    images = images_for(model, 2)
    tuned = vpeft.tune(copy.deepcopy(model), Insert(), verify=False, show=False)
    tokens = next(tuned.trainable())[1]
    expected = []
    for image in images:
        grid, mine = model.features[0](image[None])[0], tokens
        for part in model.features[1:]:
            if isinstance(part, nn.Sequential):
                for block in part:
                    grid, mine = torchvision_block(block, grid, mine, version == 2)
                continue
            grid, four = part(grid[None])[0], torch.cat([mine] * 4, dim=-1)
            mine = part.reduction(part.norm(four)) if version == 1 else part.norm(part.reduction(four))
        expected.append(model.norm(torch.cat([mine, grid.flatten(0, 1)])).mean(dim=0))
    assert torch.allclose(tuned.features(images), torch.stack(expected), atol=3e-5)
    with tuned.disable():
        assert torch.equal(tuned.features(images), model(images))


def sam_block(block: Any, grid: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """One block of SAM on one image, (H, W, D) and (n, D): tokens in every window, or over the whole image."""
    attn, n, (height, width, D) = block.attn, len(tokens), grid.shape
    side, heads = block.window_size or height, attn.num_heads
    entering = torch.cat([tokens, grid.reshape(-1, D)])
    rows = block.norm1(entering)
    cells = F.pad(rows[n:].reshape(height, width, D), (0, 0, 0, -width % side, 0, -height % side))
    mapped, outs = torch.zeros_like(cells), []
    for top in range(0, height, side):
        for left in range(0, width, side):
            window = cells[top : top + side, left : left + side].reshape(-1, D)
            qkv = attn.qkv(torch.cat([rows[:n], window])).reshape(n + side * side, 3, heads, -1)
            q, k, v = qkv.permute(1, 2, 0, 3)
            scores = q @ k.transpose(-1, -2) * attn.scale
            at = torch.arange(side)
            apart = at[:, None] - at[None, :] + side - 1
            own = q[:, n:].reshape(heads, side, side, -1)
            rise = torch.einsum("hyxc,yYc->hyxY", own, attn.rel_pos_h[apart])
            run = torch.einsum("hyxc,xXc->hyxX", own, attn.rel_pos_w[apart])
            scores[:, n:, n:] += (rise[..., None] + run[..., None, :]).reshape(heads, side * side, side * side)
            out = attn.proj((scores.softmax(-1) @ v).transpose(0, 1).reshape(-1, D))
            outs.append(out[:n])
            mapped[top : top + side, left : left + side] = out[n:].reshape(side, side, D)
    joined = torch.cat([torch.stack(outs).mean(dim=0), mapped[:height, :width].reshape(-1, D)])
    sequence = entering + block.ls1(joined)
    sequence = sequence + block.ls2(block.mlp(block.norm2(sequence)))
    return sequence[n:].reshape(height, width, D), sequence[:n]


@pytest.mark.parametrize("span", ["trunk", "blocks.1"])
@torch.no_grad()
def test_sam_carries_tokens_through_windows_and_the_whole_image(span: str) -> None:
    model: Any = timm_attention.tiny_sam().eval()
    assert {bool(block.window_size) for block in model.blocks} == {False, True}
    images = images_for(model, 2)
    tuned = vpeft.tune(copy.deepcopy(model), Insert(span=span, lifetime="span"), verify=False, show=False)
    tokens = next(tuned.trainable())[1]
    maps = []
    for image in images:
        grid = model.patch_embed(image[None])[0] + model.pos_embed[0]
        mine = tokens
        for number, block in enumerate(model.blocks):
            taking = span == "trunk" or span == f"blocks.{number}"
            grid, left = sam_block(block, grid, mine if taking else mine[:0])
            mine = left if taking else mine
        maps.append(grid)
    expected = model.forward_head(model.neck(torch.stack(maps).permute(0, 3, 1, 2)), pre_logits=True)
    assert torch.allclose(tuned.features(images), expected, atol=3e-5)
    with tuned.disable():
        assert torch.equal(tuned.features(images), model.forward_head(model.forward_features(images), pre_logits=True))


@pytest.mark.parametrize("pool", ["avg", "token"])
def test_vit_mean_includes_pooled_tokens_after_the_norm(pool: str) -> None:
    model = tiny_vit(global_pool=pool, fc_norm=False)
    tuned = vpeft.tune(model, Insert(span="blocks.2"), show=False)
    ((_, tokens),) = tuned.trainable()
    images = images_for(model)
    with tuned.disable():
        x = model.blocks[1](model.blocks[0](model._pos_embed(model.patch_embed(images))))
        x = torch.cat([x[:, :1], tokens.expand(2, -1, -1), x[:, 1:]], dim=1)
        x = model.norm(model.blocks[2](x))
    expected = x[:, 1:].mean(dim=1) if pool == "avg" else x[:, 0]
    assert torch.allclose(tuned.features(images), expected, atol=1e-5)


@pytest.mark.parametrize(
    ("make", "span"),
    [
        (tiny_swin, "trunk"),
        (tiny_swin, "stages.1"),
        (tiny_swin, "blocks.3"),
        (timm_attention.tiny_sam, "trunk"),
        (timm_attention.tiny_sam, "blocks.1"),
    ],
)
def test_checkpointing_carries_the_tokens(make: Callable[[], Any], span: str) -> None:
    grads = []
    for checkpointed in (False, True):
        torch.manual_seed(0)
        model = make()
        images = images_for(model)
        model.set_grad_checkpointing(checkpointed)
        tuned = vpeft.tune(model, Insert(span=span), verify=False, show=False).eval()
        ((_, tokens),) = tuned.trainable()
        tuned.features(images).square().sum().backward()
        grads.append(tokens.grad)
    assert grads[0].abs().max() > 0
    assert torch.allclose(grads[0], grads[1], atol=1e-6)


def test_an_interrupted_pass_leaves_nothing_behind() -> None:
    model = tiny_swin()
    images = images_for(model)
    tuned = vpeft.tune(model, Insert(), show=False)
    before = tuned.features(images)

    def fail(*_: object) -> None:
        raise KeyboardInterrupt

    handle = model.layers[1].blocks[0].register_forward_hook(fail)
    with pytest.raises(KeyboardInterrupt):
        tuned.features(images)
    handle.remove()
    assert torch.equal(tuned.features(images), before)
