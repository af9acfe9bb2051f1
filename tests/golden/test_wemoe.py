"""WEMoE: its layers against weights that are mixed for each image, and the parameters of the paper's routers."""

from __future__ import annotations

import pytest
import timm
import torch
from torch.nn import functional

import vpeft
from vpeft.methods.wemoe import MixedWeights, Router, WEMoE


@pytest.mark.parametrize("layers", [1, 2])
def test_layers_and_gradients(layers: int) -> None:
    torch.manual_seed(0)
    router, mixed = Router(6, 3, layers, 0.3).double(), MixedWeights(6, 5, 3).double()
    for value in (*router.parameters(), *mixed.parameters()):
        torch.nn.init.normal_(value)
    x = torch.randn(2, 4, 4, 6, dtype=torch.float64, requires_grad=True)
    other = x.detach().clone().requires_grad_()
    rows = []
    for image in other:
        tokens = image.flatten(0, 1)
        linear = [step for step in router.steps if isinstance(step, torch.nn.Linear)]
        inner = tokens if layers == 1 else (tokens @ linear[0].weight.T + linear[0].bias).relu()
        weights = (inner @ linear[-1].weight.T + linear[-1].bias).mean(0)
        change = sum(weight * one for weight, one in zip(weights, mixed.changes, strict=True))
        shift = sum(weight * one for weight, one in zip(weights, mixed.shift, strict=True))
        rows.append(functional.linear(image, change, shift))
    expected, found = torch.stack(rows), mixed(x, router(x))
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    pull = torch.randn_like(found)
    (gradient,) = torch.autograd.grad((found * pull).sum(), x)
    (wanted,) = torch.autograd.grad((expected * pull).sum(), other)
    torch.testing.assert_close(gradient, wanted, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(("layers", "count"), [(2, 7_160_928), (1, 73_824)])
def test_parameters_of_the_routers(layers: int, count: int) -> None:
    with torch.device("meta"):
        model = timm.create_model("vit_base_patch32_224", num_classes=0)
        tuned = vpeft.tune(model, WEMoE(experts=8, layers=layers), num_classes=1, verify=False)
    assert sum(value.numel() for key, value in tuned.trainable() if ".tap." in key) == count
    start = {key: value for key, value in tuned.trainable() if "changes" in key}
    assert sum(value.numel() for value in start.values()) == 12 * 8 * 2 * 768 * 3072
