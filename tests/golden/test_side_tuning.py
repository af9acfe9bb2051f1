"""Side-tuning against its equation, VPT's baseline count, and what it keeps in memory."""

from __future__ import annotations

import pytest
import timm
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import vpeft
from tests.golden.saved import saved_by
from tests.models import images_for, tiny_convnext, tiny_swin, tiny_vit
from vpeft.methods import SideTuning


def _side(p: dict[str, Tensor], x: Tensor) -> Tensor:
    for i in range(4):
        x = F.conv2d(x, p[f"side.features.{3 * i}.weight"], stride=2, padding=1)
        mean, var = x.mean((1, 2, 3), keepdim=True), x.var((1, 2, 3), keepdim=True, unbiased=False)
        x = (x - mean) / (var + 1e-5).sqrt()
        x = (
            x * p[f"side.features.{3 * i + 1}.weight"][:, None, None]
            + p[f"side.features.{3 * i + 1}.bias"][:, None, None]
        )
        x = x.clamp(min=0)
    return x.mean((2, 3)) @ p["side.project.weight"].T + p["side.project.bias"]


def _joined(join: str, p: dict[str, Tensor], b: Tensor, s: Tensor) -> Tensor:
    def linear(key: str, x: Tensor) -> Tensor:
        return x @ p[f"{key}.weight"].T + p[f"{key}.bias"]

    if join == "alpha":
        share = 1 / (1 + torch.exp(-p["alpha"]))
        return share * b + (1 - share) * s
    if join == "film":
        halves = (s @ p["read.0.weight"].T).unflatten(1, (2, -1))  # a norm over each half of the channels
        centred = halves - halves.mean(-1, keepdim=True)
        normed = (centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt()).flatten(1)
        read = (normed * p["read.1.weight"] + p["read.1.bias"]).clamp(min=0)
        return b * (linear("scale", read) + s) + (linear("shift", read) + s)
    if join == "mlp":
        return linear("mlp.2", linear("mlp.0", b).clamp(min=0)) + s
    return b + s if join == "sum" else b * s


@pytest.mark.parametrize("join", ["alpha", "sum", "product", "film", "mlp"])
@pytest.mark.parametrize("make", [tiny_vit, tiny_swin, tiny_convnext])
def test_equals_a_restatement(make: type, join: str) -> None:
    model = make()
    images = images_for(model)
    with torch.no_grad():
        frozen = model(images)
    tuned = vpeft.tune(model, SideTuning(join=join, hidden=8), show=False).eval()
    for _, parameter in tuned.trainable():
        nn.init.normal_(parameter, std=0.3)
    p = {key.removeprefix("outlet.after."): value.detach() for key, value in tuned.trainable()}
    expected = _joined(join, p, frozen, _side(p, images))
    assert torch.allclose(tuned.features(images), expected, atol=1e-5, rtol=1e-4)


def test_it_starts_as_half_and_half_with_one_number() -> None:
    tuned = vpeft.tune(tiny_vit(), SideTuning(), show=False)
    assert tuned.adapter().get_submodule("outlet.after").alpha.shape == ()
    assert torch.sigmoid(tuned.adapter().get_submodule("outlet.after").alpha).item() == 0.5
    fixed = vpeft.tune(tiny_vit(), SideTuning(alpha=1.0, learn_alpha=False), show=False)
    assert "outlet.after.alpha" not in dict(fixed.trainable())
    assert fixed.adapter_state()["outlet.after.alpha"].item() == 1.0  # it is saved all the same


def test_count_of_the_alexnet_baseline() -> None:
    with torch.device("meta"):
        model = timm.create_model("vit_base_patch16_224", num_classes=0)
    plan = vpeft.tune(model, SideTuning(side="alexnet"), verify=False, show=False).plan()
    assert plan.trainable == 2_469_696 + 9216 * 768 + 1
    assert plan.reach == "none"


def test_alexnet_takes_small_images_too() -> None:
    model = tiny_vit()
    images = images_for(model)
    tuned = vpeft.tune(model, SideTuning(side="alexnet"), show=False).eval()
    with torch.no_grad():
        one, two = tuned.features(images).unbind(0)
    assert not torch.equal(one, two)


@pytest.mark.parametrize("make", [tiny_vit, tiny_swin, tiny_convnext])
def test_nothing_of_the_trunk_is_saved(make: type) -> None:
    model = make()
    images = images_for(model)
    saved = saved_by(vpeft.tune(model, SideTuning(), num_classes=3, show=False), images)
    assert sum(saved.within) == 0
    assert saved.beyond == []
