"""Patch merging and norms: equal to unfreezing these by hand, and the counts of Swin-T."""

from __future__ import annotations

import copy

import timm
import torch

import vpeft
from tests.models import images_for, tiny_swin, tiny_vit
from vpeft.methods import get

METHOD = get("merging_and_norms")
TRAINED = ("downsample.reduction", "norm", "patch_embed", "relative_position_bias_table")


def test_gradients_are_those_of_unfreezing_by_hand() -> None:
    model = tiny_swin()
    plain = copy.deepcopy(model).requires_grad_(False)
    for name, parameter in plain.named_parameters():
        parameter.requires_grad_(any(part in name for part in TRAINED))
    images = images_for(model)
    tuned = vpeft.tune(model, METHOD(), head=torch.nn.Identity()).eval()
    features = plain.forward_head(plain.forward_features(images), pre_logits=True)
    torch.testing.assert_close(tuned(images), features, rtol=1e-5, atol=1e-5)
    features.square().sum().backward()
    tuned(images).square().sum().backward()
    expected = {name: p.grad for name, p in plain.named_parameters() if p.requires_grad}
    found = sorted((tuple(p.shape), float(p.grad.norm())) for _, p in tuned.trainable())
    wanted = sorted((tuple(grad.shape), float(grad.norm())) for grad in expected.values() if grad is not None)
    assert [shape for shape, _ in found] == [shape for shape, _ in wanted]
    for (_, one), (_, other) in zip(found, wanted, strict=True):
        assert abs(one - other) <= 1e-4 * max(1.0, other)


def test_counts_of_swin_t() -> None:
    with torch.device("meta"):
        tuned = vpeft.tune(timm.create_model("swin_tiny_patch4_window7_224"), METHOD(), num_classes=2)
    assert tuned.plan().trainable == 1_548_288 + 52_794
    with torch.device("meta"):
        frozen = vpeft.tune(timm.create_model("swin_tiny_patch4_window7_224"), METHOD(merging="frozen"), num_classes=2)
    assert frozen.plan().trainable == 52_794


def test_a_plain_vit_has_norms_and_patches_alone() -> None:
    tuned = vpeft.tune(tiny_vit(), METHOD(), num_classes=2)
    trained = {key for key, _ in tuned.trainable() if not key.startswith("head.")}
    assert trained and all("norm" in key or key.startswith("patch") for key in trained)
