"""Visual prompting: a learned border that is added to the image."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from ..backbones.backbone import Backbone
from ..backbones.edits import Edit
from ..backbones.points import MissingPlace
from ..method import Method, register


@register("visual_prompting_pixel", category="addition", family="prompt", paper="2203.17274", year=2022, venue="arXiv")
class VisualPromptingPixel(Method):
    """x + M(p) enters the frozen model, x (C, S, S) the normalised image, M zero but on a border or a small patch.

    padding: the upper and lower w rows (C, w, S) and, between them, the left and right w columns (C, S - 2w, w).
    fixed_patch: a (C, w, w) patch at the upper left corner; random_patch: at a place drawn at each pass, also in
    evaluation, one for the whole batch (all places; the code never draws the last row and column). All start at
    N(0, 1), so step 0 is not the frozen model.

    The paper trains no head: without `num_classes` the backbone's own classifier stays, and class c reads its output c.
    """

    variants: ClassVar[tuple[dict[str, Any], ...]] = ({"width": 4},)

    width: int = Field(default=30, gt=0)
    """w, pixels"""
    shape: Literal["padding", "fixed_patch", "random_patch"] = "padding"
    """where the image is changed"""

    @property
    def starts_as_identity(self) -> bool:
        return False

    def edits(self, backbone: Backbone) -> Iterator[Edit]:
        if not backbone.pixels.offers("before"):
            raise MissingPlace(f"{backbone.facts.architecture} takes no pixels that a prompt could be added to.")
        height, width = backbone.facts.image_size
        needed = 2 * self.width if self.shape == "padding" else self.width
        if needed >= min(height, width):
            raise MissingPlace(
                f"An image of {height}x{width} pixels has no room for a {self.shape} of width {self.width}."
                f" Choose a width below {min(height, width) // (2 if self.shape == 'padding' else 1)}."
            )
        channels = backbone.pixels.width
        layer: nn.Module
        if self.shape == "padding":
            layer = Border(channels, height, width, self.width)
        else:
            layer = Patch(channels, self.width, moving=self.shape == "random_patch")
        yield backbone.pixels.before(layer)


class Border(nn.Module):
    """x (B, C, H, W) -> x plus a border of width w; on images of other sizes it is stretched along its sides."""

    channels_first = True

    def __init__(self, channels: int, height: int, width: int, border: int) -> None:
        super().__init__()
        self.up, self.down = (nn.Parameter(torch.randn(channels, border, width)) for _ in range(2))
        self.left, self.right = (nn.Parameter(torch.randn(channels, height - 2 * border, border)) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        border, (height, width) = self.up.shape[1], x.shape[-2:]
        if 2 * border >= min(height, width):
            raise MissingPlace(
                f"An image of {height}x{width} pixels has no room for a border of {border} on each side."
            )
        up, down = (_stretched(part, (border, width)) for part in (self.up, self.down))
        left, right = (_stretched(part, (height - 2 * border, border)) for part in (self.left, self.right))
        inner = left.new_zeros(*left.shape[:2], width - 2 * border)
        middle = torch.cat([left, inner, right], dim=2)
        return x + torch.cat([up, middle, down], dim=1)


def _stretched(part: Tensor, size: tuple[int, int]) -> Tensor:
    """(C, h, w) -> (C, *size), interpolated."""
    if part.shape[-2:] == size:
        return part
    return F.interpolate(part[None], size=size, mode="bilinear", align_corners=False)[0]


class Patch(nn.Module):
    """x (B, C, H, W) -> x plus a square patch, in the upper left corner or anywhere."""

    channels_first = True

    def __init__(self, channels: int, size: int, moving: bool) -> None:
        super().__init__()
        self.patch = nn.Parameter(torch.randn(channels, size, size))
        self.moving = moving

    def forward(self, x: Tensor) -> Tensor:
        size, (height, width) = self.patch.shape[-1], x.shape[-2:]
        top = left = 0
        if self.moving:
            top = int(torch.randint(height - size + 1, ()))
            left = int(torch.randint(width - size + 1, ()))
        return x + F.pad(self.patch, (left, width - size - left, top, height - size - top))
