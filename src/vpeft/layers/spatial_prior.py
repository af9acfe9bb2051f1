"""A convolutional branch beside a ViT, which exchanges what it sees with groups of blocks: the parts of ViT-Adapter.

The branch's state is four maps (B, h, w, D) at strides 4, 8, 16 and 32 of the image, the first of which nothing but the
last step reads.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from timm.layers.drop import DropPath
from torch import Tensor, nn
from torch.nn import functional

from .conv_norm_relu import BatchNorm2dOrRunning
from .deformable_attention import DeformableAttention, cell_centres

Maps = tuple[Tensor, Tensor, Tensor, Tensor]
STRIDES = (4, 8, 16, 32)
NORM_EPS = 1e-6


class SpatialPrior(nn.Module):
    """Pixels (B, H, W, C) -> four maps (B, h, w, D), by convolutions of 3 x 3 with BatchNorm and ReLU.

    Stem: strides 2, 1, 1 and 64 channels, max pooling 3 x 3 of stride 2; then strides of 2 to 128, 256, 256 channels.
    A convolution 1 x 1 brings each to D, and the last three get a learnt vector for their level.

    Args:
        channels: C.
        width: D.
        inner: channels of the stem.
    """

    def __init__(self, channels: int, width: int, inner: int = 64) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            *_conv(channels, inner, 2), *_conv(inner, inner, 1), *_conv(inner, inner, 1), nn.MaxPool2d(3, 2, padding=1)
        )
        wide = (inner, 2 * inner, 4 * inner, 4 * inner)
        self.down = nn.ModuleList(nn.Sequential(*_conv(a, b, 2)) for a, b in pairwise(wide))
        self.out = nn.ModuleList(nn.Conv2d(a, width, kernel_size=1) for a in wide)
        self.level = nn.Parameter(torch.empty(3, width))
        self.apply(_start)
        nn.init.normal_(self.level)

    def forward(self, pixels: Tensor) -> Maps:
        found = [self.stem(pixels.permute(0, 3, 1, 2))]
        for down in self.down:
            found.append(down(found[-1]))
        first, *others = (out(one).permute(0, 2, 3, 1) for out, one in zip(self.out, found, strict=True))
        second, third, fourth = (one + level for one, level in zip(others, self.level, strict=True))
        return first, second, third, fourth


class Injector(nn.Module):
    """x -> x + gamma * attention of LN(x) over LN of the branch's last three maps; gamma (D) starts at 0.

    x (B, N, D) are patch tokens behind P others, which pass unchanged, or a map (B, H, W, D).
    """

    wants_grid = True
    dormant = dict.fromkeys(
        ("norm.weight", "norm.bias"),
        "gamma and the maps from queries to offsets and weights start at zero, so its gradient is zero in two steps",
    )

    def __init__(self, width: int, heads: int, points: int, ratio: float, gamma: float = 0.0) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, eps=NORM_EPS)
        self.norm_maps = nn.LayerNorm(width, eps=NORM_EPS)
        self.attention = DeformableAttention(width, heads, 3, points, ratio)
        self.gamma = nn.Parameter(torch.full((width,), gamma))

    def forward(self, x: Tensor, maps: Maps, grid: tuple[int, ...]) -> Tensor:
        before, patches = split_patches(x, grid)
        normed = [self.norm_maps(one) for one in maps[1:]]
        seen = self.attention(self.norm(patches).flatten(1, 2), cell_centres(grid, x), normed)
        return joined(before, patches + self.gamma * seen.reshape(patches.shape), x)


class Extractor(nn.Module):
    """The branch looks at a ViT's patch tokens: c -> c + attention of LN(c) over LN(x); c -> c + FFN(LN(c)).

    FFN: linear D -> D r, one depth-wise convolution 3 x 3 of each map with the same weights, GELU, linear -> D.
    """

    def __init__(
        self, width: int, heads: int, points: int, ratio: float, hidden: float = 0.25, drop_path: float = 0.0
    ) -> None:
        super().__init__()
        inner = max(1, int(width * hidden))
        self.norm = nn.LayerNorm(width, eps=NORM_EPS)
        self.norm_patches = nn.LayerNorm(width, eps=NORM_EPS)
        self.attention = DeformableAttention(width, heads, 1, points, ratio)
        self.norm_ffn = nn.LayerNorm(width, eps=NORM_EPS)
        self.fc1, self.fc2 = nn.Linear(width, inner), nn.Linear(inner, width)
        self.mix = nn.Conv2d(inner, inner, 3, padding=1, groups=inner)
        self.drop_path = DropPath(drop_path)
        for layer in (self.fc1, self.fc2, self.mix):
            _start(layer)

    def forward(self, maps: Maps, patches: Tensor) -> Maps:
        """Maps, and patch tokens (B, H, W, D) -> maps."""
        first, *others = maps
        sizes = [tuple(one.shape[1:3]) for one in others]
        counts = [height * width for height, width in sizes]
        tokens = torch.cat([one.flatten(1, 2) for one in others], dim=1)
        places = torch.cat([cell_centres(size, tokens) for size in sizes])
        tokens = tokens + self.attention(self.norm(tokens), places, [self.norm_patches(patches)])
        tokens = tokens + torch.as_tensor(self.drop_path(self._ffn(self.norm_ffn(tokens), sizes, counts)))
        second, third, fourth = _laid_out(tokens, sizes, counts)
        return first, second, third, fourth

    def _ffn(self, tokens: Tensor, sizes: Sequence[tuple[int, ...]], counts: Sequence[int]) -> Tensor:
        laid = _laid_out(self.fc1(tokens), sizes, counts)
        mixed = [self.mix(one.permute(0, 3, 1, 2)).permute(0, 2, 3, 1).flatten(1, 2) for one in laid]
        out: Tensor = self.fc2(functional.gelu(torch.cat(mixed, dim=1)))
        return out


class Extractors(nn.Module):
    """One or several extractors, one behind the other, on what leaves a block."""

    wants_grid = True

    def __init__(self, extractors: Sequence[Extractor]) -> None:
        super().__init__()
        self.steps = nn.ModuleList(extractors)

    def forward(self, x: Tensor, maps: Maps, grid: tuple[int, ...]) -> Maps:
        _, patches = split_patches(x, grid)
        for step in self.steps:
            maps = step(maps, patches)
        return maps


class LevelsOut(nn.Module):
    """(frozen feature, what leaves each group of blocks ..., maps) -> levels f1 ... f4 at strides 4, 8, 16 and 32.

    f1 = BN(up(c2) + c1 + resize(x_1)), f_l = BN(c_l + resize(x_l)), with a deconvolution 2 x 2 as `up` and the patch
    tokens x_l of the groups, resized bilinearly. The pooled feature is the mean over the levels of the mean of each.

    Args:
        width: D.
        groups: of blocks that are read.
        add: whether the patch tokens are added.
    """

    wants_grids = True
    gives_sequence = True

    def __init__(self, width: int, groups: int, add: bool = True) -> None:
        super().__init__()
        self.feature_width = width
        self.gives_levels = tuple((width, stride) for stride in STRIDES)
        # Level l takes the tokens of its group; with fewer groups than levels some serve several.
        self.group = [level * groups // len(STRIDES) for level in range(len(STRIDES))]
        self.add = add
        self.up = nn.ConvTranspose2d(width, width, kernel_size=2, stride=2)
        self.norms = nn.ModuleList(BatchNorm2dOrRunning(width) for _ in STRIDES)
        _start(self.up)

    def forward(
        self,
        feature: Tensor,
        *values: Tensor,
        grids: Sequence[tuple[int, ...] | None],
        sequence: bool = False,
        levels: bool = False,
    ) -> Tensor | tuple[object, ...]:
        """The pooled feature (B, D); with `sequence` also tokens, with `levels` also the levels (B, h, w, D).

        The tokens (B, P + N, D) are the mean of the levels at the patches' resolution, behind the last group's others.
        """
        *groups, found = values
        made = self._levels(groups, grids, found)  # type: ignore[arg-type]
        pooled = torch.stack([one.mean((2, 3)) for one in made]).mean(0)
        given: list[object] = [pooled]
        if sequence:
            last, grid = groups[-1], _grid(grids[len(groups) - 1])
            same = [functional.interpolate(one, grid, mode="bilinear", align_corners=False) for one in made]
            patches = torch.stack(same).mean(0).permute(0, 2, 3, 1)
            given.append(joined(split_patches(last, grid)[0], patches, last))
        if levels:
            given.append([one.permute(0, 2, 3, 1) for one in made])
        return tuple(given) if len(given) > 1 else pooled

    def _levels(self, groups: Sequence[Tensor], grids: Sequence[tuple[int, ...] | None], maps: Maps) -> list[Tensor]:
        first, *others = (one.permute(0, 3, 1, 2) for one in maps)
        height, width = first.shape[2:]
        made = [self.up(others[0])[:, :, :height, :width] + first, *others]
        if self.add:
            patches = [
                split_patches(x, _grid(grid))[1].permute(0, 3, 1, 2) for x, grid in zip(groups, grids, strict=False)
            ]
            for level, group in enumerate(self.group):
                size = made[level].shape[2:]
                resized = functional.interpolate(patches[group], size, mode="bilinear", align_corners=False)
                made[level] = made[level] + resized
        return [norm(one) for norm, one in zip(self.norms, made, strict=True)]


def split_patches(x: Tensor, grid: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Of (B, P + H W, D) or (B, H, W, D) what stands before the patches, (B, P, D), and these as (B, H, W, D)."""
    if x.dim() == 4:
        return x[:, :0, 0], x
    count = grid[0] * grid[1]
    before = x.shape[1] - count
    return x[:, :before], x[:, before:].reshape(x.shape[0], grid[0], grid[1], -1)


