"""VAPT restated with a convolution by hand, counted, and on another size."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

import vpeft
from tests.golden.by_hand import ViTByHand, randomise
from tests.golden.counts import trained
from tests.golden.parity import base_vit
from tests.models import images_for, tiny_vit
from vpeft.methods import VAPT


def test_equals_a_restatement_with_its_gradients() -> None:
    tuned, model = vpeft.tune(base_vit(), VAPT(tokens=3, hidden=4), show=False).eval(), base_vit()
    randomise(tuned)
    own = {key: p.detach().clone().requires_grad_() for key, p in tuned.trainable()}
    images = images_for(model)
    down, up = own["blocks.1.insert_tokens.project.down.weight"], own["blocks.1.insert_tokens.project.up.weight"]
    hand = ViTByHand(model)
    x = F.conv2d(images, model.patch_embed.proj.weight, model.patch_embed.proj.bias, stride=8).flatten(2).mT
    x = torch.cat([model.cls_token.expand(2, -1, -1), x], dim=1) + model.pos_embed
    for i in range(3):
        name = f"blocks.{i}.insert_tokens"
        if i == 0:
            tokens = own[f"{name}.tokens"].expand(2, -1, -1)
        else:
            z = F.layer_norm(x[:, 1:], (48,), own[f"{name}.norm.weight"], own[f"{name}.norm.bias"]).unflatten(1, (4, 4))
            c = own[f"{name}.kernel"]
            slid = sum(c[a, b] * z[:, a : a + 3, b : b + 3] for a in range(2) for b in range(2)).flatten(1, 2)
            tokens = own[f"{name}.weight"].flatten(1) @ slid + own[f"{name}.bias"][:, None]
            tokens = tokens + (tokens @ down.T).relu() @ up.T
        x = hand.block(i, torch.cat([x[:, :1], tokens, x[:, 1:]], dim=1))
        x = torch.cat([x[:, :1], x[:, 4:]], dim=1)
    expected, found = model.norm(x)[:, 0], tuned.features(images)
    assert torch.allclose(found, expected, atol=1e-5)
    direction = torch.randn(2, 48, generator=torch.Generator().manual_seed(0))
    (found * direction).sum().backward()
    (expected * direction).sum().backward()
    for key, parameter in tuned.trainable():
        assert torch.allclose(parameter.grad, own[key].grad, atol=1e-4 * float(own[key].grad.abs().max() + 1)), key


def test_counts_and_starts() -> None:
    per_block = 2 * 768 + 4 + 169 * 10 + 10  # norm, kernel, token-wise projectors over 13 x 13
    assert trained(VAPT()) == 10 * 768 + 11 * per_block + 2 * 768 * 8
    tuned = vpeft.tune(base_vit(), VAPT(), show=False)
    own = dict(tuned.trainable())
    assert not own["blocks.1.insert_tokens.weight"].any() and not own["blocks.2.insert_tokens.bias"].any()
    assert sum("project" in key for key in own) == 2
    with pytest.raises(vpeft.MissingPlace, match="kernel of 5 x 5"):
        vpeft.tune(base_vit(), VAPT(kernel=5), show=False)


def test_stretches_over_another_grid() -> None:
    model = tiny_vit(dynamic_img_size=True)
    tuned = vpeft.tune(model, VAPT(tokens=2), show=False).eval()
    layer = tuned.adapter().get_submodule("blocks.1.insert_tokens")
    with torch.no_grad():
        layer.weight.fill_(0.5)
    hidden = torch.ones(1, 1 + 6 * 4, 48) * torch.arange(48.0)  # the same at each cell: the sum must not change
    small = layer(hidden[:, :17], grid=(4, 4))
    assert torch.allclose(layer(hidden, grid=(6, 4)), small, atol=1e-4)
    assert tuned.features(torch.randn(2, 3, 48, 32)).shape == (2, 48)
