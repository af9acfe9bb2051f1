"""SEMA restated: bottlenecks mixed by the mean token, and the error of a descriptor."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

import vpeft
from tests.golden.by_hand import randomise
from tests.golden.parity import base_vit
from tests.golden.test_l2p import sequence
from tests.models import images_for
from vpeft.method import BadField
from vpeft.methods import SEMA
from vpeft.methods.sema import Descriptor


def test_equals_a_restatement() -> None:
    tuned = vpeft.tune(base_vit(), SEMA(bottleneck=4, expandable=2, adapters=(1, 3)), show=False).eval()
    randomise(tuned, 0.4)
    own, model, images = dict(tuned.adapter().owned()), base_vit(), images_for(base_vit(), 3)
    x = sequence(model, images)
    for number, block in enumerate(model.blocks):
        x = x + block.attn(block.norm1(x))
        place = f"blocks.{number}.mlp_branch.parallel"
        count = 3 if number == 2 else 1
        mean = x.mean(1)
        scores = [
            F.linear(mean, own[f"{place}.routers.{m}.weight"], own[f"{place}.routers.{m}.bias"]) for m in range(count)
        ]
        weights = torch.cat(scores, dim=1).softmax(1)
        change = torch.zeros_like(x)
        for m in range(count):
            down = F.linear(x, own[f"{place}.experts.{m}.down.weight"], own[f"{place}.experts.{m}.down.bias"]).relu()
            up = F.linear(down, own[f"{place}.experts.{m}.up.weight"], own[f"{place}.experts.{m}.up.bias"])
            change = change + 0.1 * weights[:, m, None, None] * up
        x = x + block.mlp(block.norm2(x)) + change
    assert torch.allclose(tuned.features(images), model.norm(x)[:, 0], atol=1e-5, rtol=1e-5)


def test_a_descriptor_says_how_strange_a_token_is() -> None:
    one, tokens = Descriptor(6, 4), torch.randn(5, 6)
    inner = torch.relu(tokens @ one.down.weight.T + one.down.bias)
    error = ((inner @ one.up.weight.T + one.up.bias - tokens) ** 2).mean(1)
    assert torch.allclose(one(tokens), error)
    one.mean.fill_(0.4)
    one.std.fill_(0.5)
    assert torch.allclose(one.strangeness(tokens), (error - 0.4).abs() / 0.5)


def test_starts_as_the_frozen_model_and_refuses() -> None:
    images = images_for(base_vit(), 2)
    tuned = vpeft.tune(base_vit(), SEMA(adapters=(2, 1, 2)), show=False).eval()
    assert torch.allclose(tuned.features(images), base_vit()(images), atol=1e-6)
    with pytest.raises(BadField, match="3 blocks can have several, so state 3 numbers"):
        vpeft.tune(base_vit(), SEMA(adapters=(2,)), show=False)
