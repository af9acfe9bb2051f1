"""Pro-tuning: small convolutional prompt blocks between the stages."""

from __future__ import annotations

from collections.abc import Iterator
from math import prod
from typing import Literal

from pydantic import Field
from torch import Tensor, nn

from ..backbones.backbone import Backbone
from ..backbones.edits import Edit
from ..backbones.points import MissingPlace
from ..layers.bottleneck import ACTIVATIONS
from ..method import Method, register


@register("pro_tuning", category="addition", family="prompt", paper="2207.14381", year=2023, venue="TCSVT")
class ProTuning(Method):
    """x_s' = x_s + v_s after stage s, v = Up f(DW f(Down x_s)), on the map (H, W) of the stage.

    Down is a 1x1 convolution to D / r channels, DW a depthwise k x k one, Up 1x1 back to D, with biases. Class token
    and registers stay out. A backbone of one stage has prompt blocks after evenly spaced blocks, the last one
    left out, behind which a class token would not see them. Up starts at zero, so
    step 0 is the frozen model.

    No code is public, and the paper could not be read in full: f, r, the choice of blocks on a plain ViT and the zero
    start are this library's reading, not verified.
    """

    count: int = Field(default=4, gt=0)
    """number of prompt blocks on a backbone of one stage, at most one for each block but the last"""
    ratio: int = Field(default=8, gt=0)
    """r"""
    kernel: int = Field(default=5, gt=0)
    """k, odd; 3, 5 or 7 in the paper"""
    activation: Literal["relu", "gelu"] = "gelu"
    """f"""

    def edits(self, backbone: Backbone) -> Iterator[Edit]:
        depth, places = len(backbone.blocks), [stage.blocks[-1] for stage in backbone.stages if stage.blocks]
        if len(places) < 2:
            count = min(self.count, depth - 1)
            ends = {(number + 1) * depth // (count + 1) - 1 for number in range(count)}
            places = [block for block in backbone.blocks if block.index in ends]
        if not places:
            _ = backbone.blocks[0]  # says why there are none
        for place in places:
            if place.grid is None:
                raise MissingPlace(f"{place.name} has no grid of rows and columns, and Pro-tuning convolves over one.")
            yield place.after(PromptBlock(place.width, max(1, place.width // self.ratio), self.kernel, self.activation))


class PromptBlock(nn.Module):
    """x (B, n + H W, D) or (B, H, W, D) -> x + v, v zero for the n first tokens; clips frame by frame."""

    wants_grid = True

    def __init__(self, width: int, inner: int, kernel: int, activation: str) -> None:
        super().__init__()
        self.down = nn.Linear(width, inner)
        self.conv = nn.Conv2d(inner, inner, kernel, padding=kernel // 2, groups=inner)
        self.up = nn.Linear(inner, width)
        self.activation = activation
        for zero in (self.up.weight, self.up.bias):
            nn.init.zeros_(zero)

    def forward(self, x: Tensor, *, grid: tuple[int, ...]) -> Tensor:
        act = ACTIVATIONS[self.activation]
        first = 0 if x.dim() == 4 else x.shape[1] - prod(grid)
        cells = x if x.dim() == 4 else x[:, first:].reshape(-1, *grid[-2:], x.shape[-1])
        inner = self.conv(act(self.down(cells)).permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        change: Tensor = self.up(act(inner))
        if x.dim() == 4:
            return x + change
        return nn.functional.pad(change.reshape(x.shape[0], -1, x.shape[-1]), (0, 0, first, 0)) + x
