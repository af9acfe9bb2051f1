"""PAE: the start by frequency and the penalty restated, counted; collapse."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

import vpeft
from tests.golden.by_hand import ViTByHand, randomise
from tests.golden.counts import SWIN_B, trained
from tests.golden.parity import base_vit
from tests.models import images_for, tiny_swin
from vpeft.methods import PAE, VPTDeep


def test_starts_from_the_windows_that_the_task_needs() -> None:
    model, images, labels = base_vit(), images_for(base_vit(), 6), torch.tensor([0, 1, 2, 0, 1, 2])
    tuned = vpeft.tune(base_vit(), PAE(tokens=3, window=8, stride=12), num_classes=3, show=False)
    weight, bias = tuned.head.weight.detach(), tuned.head.bias.detach()
    tuned.train()
    tuned.prepare([(images, labels), (images + 1, labels)])  # only the first batch is looked at
    assert tuned.training
    hand, losses, shown = ViTByHand(model), [], []
    spectrum = torch.fft.fftshift(torch.fft.fft2(images), dim=(-2, -1))
    for top in (0, 12, 24):
        for left in (0, 12, 24):
            kept = torch.zeros_like(spectrum)
            kept[..., top : top + 8, left : left + 8] = spectrum[..., top : top + 8, left : left + 8]
            pixels = torch.fft.ifft2(torch.fft.ifftshift(kept, dim=(-2, -1))).real
            x = model._pos_embed(model.patch_embed(pixels))
            shown.append(x[:, 1:])
            for i in range(3):
                x = hand.block(i, torch.cat([x[:, :1], torch.zeros(6, 3, 48), x[:, 1:]], dim=1))
                x = torch.cat([x[:, :1], x[:, 4:]], dim=1)
            losses.append(F.cross_entropy(model.norm(x)[:, 0] @ weight.T + bias, labels))
    best = torch.stack(losses).argsort()[:3]
    prompts = []
    for number in best.tolist():
        tokens = shown[number].flatten(0, 1)
        energy = tokens.square().sum(1)
        prompts.append(energy @ tokens / energy.sum())
    expected = torch.stack(prompts)
    own = dict(tuned.trainable())
    for i in range(3):
        found = own[f"blocks.{i}.insert_tokens.tokens"]
        assert torch.allclose(found, expected, atol=1e-4, rtol=1e-3), i
        expected = hand.block(i, expected[None])[0]


@pytest.mark.parametrize("first", [True, False])
def test_penalty_equals_a_restatement_with_its_gradients(first: bool) -> None:
    method = PAE(tokens=4, start="vpt", dim=5, koopman=0.7, lyapunov=0.3, first=first)
    tuned = vpeft.tune(base_vit(), method, show=False).eval()
    randomise(tuned)
    own = {key: p.detach().clone().requires_grad_() for key, p in tuned.trainable()}
    name = "blocks.0.insert_tokens.evolution"
    K, L, W = own[f"{name}.K"], own[f"{name}.L"], own[f"{name}.into.48.weight"]
    Q = L.T @ L
    Q = Q / (torch.linalg.svdvals(Q).max() + 1e-8)
    expected = torch.zeros(())
    for i in range(0 if first else 1, 2):
        z, then = (own[f"blocks.{j}.insert_tokens.tokens"] @ W.T for j in (i, i + 1))
        told = z @ K
        growth = []
        for a, b in zip(z, told, strict=True):
            a, b = (v if v.norm() < 1 else v / v.norm() for v in (a, b))
            growth.append(torch.log1p(torch.exp(b @ Q @ b - a @ Q @ a)))
        expected = expected + 0.7 * ((told - then) ** 2).mean()
        expected = expected + 0.3 * 10 * torch.tanh(torch.stack(growth).mean() / 10)
    found = tuned.penalty()
    assert torch.allclose(found, expected, atol=1e-5)
    found.backward()
    expected.backward()
    for key, parameter in tuned.trainable():
        if own[key].grad is None:
            assert parameter.grad is None
        else:
            assert torch.allclose(parameter.grad, own[key].grad, atol=1e-4), key
    assert (own["blocks.0.insert_tokens.tokens"].grad is None) != first


def test_collapses_to_vpt() -> None:
    images = images_for(base_vit())
    tuned = vpeft.tune(base_vit(), PAE(tokens=4, start="vpt", dim=8), num_classes=3, show=False).eval()
    randomise(tuned)
    method, state = tuned.methods()[0].collapse(tuned)
    assert type(method) is VPTDeep
    again = vpeft.tune(base_vit(), method, num_classes=3, show=False).eval()
    again.load_adapter_state(state)
    assert torch.equal(again(images), tuned(images))


def test_counts_and_refuses() -> None:
    assert trained(PAE()) == 92_160 + 768 * 256 + 2 * 256**2
    widths = (128 + 256 + 512 + 1024) * 16
    prompts = 10 * (2 * 128 + 2 * 256 + 18 * 512 + 2 * 1024)
    assert trained(PAE(start="vpt", dim=16), model=SWIN_B) == prompts + widths + 2 * 16**2
    with pytest.raises(vpeft.MissingPlace, match="attends within windows"):
        vpeft.tune(tiny_swin(), PAE(), show=False)
    with pytest.raises(vpeft.MissingPlace, match="have 9"):
        vpeft.tune(base_vit(), PAE(), show=False)
    with pytest.raises(vpeft.VpeftError, match="leave `project` out"):
        vpeft.tune(base_vit(), PAE(project=8), show=False)
