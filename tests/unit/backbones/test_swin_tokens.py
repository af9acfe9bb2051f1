"""Tokens that travel beside Swin's map, against a plain restatement of VPT's windows, merging and pooling."""

from __future__ import annotations

import copy

import pytest
import torch
from timm.models.swin_transformer import PatchMerging, SwinTransformer, window_partition, window_reverse
from torch import Tensor, nn
from torch.nn import functional as F

import vpeft
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


@pytest.mark.parametrize("span", ["trunk", "stages.1", "blocks.3"])
def test_checkpointing_carries_the_tokens(span: str) -> None:
    grads = []
    for checkpointed in (False, True):
        torch.manual_seed(0)
        model = tiny_swin()
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
