"""VQT restated with the queries inside the sequence, and counted."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

import vpeft
from tests.golden.by_hand import randomise
from tests.golden.counts import trained
from tests.golden.parity import base_vit
from tests.models import images_for, tiny_swin
from vpeft.methods import VQT


@pytest.mark.parametrize("normalise", [True, False])
def test_equals_a_restatement(normalise: bool) -> None:
    tuned = vpeft.tune(base_vit(), VQT(tokens=2, normalise=normalise), num_classes=3, show=False).eval()
    randomise(tuned)
    own, model, images = dict(tuned.trainable()), base_vit(), images_for(base_vit())
    x = F.conv2d(images, model.patch_embed.proj.weight, model.patch_embed.proj.bias, stride=8).flatten(2).mT
    x = torch.cat([model.cls_token.expand(len(x), -1, -1), x], dim=1) + model.pos_embed
    summaries = []
    for i, block in enumerate(model.blocks):
        both = torch.cat([own["outlet.after.P"][i].expand(len(x), -1, -1), x], dim=1)
        q, k, v = (p.transpose(1, 2) for p in block.attn.qkv(block.norm1(both)).unflatten(-1, (3, 3, 16)).unbind(2))
        k, v = k[:, :, 2:], v[:, :, 2:]
        both = both + block.attn.proj(((q @ k.mT / 4).softmax(-1) @ v).transpose(1, 2).flatten(2))
        both = both + block.mlp(block.norm2(both))
        summaries.append(both[:, :2].flatten(1))
        x = both[:, 2:]
    parts = [model.norm(x)[:, 0], *summaries]
    expected = torch.cat([p / p.norm(dim=1, keepdim=True) for p in parts] if normalise else parts, dim=1)
    found = tuned.features(images)
    assert found.shape == (2, 48 + 3 * 2 * 48)
    assert torch.allclose(found, expected, atol=1e-5)
    assert tuned(images).shape == (2, 3)
    assert tuned.plan().reach == "none"


def test_counts_and_refuses() -> None:
    assert trained(VQT()) == 9_216
    assert trained(VQT(), head=100) == 9_216 + 9_984 * 100 + 100
    assert trained(VQT(tokens=10)) == 92_160
    with pytest.raises(vpeft.MissingPlace, match="attends within windows"):
        vpeft.tune(tiny_swin(), VQT(), show=False)
