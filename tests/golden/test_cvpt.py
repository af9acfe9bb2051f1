"""CVPT restated, counted, on windows."""

from __future__ import annotations

import pytest
import torch

import vpeft
from tests.golden.by_hand import ViTByHand, randomise
from tests.golden.counts import SWIN_B, trained
from tests.golden.parity import base_swin, base_vit
from tests.models import images_for, tiny_convnext
from vpeft.methods import CVPT


def test_equals_a_restatement_with_its_gradient() -> None:
    tuned, model = vpeft.tune(base_vit(), CVPT(tokens=5), show=False).eval(), base_vit()
    randomise(tuned)
    own = {key: p.detach().clone().requires_grad_() for key, p in tuned.trainable()}

    def crossed(number: int):  # type: ignore[no-untyped-def]
        attn, prompts = model.blocks[number].attn, own[f"blocks.{number}.stream1.after.tokens"]
        wq, wk, wv = attn.qkv.weight.chunk(3)
        bq, bk, bv = attn.qkv.bias.chunk(3)

        def change(branch, x):  # type: ignore[no-untyped-def]
            x = x + branch
            q, k, v = x @ wq.T + bq, prompts @ wk.T + bk, prompts @ wv.T + bv
            heads = []
            for h in range(3):
                part = slice(16 * h, 16 * h + 16)
                heads.append((q[..., part] @ k[:, part].T / 4).softmax(-1) @ v[:, part])
            return branch + torch.cat(heads, dim=-1) @ attn.proj.weight.T + attn.proj.bias

        return change

    images = images_for(model)
    expected = ViTByHand(model, {f"blocks.{i}.attn_branch": crossed(i) for i in range(3)})(images)
    found = tuned.features(images)
    assert torch.allclose(found, expected, atol=1e-5)
    direction = torch.randn(2, 48, generator=torch.Generator().manual_seed(0))
    (found * direction).sum().backward()
    (expected * direction).sum().backward()
    for key, parameter in tuned.trainable():
        assert torch.allclose(parameter.grad, own[key].grad, atol=1e-4), key


def test_on_windows_every_token_sees_all_prompts() -> None:
    model, images = base_swin(), images_for(base_swin())
    tuned = vpeft.tune(base_swin(), CVPT(tokens=2), show=False).eval()
    layer = tuned.adapter().get_submodule("blocks.1.stream1.after")
    x = torch.randn(2, 16, 16, 24)
    attn = model.layers[0].blocks[1].attn
    w, b = attn.qkv.weight.chunk(3), attn.qkv.bias.chunk(3)
    q, k, v = x.flatten(1, 2) @ w[0].T + b[0], layer.tokens @ w[1].T + b[1], layer.tokens @ w[2].T + b[2]
    heads = [(q[..., s] @ k[:, s].T / 12**0.5).softmax(-1) @ v[:, s] for s in (slice(0, 12), slice(12, 24))]
    expected = x + attn.proj(torch.cat(heads, dim=-1)).unflatten(1, (16, 16))
    assert torch.allclose(layer(x), expected, atol=1e-5)
    assert not torch.allclose(tuned.features(images), model.forward_head(model.forward_features(images)), atol=1e-3)


def test_counts_starts_and_refuses() -> None:
    assert trained(CVPT()) == 20 * 9216
    assert trained(CVPT(tokens=10), model=SWIN_B) == 10 * (2 * 128 + 2 * 256 + 18 * 512 + 2 * 1024)
    tuned = vpeft.tune(base_vit(), CVPT(tokens=20), show=False)
    tokens = torch.cat([p.flatten() for _, p in tuned.trainable()])
    bound = (6 / (20 * 48 + 3 * 48)) ** 0.5
    assert 0.98 * bound < tokens.abs().max() <= bound
    assert not tuned.plan().mergeable
    with pytest.raises(vpeft.MissingPlace, match=r"attn\.core"):
        vpeft.tune(tiny_convnext(), CVPT(), show=False)
