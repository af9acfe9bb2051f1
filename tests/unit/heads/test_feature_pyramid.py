"""The maps that a decoder reads: levels, norms, sizes of any image, and where their cells lie."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from tests.families import EVERY
from tests.models import tiny_convnext, tiny_swin, tiny_vit
from torch import Tensor, nn
from torch.nn import functional

import vpeft
from vpeft.backbones.features import Feature, Features
from vpeft.backbones.points import MissingPlace
from vpeft.head import Head
from vpeft.layers.feature_pyramid import StageMaps, at_stride
from vpeft.methods.linear_probe import LinearProbe


class _Levels(Head):
    """Gives the levels themselves."""

    def __init__(self, maps: StageMaps) -> None:
        super().__init__()
        self.maps, self.reads = maps, maps.reads

    def forward(self, features: Features, batch: object = None) -> list[Tensor]:
        return self.maps(features)


def _levels_of(model: nn.Module, size: tuple[int, int], **options: object) -> tuple[StageMaps, list[Tensor]]:
    maps = StageMaps.on(vpeft.describe(model), **options)  # type: ignore[arg-type]
    tuned = vpeft.tune(model, LinearProbe(), head=_Levels(maps))
    found: list[Tensor] = tuned(torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(3)))
    return maps, found


@pytest.mark.parametrize(
    ("make", "reads", "channels", "strides"),
    [
        (tiny_convnext, ("stages.0", "stages.1", "stages.2", "stages.3"), [16, 24, 32, 48], [4, 8, 16, 32]),
        (lambda: tiny_swin(strict_img_size=False), ("stages.0", "stages.1"), [24, 48], [2, 4]),
    ],
)
def test_stages_of_a_hierarchical_backbone(
    make: Callable[[], nn.Module], reads: tuple[str, ...], channels: list[int], strides: list[int]
) -> None:
    size = (64, 96)
    maps, found = _levels_of(make(), size)
    assert (maps.reads, maps.channels, maps.strides) == (reads, channels, strides)
    assert [tuple(one.shape) for one in found] == [
        (2, width, size[0] // stride, size[1] // stride) for width, stride in zip(channels, strides, strict=True)
    ]
    for one in found:  # each cell is standardised over its channels
        torch.testing.assert_close(one.mean(1), torch.zeros_like(one[:, 0]), atol=1e-5, rtol=0)
        torch.testing.assert_close(one.var(1, unbiased=False), torch.ones_like(one[:, 0]), atol=1e-2, rtol=0)


def test_a_stage_is_what_the_library_computes_there() -> None:
    model = tiny_convnext()
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(3))
    there = model.stages[0](model.stem(images))  # type: ignore[index,operator]
    _, found = _levels_of(model, (64, 64))
    torch.testing.assert_close(found[0], functional.layer_norm(there.movedim(1, -1), (16,), eps=1e-6).movedim(-1, 1))


@pytest.mark.parametrize("patch", [8, 16])
def test_the_simple_pyramid_has_the_strides_of_vitdet(patch: int) -> None:
    model = tiny_vit(img_size=64, patch_size=patch, dynamic_img_size=True)
    maps, found = _levels_of(model, (64, 96), out_channels=12)
    assert (maps.reads, maps.channels, maps.strides) == (("norm",), [12] * 4, [4, 8, 16, 32])
    assert [tuple(one.shape) for one in found] == [(2, 12, 64 // stride, 96 // stride) for stride in maps.strides]
    assert StageMaps.on(vpeft.describe(model)).channels == [256] * 4


def test_parameters_of_the_simple_pyramid() -> None:
    """Of ViTDet for D = 48 and 12 channels, counted by hand from the paper's appendix."""
    width, out = 48, 12
    maps = StageMaps(["norm"], [width], [16], out)
    deconvolution = [4 * width * width // 2 + width // 2, 4 * (width // 2) * (width // 4) + width // 4]
    ends = [out * wide + 2 * out + 9 * out * out + 2 * out for wide in (width // 4, width // 2, width, width)]
    count = sum(deconvolution) + width + deconvolution[0] + sum(ends)
    assert sum(parameter.numel() for parameter in maps.parameters()) == count


def test_a_patch_of_fourteen_pixels_is_resampled_to_the_strides() -> None:
    model = tiny_vit(img_size=56, patch_size=14, dynamic_img_size=True, dynamic_img_pad=True)
    maps, found = _levels_of(model, (64, 96), out_channels=12)
    assert maps.strides == [4, 8, 16, 32]
    assert [tuple(one.shape[2:]) for one in found] == [(16, 24), (8, 12), (4, 6), (2, 3)]


def test_patches_that_do_not_cover_the_image_are_resampled_too() -> None:
    model = tiny_vit(img_size=64, patch_size=16, dynamic_img_size=True, dynamic_img_pad=True)
    _, found = _levels_of(model, (70, 90), out_channels=12)
    assert [tuple(one.shape[2:]) for one in found] == [(18, 23), (9, 12), (5, 6), (3, 3)]


def test_resampled_cells_keep_their_place() -> None:
    """A map that holds the centre of each of its cells holds, resampled, the centres of the new ones."""
    rows, columns = torch.meshgrid(torch.arange(19.0) * 14 + 7, torch.arange(19.0) * 14 + 7, indexing="ij")
    found = at_stride(torch.stack((rows, columns))[None], 16, (266, 266), (256, 256))
    centres = torch.arange(16.0) * 16 + 8
    assert found.shape == (1, 2, 16, 16)
    torch.testing.assert_close(found[0, 0], centres[:, None].expand(16, 16), atol=1e-3, rtol=0)
    torch.testing.assert_close(found[0, 1], centres[None].expand(16, 16), atol=1e-3, rtol=0)


def test_prefix_tokens_are_left_out() -> None:
    torch.manual_seed(0)
    maps = StageMaps(["norm"], [6], [16], 4)
    tokens = torch.randn(1, 8, 6)
    level = maps(Features({"norm": Feature(tokens, 2, (2, 3), 16)}, (32, 48)))[2]
    expected = maps.levels[2](tokens[:, 2:].reshape(1, 2, 3, 6).movedim(-1, 1))
    torch.testing.assert_close(level, expected)


def test_frozen_norms_have_no_parameters_and_the_values_of_fresh_ones() -> None:
    frozen, trained = (StageMaps(["a", "b"], [6, 8], [4, 8], norm=kind) for kind in ("frozen", "train"))
    assert sum(one.numel() for one in frozen.parameters()) == 0
    assert sum(one.numel() for one in trained.parameters()) == 2 * (6 + 8)
    features = Features({"a": Feature(torch.randn(1, 4, 4, 6)), "b": Feature(torch.randn(1, 2, 2, 8))}, (16, 16))
    for one, other in zip(frozen(features), trained(features), strict=True):
        torch.testing.assert_close(one, other)


def test_settings_make_the_same_module() -> None:
    maps = StageMaps.on(vpeft.describe(tiny_convnext()), out_channels=7, norm="frozen")
    again = StageMaps(**maps.settings)
    assert again.settings == maps.settings and again.channels == [7] * 4
    again.load_state_dict(maps.state_dict())


def test_refusals() -> None:
    with pytest.raises(ValueError, match="'train' or 'frozen'"):
        StageMaps(["a"], [6], [4], norm="none")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="a width and a stride for each"):
        StageMaps(["a", "b"], [6], [4])
    with pytest.raises(MissingPlace, match="no place 'blocks.9'"):
        StageMaps.on(vpeft.describe(tiny_vit()), place="blocks.9")
    clip = Features({"norm": Feature(torch.randn(1, 2, 3, 4, 6))}, None)
    with pytest.raises(MissingPlace, match="time axis"):
        StageMaps(["norm"], [6], [16])(clip)


def test_mask_units_of_hiera_are_laid_out_as_the_library_lays_them() -> None:
    model = EVERY["timm_hiera"]()
    maps, found = _levels_of(model, (32, 32), norm="frozen")
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        theirs = model.forward_intermediates(images, intermediates_only=True)  # type: ignore[operator]
    assert (maps.strides, maps.channels) == ([4, 8], [one.shape[1] for one in theirs])
    for one, other in zip(found, theirs, strict=True):
        torch.testing.assert_close(
            one, functional.layer_norm(other.movedim(1, -1), other.shape[1:2], eps=1e-6).movedim(-1, 1)
        )
