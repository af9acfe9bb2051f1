"""VFM-Adapter restated image by image, and counted."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

import vpeft
from tests.golden.by_hand import ViTByHand, randomise
from tests.golden.counts import trained
from tests.golden.parity import base_vit
from tests.models import images_for
from vpeft.methods import VFMAdapter


def test_equals_a_restatement() -> None:
    method = VFMAdapter(hidden=5, tokens=3, description=6, low=2, scale=0.8)
    tuned = vpeft.tune(base_vit(), method, show=False).eval()
    randomise(tuned, 0.2)
    own, plain, changes, normed = dict(tuned.trainable()), base_vit(), {}, {}
    first = "blocks.0.attn_branch.parallel"

    def bypass(x: Tensor, key: str, maker: str) -> Tensor:
        def linear(x: Tensor, name: str) -> Tensor:
            return x @ own[f"{name}.weight"].T + own[f"{name}.bias"]

        p = linear(F.relu(linear(x[:, 1:], f"{key}.describe.0")), f"{key}.describe.2")
        made = []
        for image in range(len(x)):  # the authors' loop over images and masks
            d = torch.zeros(6)
            for token in own[f"{first}.tokens.weight"]:
                d = d + (p[image] @ token).softmax(0) @ p[image]
            rows = linear(d, f"{maker}.maker.first").reshape(5, 2)
            kernel = linear(rows, f"{maker}.maker.second").reshape(5, 5, 3, 3)
            inner = linear(x[image : image + 1], f"{key}.down")
            inner = inner * torch.sigmoid(1.702 * inner)
            cells = F.conv2d(inner[:, 1:].reshape(1, 4, 4, 5).permute(0, 3, 1, 2), kernel, padding=1)
            token = F.conv2d(inner[:, :1].reshape(1, 1, 1, 5).permute(0, 3, 1, 2), kernel, padding=1)
            inner = torch.cat([token.flatten(2), cells.flatten(2)], dim=2).transpose(1, 2)
            made.append(linear(inner * torch.sigmoid(1.702 * inner), f"{key}.up"))
        return 0.8 * torch.cat(made)

    for i in range(3):
        for site, norm in (("attn", "norm1"), ("mlp", "norm2")):
            changes[f"blocks.{i}.{norm}"] = lambda y, _, n=f"{i}{site}": normed.setdefault(n, y)
            key, maker = f"blocks.{i}.{site}_branch.parallel", f"blocks.0.{site}_branch.parallel"
            changes[f"blocks.{i}.{site}_branch"] = lambda y, _, n=f"{i}{site}", key=key, maker=maker: (
                y + bypass(normed[n], key, maker)
            )
    images = images_for(plain)
    expected = ViTByHand(plain, changes)(images)
    parameters = list(own.values())
    wanted = torch.autograd.grad(expected.square().sum(), parameters)
    found = tuned.features(images)
    assert torch.allclose(found, expected, atol=1e-4, rtol=1e-4)
    for name, a, b in zip(own, torch.autograd.grad(found.square().sum(), parameters), wanted, strict=True):
        assert torch.allclose(a, b, atol=1e-4 * float(b.abs().max() + 1e-4), rtol=1e-2), name


def test_counts_and_starts() -> None:
    bypass = (768 * 64 + 64) + (64 * 64 + 64) + (768 * 32 + 32) + (32 * 768 + 768)
    maker = (64 * 32 * 8 + 32 * 8) + (8 * 32 * 9 + 32 * 9)
    assert trained(VFMAdapter()) == 24 * bypass + 2 * maker + 4 * 64 == 2_518_592
    assert vpeft.tune(base_vit(), VFMAdapter(), show=False).verify().identity
