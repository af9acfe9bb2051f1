"""Images of other sizes than a backbone was built for: they work, or a sentence says what to do."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

import vpeft
from tests.families import EVERY
from tests.models import tiny_swin, tiny_vit
from vpeft.backbones.create import UnsuitableSize, create_backbone
from vpeft.methods.adapter import Adapter
from vpeft.methods.bitfit import BitFit

# Sizes (height, width) by the family's tiny model, beside its own: one with more columns than rows that all strides
# divide, and one that they do not divide.
EVEN, ODD = (64, 96), (70, 90)
# Families whose tiny model takes images of any size as it stands.
FREE = (
    "timm_convnext",
    "timm_resnet",
    "timm_resnetv2",
    "timm_regnet",
    "timm_efficientnet",
    "timm_mobilenet",
    "timm_nfnet",
    "timm_byobnet",
    "timm_poolformer",
    "timm_caformer",
    "timm_pvt_v2",
    "timm_twins",
    "timm_xcit",
    "torchvision_swin",
    "torchvision_swin_v2",
    "torchvision_convnext",
    "torchvision_resnet",
    "torchvision_regnet",
    "torchvision_efficientnet",
    "hf_vit",
    "hf_clip",
    "hf_dinov2_registers",
    "hf_dinov3",
    "hf_beit",
    "hf_convnext",
    "hf_resnet",
    "hf_segformer",
    "hf_swin",
    "hf_swinv2",
)
# Families that take every size that their patches divide.
FREE_IN_PATCHES = ("timm_dinov3", "timm_sam", "hf_siglip2", "hf_hiera")
# Families whose position tables are of one size: they are built for another one.
FIXED = (
    "timm_vit",
    "timm_swin",
    "timm_beit",
    "timm_eva",
    "timm_swin_v2",
    "timm_relpos",
    "timm_deit",
    "timm_cait",
    "timm_mlp_mixer",
    "timm_coatnet",
    "timm_hiera",
    "timm_mvitv2",
    "timm_levit",
    "torchvision_vit",
    "torchvision_maxvit",
    "open_clip_vision",
)


def _features(model: nn.Module, size: tuple[int, int]) -> torch.Tensor:
    tuned = vpeft.tune(model, BitFit(), num_classes=3, verify=False)
    channels = tuned.description.inputs.channels
    with torch.no_grad():
        found: torch.Tensor = tuned(torch.randn(2, channels, *size, generator=torch.Generator().manual_seed(0)))
    return found


@pytest.mark.parametrize("name", FREE)
def test_any_size(name: str) -> None:
    for size in (EVEN, ODD):
        found = _features(EVERY[name](), size)
        assert found.shape == (2, 3) and bool(torch.isfinite(found).all())


@pytest.mark.parametrize("name", FREE_IN_PATCHES)
def test_sizes_that_the_patches_divide(name: str) -> None:
    assert bool(torch.isfinite(_features(EVERY[name](), EVEN)).all())
    with pytest.raises(
        UnsuitableSize, match=r"does not take images of 70 x 90 pixels: .*(multiples of its patches|any)"
    ):
        _features(EVERY[name](), ODD)


@pytest.mark.parametrize("name", FIXED)
def test_one_size_is_refused_with_what_to_do(name: str) -> None:
    with pytest.raises(
        UnsuitableSize, match=r"does not take images of 64 x 96 pixels: .* It takes \d+ x \d+\..*any_size"
    ):
        _features(EVERY[name](), EVEN)


def test_every_family_with_images_is_in_the_table() -> None:
    known = {*FREE, *FREE_IN_PATCHES, *FIXED}
    assert known <= set(EVERY)
    # Where one description covers several libraries' classes, one of them is looked at.
    alike = {"timm_eva_split", "timm_perception", "timm_parallel", "timm_maxvit", "open_clip_map", "hf_videomae"}
    texts = {name for name in EVERY if "text" in name}
    clips = {"frame_reader", "hf_vjepa2", "torchvision_swin3d"}
    assert not alike & known
    assert {name for name in EVERY if not name.startswith("own")} - known - alike - texts - clips == set()


@pytest.mark.parametrize(
    "name",
    [
        "pocket_vit",
        "vit_tiny_patch16_224",
        "vit_small_patch14_dinov2",
        "vit_small_patch16_dinov3",
        "eva02_tiny_patch14_224",
        "swin_tiny_patch4_window7_224",
    ],
)
def test_timm_models_are_made_for_any_size(name: str) -> None:
    with torch.device("meta"):
        model = create_backbone(name, pretrained=False, any_size=True).eval()
        described = vpeft.describe(model)
        assert described.facts.dynamic_size
        for size in ((128, 160), (256, 256)):
            assert described.pooled(torch.zeros(1, 3, *size)).shape == (1, described.facts.width)
    assert vpeft.backbones.origin.origin_of(model).any_size  # type: ignore[union-attr]


@pytest.mark.parametrize("make", [tiny_vit, lambda **more: tiny_swin(**more)])
def test_a_model_for_any_size_is_the_same_at_its_own(make: Callable[..., nn.Module]) -> None:
    plain, free = make(), make(dynamic_img_size=True)
    free.load_state_dict(plain.state_dict())
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(vpeft.describe(plain).pooled(images), vpeft.describe(free).pooled(images))


@pytest.mark.parametrize("name", ["hiera_tiny_224", "beit_base_patch16_224"])
def test_one_other_size_is_built(name: str) -> None:
    with torch.device("meta"):
        described = vpeft.describe(create_backbone(name, pretrained=False, image_size=(128, 160)).eval())
        assert described.pooled(torch.zeros(1, 3, 128, 160)).shape == (1, described.facts.width)


def test_an_error_that_is_none_of_the_size_stays_as_it_is() -> None:
    tuned = vpeft.tune(tiny_vit(dynamic_img_size=True), Adapter(), num_classes=3)
    with pytest.raises(RuntimeError, match="channels") as found:
        tuned(torch.zeros(1, 4, 64, 32))
    assert not isinstance(found.value, UnsuitableSize)
