"""The grid of a place in a run: what it states for a size is what the tensors show."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from math import prod
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import vpeft
from tests.families import EVERY
from tests.models import tiny_swin, tiny_vit
from tests.unit.backbones.test_families import Look
from vpeft.backbones.backbone import Backbone
from vpeft.backbones.builders import Where, site
from vpeft.backbones.grids import Scale
from vpeft.backbones.places import Place, Site
from vpeft.backbones.points import Layout, Point
from vpeft.injection.hooks import Wiring


def _hf_vit() -> nn.Module:
    """transformers' ViT with its positions interpolated, which its forward does where it is asked to."""
    model: Any = EVERY["hf_vit"]()
    embed = model.embeddings.forward
    model.embeddings.forward = lambda pixels, *_, **__: embed(pixels, interpolate_pos_encoding=True)
    return model


def _odd_swin() -> nn.Module:
    return tiny_swin(dynamic_img_size=True, window_size=5, depths=(1, 1, 1), num_heads=(2, 2, 4))


Make = Callable[[], nn.Module]
MODELS: dict[str, Make] = {
    "timm_vit dynamic": lambda: tiny_vit(dynamic_img_size=True, reg_tokens=2),
    "timm_vit padded": lambda: tiny_vit(dynamic_img_size=True, dynamic_img_pad=True),
    "timm_swin dynamic": lambda: tiny_swin(dynamic_img_size=True),
    "timm_swin padded windows": _odd_swin,
    "hf_vit interpolated": _hf_vit,
    **{name: EVERY[name] for name in EVERY if vpeft.describe(EVERY[name]()).facts.dynamic_size},
    **{name: EVERY[name] for name in ("hf_swin", "hf_dinov2_registers", "timm_xcit") if name in EVERY},
}
SIZES = ((64, 64), (72, 48), (67, 37))
# these take whole patches only
WHOLE_PATCHES = {"timm_vit dynamic": (80, 24), "timm_dinov3": (80, 24)}
WHOLE_PATCHES |= {"timm_swin dynamic": (66, 38), "timm_swin padded windows": (66, 38)}


def grids_seen(model: nn.Module, size: tuple[int, int]) -> list[tuple[Place, tuple[int, ...] | int]]:
    """Each place with a grid, and what leaves it: rows and columns, or how many tokens there are behind the prefix.

    The trunk begins on another grid than it ends on. Inside a downsampling, what lies before its stride is on the grid
    before it.
    """
    backbone, found = vpeft.describe(model), []
    wiring = Wiring()
    wiring.switch.on = "watch"

    def show(place: Place, value: Tensor) -> None:
        axes = {Layout.MAP: value.shape[1:-1], Layout.CHANNELS_FIRST: value.shape[2:]}
        found.append((place, tuple(axes[place.layout]) if place.layout in axes else value.shape[1] - place.prefix))

    for place in backbone.places():
        if (
            place.exit is not None
            and place.grid is not None
            and place.layout is not Layout.VECTOR
            and place.name != "trunk"
        ):
            wiring.at(place.exit, Look(partial(show, place)))
    with torch.no_grad():
        vpeft.TunedModel(backbone)(torch.randn(2, backbone.inputs.channels, *whole_size(backbone, size)))
    return [(place, seen) for place, seen in found if ".downsample" not in place.name]


def whole_size(backbone: Backbone, size: tuple[int, int]) -> tuple[int, ...]:
    """Height and width; of clips the frames too, twice as many as the model's own."""
    return size if backbone.inputs.frames is None else (2 * backbone.inputs.frames, *size)


@pytest.mark.parametrize("size", [None, *SIZES], ids=str)
@pytest.mark.parametrize("name", MODELS)
def test_the_grid_of_a_run_is_what_the_tensors_show(name: str, size: tuple[int, int] | None) -> None:
    model = MODELS[name]()
    size = size or vpeft.describe(model).inputs.size
    size = WHOLE_PATCHES.get(name, size) if size == SIZES[-1] else size
    looked_at, wrong = 0, []
    whole = whole_size(vpeft.describe(model), size)
    for place, seen in grids_seen(model, size):
        count = seen if isinstance(seen, int) else prod(seen)
        alone = place.grid_at(whole)
        assert alone is not None
        # a convolution that reduces keys and values rounds by itself, and the number of tokens shows how
        by_count = any(part in place.name for part in (".sr", ".attn.norm", ".attn.k", ".attn.v"))
        told = place.grid_at(whole, count) if by_count else alone
        assert told is not None and place.grid_at(whole, count) == told
        looked_at += 1
        if (prod(told) if isinstance(seen, int) else told) != seen:
            wrong.append((place.name, told, seen))
    assert looked_at > 15
    assert not wrong, wrong


