"""EVP restated in pixel values, counted; its gradient."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

import vpeft
from tests.golden.by_hand import ViTByHand, randomise
from tests.golden.counts import trained
from tests.golden.parity import base_vit
from tests.models import images_for
from vpeft.methods import EVP

MEAN, STD = (torch.tensor(v)[:, None, None] for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))


def framed(pixels, delta):  # type: ignore[no-untyped-def]
    small = F.interpolate(pixels, size=(24, 24), mode="bicubic", antialias=True)
    canvas = torch.zeros_like(pixels)
    canvas[..., 4:28, 4:28] = small
    return (canvas + delta - MEAN) / STD


def test_equals_a_restatement_and_the_gradient_has_norm_one() -> None:
    tuned = vpeft.tune(base_vit(), EVP(width=4), show=False).eval()
    randomise(tuned)
    own = {key.rpartition(".")[2]: p for key, p in tuned.trainable()}
    delta = torch.zeros(3, 32, 32)
    delta[:, :4], delta[:, 28:] = own["up"], own["down"]
    delta[:, 4:28, :4], delta[:, 4:28, 28:] = own["left"], own["right"]
    delta = delta.detach().requires_grad_()
    x = images_for(base_vit())
    expected = ViTByHand(base_vit(), {})(framed(x * STD + MEAN, delta))
    assert torch.allclose(tuned.features(x), expected, atol=1e-4)

    direction = torch.randn(2, 48)
    (tuned.features(x) * direction).sum().backward()
    (whole,) = torch.autograd.grad((expected * direction).sum(), delta)
    whole = whole / whole.norm()
    assert torch.allclose(own["up"].grad, whole[:, :4], atol=1e-5)
    assert torch.allclose(own["right"].grad, whole[:, 4:28, 28:], atol=1e-5)
    assert whole[:, 4:28, 4:28].norm() > 0.1  # the hidden part takes its share of the norm


def test_counts_starts_and_refuses() -> None:
    assert trained(EVP()) == 69_840
    tuned = vpeft.tune(base_vit(), EVP(width=4), show=False).eval()
    x = images_for(base_vit())
    assert torch.allclose(tuned.features(x), base_vit()(framed(x * STD + MEAN, 0.0)), atol=1e-5)
    with pytest.raises(vpeft.MissingPlace, match="no room inside a border of 16"):
        vpeft.tune(base_vit(), EVP(width=16), show=False)
    with pytest.raises(vpeft.MissingPlace, match="3 channels"):
        vpeft.tune(base_vit(), EVP(width=4, mean=(0.5,)), show=False)
