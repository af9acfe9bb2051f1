"""AdaptIR restated, counted, with its statistics and its start."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

import vpeft
from tests.golden.by_hand import ViTByHand, randomise
from tests.golden.counts import trained
from tests.golden.parity import base_vit
from tests.models import images_for
from vpeft.methods import AdaptIR


def test_equals_a_restatement() -> None:
    tuned = vpeft.tune(base_vit(), AdaptIR(reduction=6), show=False).eval()
    randomise(tuned, 0.3)
    own, plain, changes = dict(tuned.trainable()), base_vit(), {}
    for i in range(3):
        layer = tuned.adapter().get_submodule(f"blocks.{i}.mlp.parallel")
        layer.norm.running_mean.fill_(0.2)
        layer.norm.running_var.fill_(1.7)
        t = {key.removeprefix(f"blocks.{i}.mlp.parallel."): value for key, value in own.items()}
        changes[f"blocks.{i}.mlp"] = lambda y, x, t=t: y + by_hand(x, t)
    images = images_for(plain)
    expected = ViTByHand(plain, changes)(images)
    parameters = list(own.values())
    wanted = torch.autograd.grad(expected.square().sum(), parameters)
    found = tuned.features(images)
    assert torch.allclose(found, expected, atol=1e-4, rtol=1e-4)
    for name, a, b in zip(own, torch.autograd.grad(found.square().sum(), parameters), wanted, strict=True):
        assert torch.allclose(a, b, atol=1e-4 * float(b.abs().max() + 1e-3), rtol=1e-3), name


def by_hand(tokens: Tensor, t: dict[str, Tensor]) -> Tensor:
    """The class token is an image of one pixel."""
    return torch.cat([by_hand_on_map(tokens[:, :1], t, 1), by_hand_on_map(tokens[:, 1:], t, 4)], dim=1)


def by_hand_on_map(cells: Tensor, t: dict[str, Tensor], side: int) -> Tensor:
    """(B, side * side, D) -> the same shape."""
    batch, _, width = cells.shape
    h = t["A"].shape[0]
    x = cells @ t["head.weight"].reshape(h, width).T + t["head.bias"]
    x = (
        ((x - 0.2) / (1.7 + 1e-5) ** 0.5 * t["norm.weight"] + t["norm.bias"])
        .transpose(1, 2)
        .reshape(batch, h, side, side)
    )
    kernel, padded = (t["A"] @ t["B"]).reshape(h, 3, 3), F.pad(x, (1, 1, 1, 1))
    near = t["local_bias"][:, None, None] + sum(
        padded[:, :, r : r + side, c : c + side] * kernel[:, r, c][:, None, None] for r in range(3) for c in range(3)
    )
    spectrum = torch.fft.fft2(x, norm="ortho")[..., : side // 2 + 1]
    bend = [
        t[f"{n}.weight"].reshape(h, 1, 1) * v + t[f"{n}.bias"].reshape(h, 1, 1)
        for n, v in (("amplitude", spectrum.abs()), ("phase", torch.atan2(spectrum.imag, spectrum.real)))
    ]
    back = torch.complex(bend[0] * bend[1].cos(), bend[0] * bend[1].sin())
    far = torch.fft.irfft2(back, s=(side, side), norm="ortho").abs()
    flat = x.flatten(2)
    share = (torch.einsum("c,bcn->bn", t["compress.weight"].flatten(), flat) + t["compress.bias"]).softmax(-1)
    mean = torch.einsum("bcn,bn->bc", flat, share)
    score = F.gelu(mean @ t["channel.0.weight"].T + t["channel.0.bias"]) @ t["channel.2.weight"].T + t["channel.2.bias"]
    squeezed = F.gelu(far.mean((2, 3)) @ t["gate_in.weight"].flatten(1).T + t["gate_in.bias"])
    gate = torch.sigmoid(squeezed @ t["gate_out.weight"].flatten(1).T + t["gate_out.bias"])[..., None, None]
    place = torch.sigmoid(torch.einsum("c,bchw->bhw", t["gate_local.weight"].flatten(), near) + t["gate_local.bias"])
    mixed = score[..., None, None] * (gate * near + place[:, None] * far)
    return torch.einsum("dc,bcn->bnd", t["tail.weight"].flatten(1), mixed.flatten(2))


def test_counts_and_starts() -> None:
    C, h, r = 768, 32, 16
    one = (C * h + h) + 2 * h + (h * r + r * 9 + h) + 4 * h + (h + 1) + (h * r + r + r * h + h) + h * C
    one += (h * (h // 8) + h // 8 + (h // 8) * h + h) + (h + 1)
    assert trained(AdaptIR()) == 12 * one == 617_928
    assert vpeft.tune(base_vit(), AdaptIR(), show=False).verify().identity


def test_statistics_move_and_are_saved(tmp_path: Path) -> None:
    tuned = vpeft.tune(base_vit(), AdaptIR(), num_classes=2, show=False)
    images = images_for(tuned.backbone)
    tuned.train()(images)
    tuned.eval()
    mean = tuned.adapter().get_submodule("blocks.0.mlp.parallel.norm").running_mean
    assert bool(mean.any())
    again = vpeft.load(base_vit(), tuned.save(tmp_path / "a.safetensors")).eval()
    assert torch.equal(again(images), tuned(images))
    assert torch.equal(again.adapter().get_submodule("blocks.0.mlp.parallel.norm").running_mean, mean)
