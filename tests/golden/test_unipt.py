"""UniPT restated and counted; no gradient in the backbone."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

import vpeft
from tests.golden.by_hand import ViTByHand, randomise
from tests.golden.counts import trained
from tests.golden.parity import base_vit
from tests.models import images_for, tiny_swin
from vpeft.methods import UniPT


@pytest.mark.parametrize("reduction", [1, 4])
def test_equals_a_restatement(reduction: int) -> None:
    tuned = vpeft.tune(base_vit(), UniPT(reduction=reduction), show=False).eval()
    randomise(tuned, 0.1)
    own, taps, plain = {k.removeprefix("outlet.after."): v for k, v in tuned.trainable()}, [], base_vit()
    images = images_for(plain)
    patch = plain.patch_embed.proj
    x = F.conv2d(images, patch.weight, patch.bias, stride=8).flatten(2).transpose(1, 2)
    taps.append(torch.cat([plain.cls_token.expand(len(x), -1, -1), x], dim=1) + plain.pos_embed)
    g = ViTByHand(plain, {f"blocks.{i}": lambda x, _: taps.append(x) or x for i in range(3)})(images)[:, None]

    def linear(x, name):  # type: ignore[no-untyped-def]
        return x @ own[f"{name}.weight"].T + own[f"{name}.bias"]

    anchor = linear(F.relu(g), "ask")  # (B, 1, m)
    merged, sure = [], []
    for i, h in enumerate(taps):
        t = linear(F.relu(h), f"downs.{i}")
        weights = F.relu(anchor @ t.transpose(1, 2))
        weights = weights / weights.abs().sum(-1, keepdim=True).clamp(min=1e-6)
        merged.append(weights @ t + t[:, 0][:, None])
        sure.append(linear(anchor[:, 0] * t.mean(1), "confidence"))
    beta = torch.cat(sure, 1).softmax(1)
    blended = (torch.stack(merged, 1) * beta[:, :, None, None]).sum(1)
    expected = (g + linear(F.relu(blended), "up"))[:, 0]
    parameters = [value for key, value in own.items() if key != "confidence.bias"]  # the softmax does not see that one
    wanted = torch.autograd.grad(expected.square().sum(), parameters)
    found = tuned.features(images)
    assert torch.allclose(found, expected, atol=1e-5, rtol=1e-5)
    for a, b in zip(torch.autograd.grad(found.square().sum(), parameters), wanted, strict=True):
        assert torch.allclose(a, b, atol=1e-4 * float(b.abs().max() + 1e-6), rtol=1e-3)
    assert tuned.plan().reach == "none"


def test_counts() -> None:
    assert trained(UniPT()) == 13 * (768 * 192 + 192) + 147_648 + 148_224 + 193 == 2_215_489
    assert trained(UniPT(reduction=1)) == 8_859_649


def test_stages_of_several_widths_have_maps_of_their_widths() -> None:
    tuned = vpeft.tune(tiny_swin(), UniPT(), show=False)
    downs = tuned.adapter().get_submodule("outlet.after").downs
    assert [down.in_features for down in downs] == [24, 24, 24, 48, 48]
