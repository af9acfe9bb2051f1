"""Visual prompting in pixels against a restatement, and the paper's count."""

from __future__ import annotations

import copy

import pytest
import timm
import torch
from torch import Tensor, nn

import vpeft
from tests.models import FAMILIES, images_for, tiny_vit
from vpeft.methods import VisualPromptingPixel


@pytest.mark.parametrize("family", list(FAMILIES))
def test_the_border_is_added_to_the_image(family: str) -> None:
    plain: nn.Module = FAMILIES[family]()
    images = images_for(plain)
    size = images.shape[-1]
    tuned = vpeft.tune(copy.deepcopy(plain), VisualPromptingPixel(width=5), show=False)
    layer = tuned.adapter().get_submodule("pixels.before")
    changed = images.clone()
    changed[:, :, :5] += layer.up
    changed[:, :, -5:] += layer.down
    changed[:, :, 5 : size - 5, :5] += layer.left
    changed[:, :, 5 : size - 5, -5:] += layer.right
    assert torch.equal(changed[:, :, 5:-5, 5:-5], images[:, :, 5:-5, 5:-5])
    assert torch.allclose(tuned.features(images), plain(changed), atol=1e-6)


def test_the_fixed_patch_sits_in_the_corner() -> None:
    plain = tiny_vit()
    images = images_for(plain)
    tuned = vpeft.tune(copy.deepcopy(plain), VisualPromptingPixel(width=6, shape="fixed_patch"), show=False)
    ((_, patch),) = tuned.trainable()
    changed = images.clone()
    changed[:, :, :6, :6] += patch
    assert torch.allclose(tuned.features(images), plain(changed), atol=1e-6)


def test_the_random_patch_moves_also_in_evaluation() -> None:
    model = tiny_vit()
    tuned = vpeft.tune(model, VisualPromptingPixel(width=6, shape="random_patch"), verify=False, show=False).eval()
    seen: list[Tensor] = []
    model.patch_embed.register_forward_pre_hook(lambda _m, args: seen.append(args[0]))
    ((_, patch),) = tuned.trainable()
    for _ in range(20):
        tuned.features(torch.zeros(2, 3, 32, 32))
    corners = set()
    for image in seen:
        assert torch.equal(image[0], image[1])
        rows, columns = image[0].abs().sum((0, 2)).nonzero(), image[0].abs().sum((0, 1)).nonzero()
        top, left = int(rows[0]), int(columns[0])
        assert torch.equal(image[0, :, top : top + 6, left : left + 6], patch)
        corners.add((top, left))
    assert len(corners) > 10
    assert max(max(corner) for corner in corners) <= 26


def test_count_and_start() -> None:
    with torch.device("meta"):
        backbone = timm.create_model("vit_base_patch16_224", num_classes=0)
    tuned = vpeft.tune(backbone, VisualPromptingPixel(), verify=False, show=False)
    assert tuned.plan().trainable == 69_840
    tuned = vpeft.tune(tiny_vit(img_size=64), VisualPromptingPixel(width=20), show=False)
    values = torch.cat([p.detach().flatten() for _, p in tuned.trainable()])
    assert float(values.std()) == pytest.approx(1.0, rel=0.05)
    assert not tuned.plan().mergeable


def test_without_a_head_the_backbones_classifier_stays() -> None:
    model = tiny_vit(num_classes=11)
    tuned = vpeft.tune(model, VisualPromptingPixel(width=3), show=False)
    assert tuned(images_for(tiny_vit())).shape == (2, 11)
    assert all(key.startswith("pixels.") for key, _ in tuned.trainable())


@pytest.mark.parametrize(("shape", "width"), [("padding", 16), ("fixed_patch", 32)])
def test_too_wide_is_refused(shape: str, width: int) -> None:
    with pytest.raises(vpeft.MissingPlace, match="no room"):
        vpeft.tune(tiny_vit(), VisualPromptingPixel(shape=shape, width=width))