def test_windows_and_pooled_maps_stay_as_large_as_they_are() -> None:
    backbone = vpeft.describe(tiny_swin(dynamic_img_size=True))
    assert backbone.blocks[0].attn.qkv.grid_at((64, 96)) == (4, 4)
    assert backbone.blocks[0].attn_branch.grid_at((64, 96)) == (32, 48)
    squeeze = vpeft.describe(EVERY["timm_resnet"]()).place("blocks.0.mlp.se.fc1")
    assert squeeze.grid_at((64, 96)) == (1, 1)


def test_the_number_of_tokens_decides_where_the_size_leaves_several_grids() -> None:
    norm1 = vpeft.describe(tiny_vit(dynamic_img_size=True)).blocks[0].norm1
    assert norm1.grid_at((32, 32)) == (4, 4)
    assert norm1.grid_at((64, 33)) == (8, 4)
    assert norm1.grid_at((64, 33), 40) == (8, 5)
    with pytest.raises(
        vpeft.MissingPlace, match=r"no grid of 39 tokens for inputs of 64 x 33: .*8 x 4 or 8 x 5.*4 x 4"
    ):
        norm1.grid_at((64, 33), 39)
    with pytest.raises(vpeft.MissingPlace, match="no grid of 17 tokens"):
        norm1.grid_at((32, 32), 17)
    with pytest.raises(vpeft.MissingPlace, match=r"needs a size \(H, W\)"):
        norm1.grid_at((32,))


def test_a_place_without_a_grid_has_none_at_any_size() -> None:
    backbone = vpeft.describe(tiny_vit())
    assert backbone.outlet.grid_at((64, 64)) is None


def test_what_reads_a_place_has_its_grid() -> None:
    block = vpeft.describe(tiny_vit(dynamic_img_size=True)).blocks[0]
    assert block.input.grid_at((64, 40)) == block.grid_at((64, 40)) == (8, 5)


def test_clips_have_steps_of_time_in_front() -> None:
    layer = nn.Identity()
    where = Where(0, Layout.TOKENS, (4, 4), 1, 8, frames=2)
    place = site("blocks.0.attn", Site, Point(layer, "input"), Point(layer, "output"), where, 12, {})
    place.scale = Scale((32, 32), frames=4, patch=8)
    assert place.grid_at((4, 32, 32)) == (2, 4, 4)
    assert place.grid_at((8, 64, 32), 4 * 8 * 4) == (4, 8, 4)
    assert place.grid_at((64, 32)) == (2, 8, 4)
    with pytest.raises(vpeft.MissingPlace, match="8 x 64 x 32: the grid can be 4 x 8 x 4"):
        place.grid_at((8, 64, 32), 5)


@pytest.mark.parametrize(
    ("patches", "stages", "sides"), [("floor", "floor", 16), ("floor", "ceil", 17), ("ceil", "ceil", 17)]
)
def test_the_rounding_of_patches_and_of_stages_is_stated_apart(patches: str, stages: str, sides: int) -> None:
    scale = Scale((64, 64), patch=4, patches=patches, stages=stages)  # type: ignore[arg-type]
    assert scale.grid((133, 133), 8) == (sides, sides)
    assert scale.grid((128, 128), 8) == (16, 16)


def test_a_stride_that_explains_nothing_is_said() -> None:
    layer = nn.Identity()
    place = site("here", Site, Point(layer, "input"), Point(layer, "output"), Where(0, Layout.MAP, (5, 5), 0, 8), 4, {})
    place.scale = Scale((32, 32), patch=8)
    assert place.grid_at((32, 32)) == (5, 5)
    with pytest.raises(vpeft.MissingPlace, match="none that fits its stride"):
        place.grid_at((64, 64))
