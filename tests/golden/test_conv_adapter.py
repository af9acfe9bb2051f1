"""Conv-Adapter restated on ConvNeXt, Swin and ResNet, and counted."""

from __future__ import annotations

import copy

import pytest
import timm
import torch
from torch.nn import functional as F

import vpeft
from tests.golden.by_hand import randomise
from tests.golden.counts import trained
from tests.models import images_for, roughen, tiny_convnext, tiny_swin, tiny_vit
from vpeft.methods import ConvAdapter


def beside(own, key, x, stride, padding, act):  # type: ignore[no-untyped-def]
    d, b, u, c, alpha = (own[f"{key}.{n}"] for n in ("down.weight", "down.bias", "up.weight", "up.bias", "alpha"))
    inner = act(F.conv2d(x, d, b, stride=stride, padding=padding, groups=len(d)))
    return alpha * F.conv2d(inner, u, c)


def test_equals_a_restatement_on_convnext() -> None:
    plain = tiny_convnext()
    tuned = vpeft.tune(copy.deepcopy(plain), ConvAdapter(norms=False), show=False)
    randomise(tuned)
    own, images = dict(tuned.trainable()), images_for(plain)
    x, number = plain.stem(images), 0
    for i, stage in enumerate(plain.stages):
        if i:
            norm, conv = stage.downsample
            z = norm(x)
            x = conv(z) + beside(own, f"stages.{i}.downsample.reduction.parallel", z, 2, 0, F.gelu)
        for block in stage.blocks:
            h = block.conv_dw(x) + beside(own, f"blocks.{number}.conv.parallel", x, 1, 3, F.gelu)
            h = block.mlp(block.norm(h.permute(0, 2, 3, 1))).permute(0, 3, 1, 2)
            x, number = x + h * block.gamma.reshape(1, -1, 1, 1), number + 1
    assert torch.allclose(tuned.features(images), plain.forward_head(plain.norm_pre(x), pre_logits=True), atol=1e-4)
    more = dict(vpeft.tune(tiny_convnext(), ConvAdapter(), show=False).trainable())
    assert {key for key in more if "unfreeze" in key} and set(own) < set(more)


def tiny_resnet() -> torch.nn.Module:
    from timm.models.resnet import Bottleneck, ResNet

    model = ResNet(Bottleneck, (2, 2, 1, 1), num_classes=0, channels=(16, 24, 32, 48), stem_width=16)
    model.pretrained_cfg = {"input_size": (3, 64, 64)}
    return roughen(model)


def test_equals_a_restatement_on_a_resnet() -> None:
    plain = tiny_resnet()
    tuned = vpeft.tune(copy.deepcopy(plain), ConvAdapter(), show=False).eval()
    randomise(tuned)
    own = dict(tuned.trainable())
    block = plain.layer1[1]  # the second block that keeps its shape
    x = torch.randn(2, 64, 8, 8)
    came = torch.relu(block.bn1(block.conv1(x)))
    h = torch.relu(block.bn2(block.conv2(came)))
    h = h + beside(own, "blocks.1.mlp.fc2.before.layer", came, 1, 1, F.relu)
    expected = torch.relu(block.bn3(block.conv3(h)) + x)
    assert torch.allclose(tuned.backbone.layer1[1](x), expected, atol=1e-4)


def test_equals_a_restatement_on_swin() -> None:
    plain = tiny_swin()
    tuned = vpeft.tune(copy.deepcopy(plain), ConvAdapter(norms=False), show=False).eval()
    randomise(tuned)
    own, x = dict(tuned.trainable()), torch.randn(2, 16, 16, 24)
    block = plain.layers[0].blocks[1]
    z = block.norm1(x)
    a = beside(own, "blocks.1.attn_branch.parallel.layer", z.permute(0, 3, 1, 2), 1, 3, F.gelu).permute(0, 2, 3, 1)
    h = (x + block._attn(z) + a).flatten(1, 2)
    expected = (h + block.mlp(block.norm2(h))).reshape(x.shape)
    assert torch.allclose(tuned.backbone.layers[0].blocks[1](x), expected, atol=1e-4)


def test_counts_and_refuses() -> None:
    name = "convnext_base"
    with torch.device("meta"):
        convs = [m for m in timm.create_model(name, num_classes=0).stages.modules() if isinstance(m, torch.nn.Conv2d)]
    sizes = [(c.in_channels, c.out_channels, c.kernel_size[0]) for c in convs if c.kernel_size[0] > 1]
    assert len(sizes) == 36 + 3
    count = sum(i * k * k + i // 8 + i // 8 * o + o + o for i, o, k in sizes)
    assert trained(ConvAdapter(norms=False), model=name) == count
    with pytest.raises(vpeft.MissingPlace, match="spatial convolutions"):
        vpeft.tune(tiny_vit(), ConvAdapter(), show=False)
    with pytest.raises(vpeft.MissingPlace, match="ratio = 5"):
        vpeft.tune(tiny_convnext(), ConvAdapter(ratio=5), show=False)
