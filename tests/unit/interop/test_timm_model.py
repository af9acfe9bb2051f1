"""A tuned backbone in code that was written for models of timm."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import vpeft
from tests.unit.interop.adapters import adapted, backbone, close, images
from vpeft.interop.timm_model import NotOfTimm, timm_model
from vpeft.methods import LoRA, VPTDeep

METHODS = [LoRA(rank=2), VPTDeep(tokens=2)]


@pytest.mark.parametrize("family", ["timm_vit", "timm_convnext", "timm_swin"])
@pytest.mark.parametrize("method", METHODS, ids=lambda one: one.name)
def test_features_and_heads(family: str, method: vpeft.Method) -> None:
    if method.name == "vpt_deep" and family == "timm_convnext":
        pytest.skip("a map takes no tokens")
    tuned = adapted(family, method)
    x, model = images(tuned.backbone), timm_model(tuned)
    with torch.no_grad():
        tokens = model.forward_features(x)
        assert close(model.forward_head(tokens, pre_logits=True), tuned.features(x))
        assert close(model.forward_head(tokens), tuned(x)) and torch.equal(model(x), tuned(x))
        plain = backbone(family)
        assert not close(tokens, plain.forward_features(x), 1e-3) and tokens.shape == plain.forward_features(x).shape
    assert model.num_classes == 5 and model.get_classifier() is tuned.head
    assert model.num_features == plain.num_features


def test_intermediates_are_those_of_the_adapter() -> None:
    tuned = adapted("timm_vit", LoRA(rank=2))
    x, model = images(tuned.backbone), timm_model(tuned)
    merged = adapted("timm_vit", LoRA(rank=2)).merge()
    with torch.no_grad():
        last, between = model.forward_intermediates(x, indices=[0, 2])
        wanted_last, wanted = merged.backbone.forward_intermediates(x, indices=[0, 2])
    assert close(last, wanted_last) and all(close(a, b) for a, b in zip(between, wanted, strict=True))


def test_classifiers_are_put_in_and_taken_out(tmp_path: Path) -> None:
    tuned = adapted("timm_vit", LoRA(rank=2))
    model = timm_model(tuned, num_classes=0)
    x = images(tuned.backbone)
    assert torch.equal(model(x), tuned.features(x)) and isinstance(model.get_classifier(), torch.nn.Identity)
    model.reset_classifier(7)
    assert model(x).shape == (3, 7) and model.num_classes == 7
    with pytest.raises(NotOfTimm, match="another model"):
        model.reset_classifier(7, "avg")
    path = tuned.save(tmp_path / "a.safetensors")
    assert torch.equal(timm_model(path, backbone=backbone("timm_vit"))(x), tuned(x))
    with pytest.raises(NotOfTimm, match="pass it as"):
        timm_model(path)
    with pytest.raises(NotOfTimm, match="backbones of timm"):
        timm_model(adapted("torchvision_resnet", LoRA(rank=2)))
