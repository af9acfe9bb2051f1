"""EVP: a learned border around a smaller image."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from ..backbones.backbone import Backbone
from ..backbones.edits import Edit
from ..backbones.points import MissingPlace
from ..method import Method, register
from .visual_prompting_pixel import Border


@register("evp", category="addition", family="prompt", paper="2212.10556", year=2024, venue="TMLR")
class EVP(Method):
    """x' = normalise(pad(shrink(x)) + M delta), M a border of w pixels; the image is shrunk to fit inside it.

    shrink (bicubic) takes S x S pixels to S - 2 w, pad adds zeros in pixel values, delta starts at zero. The images
    that arrive are normalised already, so that here the padding is -mean / std and delta / std is added, with `mean`
    and `std` those of the backbone's preprocessing. With `unit_gradient` the gradient of delta is divided by its own
    norm, taken over the whole image with the part behind the border: plain SGD with a large rate (the authors: 70, no
    momentum, no decay, cosine) is then theirs.

    The paper trains no head: without `num_classes` the backbone's own classifier stays. Random crops and flips of the
    shrunken image belong to the augmentation, the mapping of a classifier's classes to others is not part of this.
    """

    variants: ClassVar[tuple[dict[str, Any], ...]] = ({"width": 4},)

    width: int = Field(default=30, gt=0)
    """w, pixels"""
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    """of the normalisation, for each channel; ImageNet's. CLIP has others"""
    std: tuple[float, ...] = (0.229, 0.224, 0.225)
    """of the normalisation, for each channel"""
    unit_gradient: bool = True
    """whether the gradient of delta has norm one"""

    @property
    def starts_as_identity(self) -> bool:
        return False

    def edits(self, backbone: Backbone) -> Iterator[Edit]:
        if not backbone.pixels.offers("before"):
            raise MissingPlace(f"{backbone.facts.architecture} takes no pixels that a prompt could be added to.")
        height, width = backbone.facts.image_size
        if 2 * self.width >= min(height, width):
            raise MissingPlace(
                f"An image of {height}x{width} pixels has no room inside a border of {self.width}. Choose a width below"
                f" {min(height, width) // 2}."
            )
        channels = backbone.pixels.width
        if not channels == len(self.mean) == len(self.std):
            raise MissingPlace(f"The images have {channels} channels; give `mean` and `std` for each.")
        border = Border(channels, height, width, self.width)
        yield backbone.pixels.before(FramedImage(border, self.mean, self.std, self.unit_gradient))


class FramedImage(nn.Module):
    """x (B, C, H, W) -> x shrunk, with a border in the room that is left."""

    channels_first = True
    mean: Tensor
    std: Tensor

    def __init__(self, border: Border, mean: tuple[float, ...], std: tuple[float, ...], unit: bool) -> None:
        super().__init__()
        self.border, self.unit = border, unit
        for part in border.parameters():
            nn.init.zeros_(part)
        self.register_buffer("mean", torch.tensor(mean).reshape(-1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).reshape(-1, 1, 1), persistent=False)

    def padded(self, x: Tensor) -> Tensor:
        """x shrunk, on black."""
        w = self.border.up.shape[1]
        height, width = x.shape[-2:]
        size = (height - 2 * w, width - 2 * w)
        images = x.reshape(-1, *x.shape[-3:]).float()  # clips frame by frame; no antialiasing in 16 bits
        small = F.interpolate(images, size=size, mode="bicubic", align_corners=False, antialias=True)
        small = small.reshape(*x.shape[:-2], *size).to(x.dtype)
        black = (self.mean / self.std).to(x.dtype)
        return F.pad(small + black, (w, w, w, w)) - black

    def forward(self, x: Tensor) -> Tensor:
        delta: Tensor = self.border(torch.zeros_like(x[:1]))
        padded = self.padded(x)
        if self.unit:
            delta = _UnitGradient.apply(delta)
        return padded + delta / self.std.to(x.dtype)


class _UnitGradient(torch.autograd.Function):
    """The identity, whose gradient is divided by its norm."""

    @staticmethod
    def forward(ctx: Any, delta: Tensor) -> Tensor:
        return delta.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return torch.as_tensor(grad / (grad.norm() + 1e-10))
