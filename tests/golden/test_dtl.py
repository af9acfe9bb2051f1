"""DTL and DTL+ against the authors' numbers, a restatement, the published counts, and what they keep in memory."""

from __future__ import annotations

import pytest
import timm
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import vpeft
from tests.golden.parity import reproduce
from tests.golden.saved import saved_by
from tests.models import images_for, tiny_convnext, tiny_swin, tiny_vit
from vpeft.method import BadField
from vpeft.methods import DTL, DTLPlus


def test_equals_the_authors_code() -> None:
    mapping = {
        f"blocks.{i}.input.tap.{letter}": lambda t, i=i, letter=letter: t[f"lora_dict.{i}.lora_{letter}"]
        for i in range(3)
        for letter in "AB"
    }
    reproduce("dtl", "vit", DTL(rank=4, first_write=1), mapping)


def _randomise(tuned: vpeft.TunedModel) -> dict[str, Tensor]:
    for _, parameter in tuned.trainable():
        nn.init.normal_(parameter, std=0.2)
    return {key: value.detach() for key, value in tuned.trainable()}


def _theta(h: Tensor, beta: float) -> Tensor:
    return h * torch.sigmoid(beta * h)


@pytest.mark.parametrize("pooling", ["token", "avg"])
@pytest.mark.parametrize(("kernel", "beta"), [(None, 100.0), (3, 2.0), (4, 2.0)])
def test_equals_a_restatement_on_vit(pooling: str, kernel: int | None, beta: float) -> None:
    model = tiny_vit(global_pool=pooling)
    images = images_for(model)
    method = (
        DTL(rank=2, beta=beta, first_write=1) if kernel is None else DTLPlus(beta=beta, first_write=1, kernel=kernel)
    )
    tuned = vpeft.tune(model, method, show=False).eval()
    p = _randomise(tuned)
    with tuned.disable(), torch.no_grad():
        x, h = model._pos_embed(model.patch_embed(images)), 0.0
        for i, block in enumerate(model.blocks):
            h = h + x @ p[f"blocks.{i}.input.tap.A"].T @ p[f"blocks.{i}.input.tap.B"].T
            x = block(x)
            if i < 1:
                continue
            change = _theta(h, beta)
            if kernel is not None:
                patches = change[:, 1:].transpose(1, 2).reshape(2, 48, 4, 4)
                low = (kernel - 1) // 2
                patches = F.pad(patches, (low, kernel - 1 - low, low, kernel - 1 - low))
                mixed = F.conv2d(patches, p["blocks.1.after.fusion.weight"], groups=48)
                change = torch.cat([change[:, :1], mixed.flatten(2).transpose(1, 2)], dim=1)
            x = x + change
        norm = model.norm if pooling == "token" else model.fc_norm
        expected = norm(x[:, 1:].mean(1))
    assert torch.allclose(tuned.features(images), expected, atol=1e-5)


def test_equals_a_restatement_on_swin() -> None:
    model = tiny_swin()
    images = images_for(model)
    tuned = vpeft.tune(model, DTLPlus(rank=3, first_read=1, first_write=1, kernel=3), show=False).eval()
    p = _randomise(tuned)
    convs = ["blocks.1.after.fusion.weight", "blocks.2.after.fusion.weight"]
    assert sum(key.endswith("fusion.weight") for key in p) == 2  # one for each stage
    with tuned.disable(), torch.no_grad():
        x, i = model.patch_embed(images), 0
        for stage, layer in enumerate(model.layers):
            x, h = layer.downsample(x), 0.0  # the sum starts again
            for block in layer.blocks:
                if i >= 1:
                    h = h + x @ p[f"blocks.{i}.input.tap.A"].T @ p[f"blocks.{i}.input.tap.B"].T
                x = block(x)
                if i >= 1:
                    weight = p[convs[stage]]
                    change = F.conv2d(_theta(h, 100.0).permute(0, 3, 1, 2), weight, padding=1, groups=len(weight))
                    x = x + change.permute(0, 2, 3, 1)
                i += 1
        expected = model.forward_head(model.norm(x))
    assert torch.allclose(tuned.features(images), expected, atol=1e-5)


@pytest.mark.parametrize(("method", "count"), [(DTL(), 36_864), (DTLPlus(), 43_776), (DTLPlus(kernel=5), 56_064)])
def test_count_is_the_published_one(method: DTL, count: int) -> None:
    with torch.device("meta"):
        model = timm.create_model("vit_base_patch16_224", num_classes=0)
    plan = vpeft.tune(model, method, verify=False, show=False).plan()
    assert plan.trainable == count
    assert plan.reach == "from block 6"


def test_count_on_swin() -> None:
    with torch.device("meta"):
        model = timm.create_model("swin_base_patch4_window7_224", num_classes=0)
    plan = vpeft.tune(model, DTL(rank=4, first_read=4, first_write=14), verify=False, show=False).plan()
    assert plan.trainable == 2 * 4 * (18 * 512 + 2 * 1024)


@pytest.mark.parametrize("make", [tiny_vit, tiny_swin, tiny_convnext])
def test_step_zero_is_the_frozen_model_but_for_the_pooling(make: type) -> None:
    model = make()
    images = images_for(model)
    plain = model(images)
    tuned = vpeft.tune(model, DTL(pooling="backbone"), show=False).eval()  # verify checks it too
    assert torch.equal(tuned.features(images), plain)


def test_blocks_before_the_first_write_save_nothing() -> None:
    model = tiny_vit(depth=4)
    images = images_for(model)
    saved = saved_by(vpeft.tune(model, DTL(), num_classes=3, show=False), images)
    assert saved.within[:2] == [0, 0]
    assert saved.within[2] <= 4 < saved.within[3]  # block 2 itself saves nothing, its write-back does


def test_theta_keeps_its_small_negative_lobe() -> None:
    write = vpeft.tune(tiny_vit(), DTL(), verify=False, show=False).adapter().get_submodule("blocks.1.after")
    h = torch.tensor([[-0.01, 1.0]])
    assert write(torch.zeros(1, 2), h)[0].tolist() == pytest.approx([-0.01 * 0.2689414, 1.0], abs=1e-6)


def test_a_write_before_the_first_read_is_refused() -> None:
    with pytest.raises(BadField, match="first read"):
        vpeft.tune(tiny_vit(), DTL(first_read=2, first_write=1), show=False)
    with pytest.raises(BadField, match="3 blocks"):
        vpeft.tune(tiny_vit(), DTL(first_write=3), show=False)
