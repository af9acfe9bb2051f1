"""Gated prompt tuning restated and counted."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

import vpeft
from tests.golden.by_hand import randomise
from tests.golden.counts import trained
from tests.golden.parity import base_vit
from tests.models import images_for, tiny_swin
from vpeft.methods import GatePrompt


def test_equals_a_restatement() -> None:
    tuned = vpeft.tune(base_vit(), GatePrompt(tokens=3, gate=0.5), show=False).eval()
    randomise(tuned, 0.4)
    own, model, images = dict(tuned.trainable()), base_vit(), images_for(base_vit())
    x = F.conv2d(images, model.patch_embed.proj.weight, model.patch_embed.proj.bias, stride=8).flatten(2).mT
    x = torch.cat([model.cls_token.expand(len(x), -1, -1), x], dim=1) + model.pos_embed
    prompts = own["trunk.insert_tokens.tokens"].expand(len(x), -1, -1)
    x = torch.cat([x[:, :1], prompts, x[:, 1:]], dim=1)
    for i, block in enumerate(model.blocks):
        came = x[:, 1:4]
        q, k, v = (part.transpose(1, 2) for part in block.attn.qkv(block.norm1(x)).unflatten(-1, (3, 3, 16)).unbind(2))
        weights = (q @ k.mT / 4 / own[f"blocks.{i}.attn.core.extend.t"]).softmax(-1)
        x = x + block.attn.proj((weights @ v).transpose(1, 2).flatten(2))
        x = x + block.mlp(block.norm2(x))
        if i < 2:
            gate = 1 / (1 + torch.exp(-own[f"blocks.{i}.after.a"]))
            x = torch.cat([x[:, :1], gate * x[:, 1:4] + (1 - gate) * came, x[:, 4:]], dim=1)
    assert torch.allclose(tuned.features(images), model.norm(x)[:, 0], atol=1e-4)


def test_counts_starts_and_refuses() -> None:
    assert trained(GatePrompt()) == 76_800 + 23
    own = dict(vpeft.tune(base_vit(), GatePrompt(tokens=2), show=False).trainable())
    assert own["blocks.0.after.a"].item() == -5.0 and own["blocks.2.attn.core.extend.t"].item() == 1.0
    with pytest.raises(vpeft.MissingPlace, match="attends within windows"):
        vpeft.tune(tiny_swin(), GatePrompt(), show=False)


def test_the_temperature_stays_in_its_range() -> None:
    tuned = vpeft.tune(base_vit(), GatePrompt(tokens=2), show=False)
    layer, q = tuned.adapter().get_submodule("blocks.0.attn.core.extend"), torch.ones(1, 1, 2, 4)
    for value, expected in ((100.0, 0.1), (-1.0, 100.0), (2.0, 0.5)):
        with torch.no_grad():
            layer.t.fill_(value)
        assert torch.allclose(layer(q, q, q)[0], torch.full_like(q, expected))
