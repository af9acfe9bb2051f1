"""BatchNorm statistics: still by default; with `statistics="adapt"` the adapter's own, saved, restored, taken off."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import nn

import vpeft
from tests.families.timm_conv import tiny_efficientnet
from tests.models import images_for, tiny_vit
from vpeft.injection.tuned_model import TunedModel
from vpeft.methods import LNTune, LoRA, Method


def base() -> nn.Module:
    torch.manual_seed(0)
    return tiny_efficientnet()


def trained(method: Method, statistics: str) -> TunedModel:
    tuned = vpeft.tune(base(), method, num_classes=3, statistics=statistics, verify=False, show=False)
    tuned.train()
    optimizer = torch.optim.SGD([p for _, p in tuned.trainable()], lr=1e-3)
    for _ in range(2):
        tuned(images_for(tuned.backbone)).square().sum().backward()
        optimizer.step()
    return tuned.eval()


def running(model: nn.Module) -> dict[str, torch.Tensor]:
    return {key: value.clone() for key, value in model.named_buffers() if "running" in key}


@pytest.mark.parametrize("method", [LNTune(), LoRA(rank=2, targets=("all",))], ids=lambda method: method.name)
def test_statistics_hold_still_by_default(method: Method) -> None:
    tuned, before = trained(method, "frozen"), running(base())
    assert all(value.equal(before[key]) for key, value in running(tuned.backbone).items())
    assert not [key for key in tuned.adapter_state() if "running" in key]


def test_adapted_statistics_belong_to_the_adapter(tmp_path: Path) -> None:
    model = base()
    images = images_for(model)
    plain, before = model(images), running(model)
    tuned = trained(LNTune(), "adapt")
    out = tuned(images)
    moved = running(tuned.backbone)
    assert all(not moved[key].equal(value) for key, value in before.items())
    tuned.save(tmp_path / "a.safetensors")
    again = vpeft.load(base(), tmp_path / "a.safetensors").eval()
    assert torch.equal(again(images), out)
    assert all(value.equal(moved[key]) for key, value in running(again.backbone).items())
    assert torch.equal(copy.deepcopy(tuned)(images), out)
    assert torch.allclose(tuned.double().float()(images), out)  # moving a module makes new buffers
    with tuned.disable():
        assert torch.equal(tuned.features(images), plain)
    back = tuned.detach()
    assert all(value.equal(before[key]) for key, value in running(back).items())


def test_two_adapters_keep_their_own() -> None:
    tuned = trained(LNTune(), "adapt")
    own = running(tuned.backbone)
    tuned.attach(LoRA(rank=2, targets=("all",)), name="other", num_classes=3)
    tuned.train()
    tuned(images_for(tuned.backbone))
    assert all(value.equal(own[key]) is False for key, value in running(tuned.backbone).items())
    tuned.enable("default")
    assert all(value.equal(own[key]) for key, value in running(tuned.backbone).items())
    tuned.train()
    assert any(module.training for module in tuned.backbone.modules() if isinstance(module, nn.BatchNorm2d))


def test_a_backbone_without_batch_norm_has_nothing_to_adapt() -> None:
    with pytest.raises(vpeft.VpeftError, match="no BatchNorm layer"):
        vpeft.tune(tiny_vit(), LNTune(), statistics="adapt", show=False)
