"""A pyramid of cross-attention blocks with a convolutional stem, in parallel to a trunk."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from timm.layers.drop import DropPath
from torch import Tensor, nn
from torch.nn import functional as F


class ContextBlock(nn.Module):
    """y -> y + CrossAttn(LN y, [LN m; mean W]); + W; + MLP(LN y).

    y and W (B, h w, C), m (B, n, C). Queries come from y, keys and values from the few context tokens.
    """

    dormant = {"k.bias": "a shift of all keys leaves the softmax as it is, so its gradient is zero"}

    def __init__(self, width: int, heads: int, hidden: int, drop_path: float) -> None:
        super().__init__()
        self.heads = math.gcd(width, heads)
        self.meta_norm = nn.LayerNorm(width, eps=1e-5)
        self.norm1, self.norm2 = nn.LayerNorm(width, eps=1e-6), nn.LayerNorm(width, eps=1e-6)
        self.q, self.k, self.v, self.proj = (nn.Linear(width, width) for _ in range(4))
        self.fc1, self.fc2 = nn.Linear(width, hidden), nn.Linear(hidden, width)
        self.drop_path = DropPath(drop_path)

    def forward(self, y: Tensor, meta: Tensor, tokens: Tensor) -> Tensor:
        context = torch.cat([self.meta_norm(meta), tokens.mean(dim=1, keepdim=True)], dim=1)
        q, k, v = self._split(self.q(self.norm1(y))), self._split(self.k(context)), self._split(self.v(context))
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        y = y + self.drop_path(self.proj(mixed))
        y = y + tokens
        return y + torch.as_tensor(self.drop_path(self.fc2(F.gelu(self.fc1(self.norm2(y))))))

    def _split(self, x: Tensor) -> Tensor:
        return x.reshape(*x.shape[:2], self.heads, -1).transpose(1, 2)


class PyramidStage(nn.Module):
    """One level: halve the map, then one block for each block of the trunk that belongs here, then a norm.

    Args:
        before: channels of the map that comes in; 0 for the first level, whose map the stem makes.
        width: C.
        source: D, channels of the trunk's blocks.
        blocks: the level's blocks.
    """

    def __init__(self, before: int, width: int, source: int, blocks: Sequence[ContextBlock]) -> None:
        super().__init__()
        self.down = nn.Conv2d(before, width, 3, stride=2, padding=1) if before else nn.Identity()
        self.enter = nn.LayerNorm(width, eps=1e-5)
        self.bridge = nn.Linear(source, width)
        self.blocks = nn.ModuleList(blocks)
        self.norm = nn.LayerNorm(width, eps=1e-6)

    def forward(self, image: Tensor, maps: Sequence[Tensor], metas: Sequence[Tensor]) -> Tensor:
        """Map (B, C', h', w'), the trunk's maps (B, H, W, D) and meta tokens (B, n, D) -> map (B, C, h, w)."""
        image = self.down(image)
        size = image.shape[-2:]
        y = self.enter(image.flatten(2).transpose(1, 2))
        for block, seen, meta in zip(self.blocks, maps, metas, strict=True):
            resized = F.interpolate(seen.permute(0, 3, 1, 2), size=size, mode="bilinear", align_corners=False)
            y = block(y, self.bridge(meta), self.bridge(resized.flatten(2).transpose(1, 2)))
        out: Tensor = self.norm(y).transpose(1, 2)
        return out.reshape(*out.shape[:2], *size)


class Pyramid(nn.Module):
    """(pooled feature, pixels (B, H, W, 3), block outputs ..., meta tokens ...) -> (B, C of the last level).

    The pooled feature is not used. Of block outputs with tokens in a row, what comes before the grid is left out.
    """

    wants_grids = True

    def __init__(self, stages: Sequence[PyramidStage], channels: int) -> None:
        super().__init__()
        first = stages[0].enter.weight.shape[0]
        self.feature_width = int(stages[-1].norm.weight.shape[0])
        self.counts = [len(stage.blocks) for stage in stages]
        self.stem = nn.Sequential(
            nn.Conv2d(channels, first, 3, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(first),
            nn.ReLU(),
            nn.Conv2d(first, first, 2, stride=2),
        )
        self.stages = nn.ModuleList(stages)
        self.last = nn.BatchNorm1d(self.feature_width, eps=1e-6, affine=False)
        self.apply(_start)

    def forward(
        self, feature: Tensor, pixels: Tensor, *values: Tensor, grids: Sequence[tuple[int, ...] | None]
    ) -> Tensor:
        count = sum(self.counts)
        maps = [self._map(value, grid) for value, grid in zip(values[:count], grids[1 : count + 1], strict=True)]
        image, done = self.stem(pixels.permute(0, 3, 1, 2)), 0
        for stage, blocks in zip(self.stages, self.counts, strict=True):
            stop = done + blocks
            image = stage(image, maps[done:stop], values[count + done : count + stop])
            done = stop
        out: Tensor = self.last(image.flatten(2).mean(dim=2))
        return out

    @staticmethod
    def _map(value: Tensor, grid: tuple[int, ...] | None) -> Tensor:
        if value.dim() == 4:
            return value
        grid = grid or (1, 1)  # tokens on no grid: the last of them
        patches = value[:, value.shape[1] - grid[0] * grid[1] :]
        return patches.reshape(len(patches), *grid, -1)


def _start(module: nn.Module) -> None:
    """Linear maps normal with deviation 0.02, convolutions with sqrt(2 / fan out), biases at zero."""
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        nn.init.zeros_(module.bias)
    elif isinstance(module, nn.Conv2d):
        fan_out = module.weight.shape[0] * module.weight.shape[2] * module.weight.shape[3]
        nn.init.normal_(module.weight, std=math.sqrt(2.0 / fan_out))
        if module.bias is not None:
            nn.init.zeros_(module.bias)