def joined(before: Tensor, patches: Tensor, like: Tensor) -> Tensor:
    """The two parts of `split_patches` in the layout of `like`."""
    if like.dim() == 4:
        return patches
    return torch.cat((before, patches.flatten(1, 2).to(before.dtype)), dim=1)


def _grid(grid: tuple[int, ...] | None) -> tuple[int, int]:
    assert grid is not None  # the method asks for blocks whose tokens lie on one
    return grid[0], grid[1]


def _laid_out(tokens: Tensor, sizes: Sequence[tuple[int, ...]], counts: Sequence[int]) -> list[Tensor]:
    parts = torch.split(tokens, list(counts), dim=1)
    return [part.reshape(len(part), *size, part.shape[-1]) for part, size in zip(parts, sizes, strict=True)]


def _conv(channels: int, out: int, stride: int) -> tuple[nn.Module, ...]:
    return nn.Conv2d(channels, out, 3, stride, padding=1, bias=False), BatchNorm2dOrRunning(out), nn.ReLU()


def _start(module: nn.Module) -> None:
    """Linear maps normal with deviation 0.02, convolutions with sqrt(2 / fan out), biases at zero."""
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        nn.init.zeros_(module.bias)
    elif isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)):
        fan_out = module.kernel_size[0] * module.kernel_size[1] * module.out_channels // module.groups
        nn.init.normal_(module.weight, std=math.sqrt(2.0 / fan_out))
        if module.bias is not None:
            nn.init.zeros_(module.bias)
