"""SHERL restated and counted; gradients pass the last block alone."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

import vpeft
from tests.golden.by_hand import ViTByHand, randomise
from tests.golden.counts import trained
from tests.golden.parity import base_vit
from tests.models import images_for, tiny_convnext, tiny_swin
from vpeft.methods import SHERL


def test_equals_a_restatement() -> None:
    tuned = vpeft.tune(base_vit(), SHERL(), show=False).eval()
    randomise(tuned, 0.2)
    own, plain = {k.removeprefix("blocks.2.before."): v for k, v in tuned.trainable()}, base_vit()
    images, outputs = images_for(plain), []
    by_hand = ViTByHand(plain, {"patch": lambda x, _: outputs.append(x) or x})
    by_hand(images)
    embedded = torch.cat([plain.cls_token.expand(2, -1, -1), outputs.pop()], dim=1) + plain.pos_embed
    taps = [embedded, by_hand.block(0, embedded)]
    taps.append(by_hand.block(1, taps[-1]))

    def linear(x, name):  # type: ignore[no-untyped-def]
        return x @ own[f"{name}.weight"].T + own[f"{name}.bias"]

    xs = []
    for i, h in enumerate(taps):
        u = F.relu(linear(h, f"downs.{i}.first"))
        xs.append((linear(u, f"downs.{i}.second") + u) * torch.sigmoid(linear(u, f"downs.{i}.gate")))
    # token by token, tap by tap
    norms = [x.square().sum(-1, keepdim=True).sqrt() + 1e-6 for x in xs]
    raw = []
    for a in range(2):
        rho = sum(F.relu(((xs[a] / norms[a]) * (xs[b] / norms[b])).sum(-1, keepdim=True)) for b in range(2))
        raw.append(F.relu(linear(xs[a] * xs[2], "guide")) / rho)
    total = sum(raw) + 1e-6
    gathered = sum(w / total * x for w, x in zip(raw, xs[:2], strict=True)) + xs[2]
    z = linear(F.relu(gathered), "up") + torch.tanh(own["keep"] / 0.1) * taps[2]
    expected = by_hand.norm("", plain.norm, by_hand.block(2, z))[:, 0]
    parameters = list(own.values())
    wanted = torch.autograd.grad(expected.square().sum(), parameters)
    found = tuned.features(images)
    assert torch.allclose(found, expected, atol=1e-4, rtol=1e-5)
    for name, a, b in zip(own, torch.autograd.grad(found.square().sum(), parameters), wanted, strict=True):
        assert torch.allclose(a, b, atol=1e-4 * float(b.abs().max() + 1e-6), rtol=1e-3), name
    assert tuned.plan().reach == "from block 2"


def test_counts_and_refuses() -> None:
    assert trained(SHERL()) == 12 * (147_648 + 74_112) + 148_224 + 194 == 2_809_538
    assert trained(SHERL(reduction=8)) == 1_183_970
    tuned = vpeft.tune(tiny_swin(), SHERL(), show=False)  # what enters the last stage and its first block
    assert len(tuned.adapter().get_submodule("blocks.3.before").downs) == 2
    with pytest.raises(vpeft.MissingPlace, match="is the only one"):
        vpeft.tune(tiny_convnext(), SHERL(), show=False)
