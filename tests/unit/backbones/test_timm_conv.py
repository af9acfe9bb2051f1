"""What is special of convolutional nets and mixers: activations in place, weights that are standardised, BatchNorm."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from timm.layers.conv2d_same import Conv2dSame
from timm.layers.std_conv import ScaledStdConv2dSame, StdConv2d
from torch import nn

import vpeft
from tests.families.timm_conv import VARIANTS
from tests.models import images_for
from vpeft.backbones.backbone import Backbone
from vpeft.backbones.edits import Edit
from vpeft.method import Method
from vpeft.methods import SSF, AdaptFormer, LoRA

CONVOLUTIONS: dict[str, Callable[[], nn.Conv2d]] = {
    "groups": lambda: nn.Conv2d(8, 12, 3, groups=4, padding=1),
    "depthwise": lambda: nn.Conv2d(8, 16, 3, groups=8, bias=False),
    "dilation": lambda: nn.Conv2d(8, 8, 3, dilation=2, padding=2),
    "stride": lambda: nn.Conv2d(8, 8, (3, 5), stride=(2, 1), padding=(1, 2)),
    "circular": lambda: nn.Conv2d(8, 8, 3, padding=1, padding_mode="circular"),
    "reflect": lambda: nn.Conv2d(8, 8, 3, padding=1, padding_mode="reflect"),
    "same": lambda: Conv2dSame(8, 8, 3, stride=2),
    "standardised": lambda: StdConv2d(8, 8, 3, padding=1),
    "standardised, scaled": lambda: ScaledStdConv2dSame(8, 8, 3, stride=2),
}


class _OneConv(nn.Module):
    def __init__(self, conv: nn.Module) -> None:
        super().__init__()
        self.stem, self.conv = nn.Conv2d(3, 8, 2, 2), conv

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.conv(self.stem(images)).mean(dim=(2, 3))


@pytest.mark.parametrize("kind", CONVOLUTIONS)
def test_lora_on_any_convolution_merges_exactly(kind: str) -> None:
    torch.manual_seed(0)
    model, images = _OneConv(CONVOLUTIONS[kind]()), torch.randn(2, 3, 20, 20)
    weight = model.conv.weight.detach().clone()
    tuned = vpeft.tune(model, LoRA(rank=2, targets=("all",)), anatomy={"image_size": (20, 20)}, show=False)
    layer = tuned.adapter().get_submodule("conv.reparametrize")
    nn.init.normal_(layer.B)
    before = tuned(images)
    twin = _OneConv(CONVOLUTIONS[kind]())
    twin.load_state_dict(tuned.backbone.state_dict())
    with torch.no_grad():
        twin.conv.weight.copy_(weight + (layer.B @ layer.A).reshape(weight.shape))
    assert torch.allclose(before, twin(images), atol=1e-6)
    assert torch.allclose(tuned.merge()(images), before, atol=1e-6)
    tuned.unmerge()
    assert torch.equal(model.conv._parameters["weight"], weight) and torch.equal(tuned(images), before)


def test_nothing_but_the_weight_folds_into_a_standardised_convolution() -> None:
    tuned = vpeft.tune(VARIANTS["resnetv2 basic"](), SSF(), num_classes=2, verify=False, show=False)
    with pytest.raises(vpeft.VpeftError, match="standardises its weight"):
        tuned.merge()


def test_what_is_read_before_an_activation_in_place_is_what_was_there() -> None:
    model = VARIANTS["resnet basic"]()
    backbone = vpeft.describe(model)
    place, kept = backbone.place("blocks.0.mlp.norm1"), Keep()
    assert place.exit is not None and place.exit.overwritten
    vpeft.tune(backbone, Tapping(place=place, module=kept), verify=False, show=False)(images_for(model))
    assert kept.seen is not None and bool((kept.seen < 0).any())


class Tapping(Method):
    """One tap with one module."""

    place: Any
    module: Any

    def edits(self, backbone: Backbone) -> list[Edit]:  # type: ignore[override]
        return [self.place.tap(self.module)]


class Keep(nn.Module):
    """Keeps what it is called with."""

    seen: torch.Tensor | None = None

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        self.seen = hidden
        return hidden


def test_a_description_without_blocks_says_so() -> None:
    bare = VARIANTS["resnet without blocks"]()
    assert not vpeft.describe(bare).blocks
    with pytest.raises(vpeft.MissingPlace, match="no residual blocks that keep their shape"):
        vpeft.tune(bare, AdaptFormer(), show=False)
    assert vpeft.tune(bare, LoRA(rank=2, targets=("all",)), show=False).plan().mergeable
