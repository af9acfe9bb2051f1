"""Backbones that give maps to a detector: tuned inside it, pooled as the mean of their last map, refused where dead."""

from __future__ import annotations

from typing import Any

import pytest
import timm
import torch
from torch import nn

import vpeft
from tests.models import roughen
from vpeft.backbones.describe import UnknownBackbone
from vpeft.methods import AdaptFormer, LoRA

SMALL = {
    "num_queries": 3,
    "d_model": 16,
    "encoder_layers": 1,
    "decoder_layers": 1,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 16,
    "decoder_ffn_dim": 16,
}


def _detr() -> Any:
    transformers: Any = pytest.importorskip("transformers")
    inner = transformers.SwinConfig(
        image_size=32, patch_size=2, embed_dim=12, depths=[2, 2], num_heads=[2, 2], window_size=4, drop_path_rate=0.0
    )
    inner.out_features = ["stage2"]
    torch.manual_seed(0)
    return transformers.DetrForObjectDetection(transformers.DetrConfig(**SMALL, backbone_config=inner)).eval()


def test_a_detector_runs_with_what_is_tuned_inside_it() -> None:
    detr, images = _detr(), torch.randn(1, 3, 32, 32)
    described = vpeft.describe(detr)
    assert described.host is detr and described.module is detr.get_submodule("model.backbone.model")
    with torch.no_grad():
        plain = detr(images).logits
    part = detr.get_submodule("model.backbone.model")
    tuned = vpeft.tune(part, LoRA(rank=2), AdaptFormer(bottleneck=2), show=False).eval()
    with torch.no_grad():
        assert torch.equal(detr(images).logits, plain)
        for _, parameter in tuned.trainable():
            parameter.add_(torch.randn_like(parameter))
        assert not torch.allclose(detr(images).logits, plain, atol=1e-4)
    detr(images).logits.sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for _, p in tuned.trainable())
    with tuned.disable(), torch.no_grad():
        assert torch.equal(detr(images).logits, plain)


def test_a_map_that_is_not_of_the_last_stage_is_refused() -> None:
    transformers: Any = pytest.importorskip("transformers")
    config = transformers.Dinov2Config(
        hidden_size=24, num_hidden_layers=2, num_attention_heads=2, image_size=32, patch_size=8, out_features=["stage1"]
    )
    with pytest.raises(UnknownBackbone, match=r"maps of stage1, so that edits behind.*end with 'stage2'"):
        vpeft.describe(transformers.Dinov2Backbone(config))


def _features(name: str, **options: Any) -> nn.Module:
    torch.manual_seed(0)
    made: nn.Module = timm.create_model(name, features_only=True, **options)
    return roughen(made).eval()  # fresh residual branches end with a scale of zero


def test_the_maps_of_a_resnet_are_described_as_the_resnet() -> None:
    net, images = _features("resnet10t"), torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        last = net(images)[-1].mean((2, 3))
    tuned = vpeft.tune(net, LoRA(rank=2, targets=("conv",)), num_classes=3, show=False).eval()
    assert torch.equal(tuned.features(images), last) and tuned.description.facts.width == last.shape[1]
    whole = vpeft.describe(timm.create_model("resnet10t", num_classes=0))
    names = [[place.name for place in described.projections] for described in (tuned.description, whole)]
    assert names[0] == names[1]
    with torch.no_grad():
        for _, parameter in tuned.trainable():
            parameter.add_(0.1 * torch.randn_like(parameter))
        before = tuned(images)
        assert torch.allclose(tuned.merge()(images), before, atol=1e-4)


def test_maps_of_other_nets_are_refused_with_a_sentence() -> None:
    net = timm.create_model("test_convnext", features_only=True)
    with pytest.raises(UnknownBackbone, match="make others without it"):
        vpeft.describe(net)
