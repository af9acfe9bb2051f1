"""A method object acts on images of any size that the backbone takes, as one attached at that size does."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

import vpeft
from tests.models import tiny_convnext, tiny_swin
from vpeft.backbones.backbone import Backbone
from vpeft.backbones.edits import Edit
from vpeft.injection.run_time_grid import images_size
from vpeft.method import Method, get_method

SETTINGS: dict[str, dict[str, Any]] = {
    "lora": {},
    "mona": {"bottleneck": 4},
    "vpt_deep": {"tokens": 3},
    "lst": {},
    "convpass": {},
    "hst": {},
    "dtl": {},
    "dtl_plus": {},
    "adaptformer": {"bottleneck": 4},
    "synqt": {},
}
SIZES = ((32, 32), (64, 64), (48, 80))


def vit(size: tuple[int, int], **more: Any) -> nn.Module:
    """A tiny ViT for images of this size whose position embedding follows the image; weights are the same each time."""
    torch.manual_seed(0)
    fields = {"patch_size": 8, "embed_dim": 48, "depth": 3, "num_heads": 3, "num_classes": 0, "dynamic_img_size": True}
    made: nn.Module = timm.create_model("vit_tiny_patch16_224", img_size=size, **{**fields, **more})
    return made


def shaken(tuned: vpeft.TunedModel) -> vpeft.TunedModel:
    torch.manual_seed(1)
    with torch.no_grad():
        for _, parameter in tuned.trainable():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return tuned.eval()


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("name", SETTINGS)
def test_another_size_is_as_if_it_had_been_attached_there(name: str, size: tuple[int, int]) -> None:
    method = get_method(name)(**SETTINGS[name])
    first = shaken(vpeft.tune(vit((32, 32)), method, num_classes=3, show=False))
    # position embeddings of the second model are those that the first interpolates
    other = vit(size)
    with torch.no_grad():
        state = first.backbone.state_dict()
        grid = (size[0] // 8, size[1] // 8)
        state["pos_embed"] = timm.layers.resample_abs_pos_embed(state["pos_embed"], grid, num_prefix_tokens=1)
        other.load_state_dict({key: state[key] for key in other.state_dict()})
    second = vpeft.tune(other, method, num_classes=3, show=False, verify=False).eval()
    second.load_adapter_state(first.adapter_state())
    images = torch.randn(2, 3, *size)
    assert torch.allclose(first(images), second(images), atol=1e-5)


def swin() -> nn.Module:
    """A tiny Swin that takes images of any size."""
    return tiny_swin(strict_img_size=False)


HIERARCHICAL: list[tuple[Callable[[], nn.Module], str, dict[str, Any]]] = [
    (tiny_convnext, "mona", {}),
    (tiny_convnext, "convpass", {"sites": ("mlp",)}),
    (tiny_convnext, "lst", {}),
    (tiny_convnext, "dtl_plus", {}),
    (swin, "mona", {}),
    (swin, "convpass", {}),
    (swin, "lst", {}),
    (swin, "hst", {}),
    (swin, "vpt_deep", {"tokens": 2}),
]


@pytest.mark.parametrize(("make", "name", "fields"), HIERARCHICAL)
@pytest.mark.parametrize("size", [(64, 96), (72, 40)], ids=str)
def test_maps_of_any_size_pass_hierarchical_backbones(
    make: Callable[[], nn.Module], name: str, fields: dict[str, Any], size: tuple[int, int]
) -> None:
    tuned = shaken(vpeft.tune(make(), get_method(name)(**fields), num_classes=3, show=False))
    images = torch.randn(2, 3, *size)
    out = tuned(images)
    assert out.shape == (2, 3) and bool(out.isfinite().all())
    assert torch.allclose(tuned(images[:1]), out[:1], atol=1e-4)


class Asks(nn.Module):
    """Notes the grids that it is told, and passes h on."""

    def __init__(self, *, each: bool = False) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(()))
        self.wants_grid, self.wants_grids = not each, each
        self.told: list[Any] = []

    def forward(self, h: Tensor, *values: Tensor, grid: Any = None, grids: Any = None) -> Tensor:
        self.told.append(grid if grids is None else grids)
        return h * self.gain


class Asking(Method):
    make: Callable[[Backbone], list[Edit]]

    def edits(self, backbone: Backbone) -> list[Edit]:  # type: ignore[override]
        return self.make(backbone)


def test_a_layer_is_told_the_grid_of_its_place_and_of_what_it_reads() -> None:
    own, each = Asks(), Asks(each=True)

    def make(b: Backbone) -> list[Edit]:
        reads = (b.pixels, b.blocks[0])
        return [b.blocks[1].mlp_branch.parallel(own), b.outlet.after(each, reads=reads)]

    tuned = vpeft.tune(vit((32, 32)), Asking(make=make), show=False, verify=False)
    for size in SIZES:
        tuned(torch.randn(1, 3, *size))
        cells = (size[0] // 8, size[1] // 8)
        assert own.told[-1] == cells
        assert each.told[-1] == (size, cells)


def test_the_backbone_called_by_itself_knows_the_size_too() -> None:
    own = Asks()
    tuned = vpeft.tune(vit((32, 32)), Asking(make=lambda b: [b.blocks[1].after(own)]), show=False, verify=False)
    for size in SIZES:
        tuned.backbone(torch.randn(1, 3, *size))
        assert own.told[-1] == (size[0] // 8, size[1] // 8)


def test_inserted_tokens_are_no_part_of_the_grid() -> None:
    own = Asks()
    prompts = get_method("vpt_deep")(tokens=5)

    def make(b: Backbone) -> list[Edit]:
        return [*prompts.edits(b), b.blocks[1].mlp_branch.parallel(own)]

    tuned = vpeft.tune(vit((32, 32)), Asking(make=make), show=False, verify=False)
    tuned(torch.randn(1, 3, 64, 64))
    assert own.told == [(8, 8)]


def test_windows_know_their_maps() -> None:
    own = Asks()
    tuned = vpeft.tune(tiny_swin(), Asking(make=lambda b: [b.blocks[0].after(own)]), show=False, verify=False)
    tuned(torch.randn(1, 3, *tuned.description.facts.image_size))
    assert own.told == [tuned.description.blocks[0].grid]


@pytest.mark.parametrize(
    ("shape", "axis", "size"),
    [((2, 3, 8, 9), None, (8, 9)), ((2, 5, 3, 8, 9), 1, (5, 8, 9)), ((2, 3, 5, 8, 9), 2, (5, 8, 9)), ((2, 7), 1, None)],
)
def test_sizes_of_images_and_clips(shape: tuple[int, ...], axis: int | None, size: tuple[int, ...] | None) -> None:
    assert images_size(torch.zeros(shape), axis) == size
