"""DualPath: frames and mosaics of small frames pass one frozen image model, with adapters for each path."""

from __future__ import annotations

from collections.abc import Iterator
from math import prod

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from ..backbones.backbone import Backbone
from ..backbones.edits import Edit
from ..backbones.library_create import UnsuitableSize
from ..backbones.points import Layout, MissingPlace
from ..layers.bottleneck import Bottleneck
from ..method import Method, register


@register("dual_path", family="adapter", paper="2303.09857", year=2023, venue="CVPR")
class DualPath(Method):
    """A spatial path of a few frames and a temporal path of mosaics, each of M x M small frames, through one model.

    With A(v) = s (W_2 drop(GELU(W_1 v + b_1)) + b_2) and y = LN1 x, w = LN2 x: spatial tokens x += attn(y) + A_sa(y);
    x += MLP(w) + A_sm(w). Temporal tokens x += A_ta(attn(A_tb(y))); x += A_tm(MLP(w)). The feature is
    [mean over the mosaics, mean over the frames] (2 D); the authors' head on it is `mlp`. W_2 starts at zero, so the
    temporal path passes the blocks unchanged at step 0, which is not the frozen model.

    Mosaics have positions of their own, which start as the frozen ones, and a fixed sinusoidal code of the cell's
    number among all mosaics of the clip (0 for tokens before the grid); both are added where blocks begin, behind
    CLIP's first norm. The model's own class token and positions train. The released code does not compile, and its
    count (17,752,320 in the adapters of ViT-B) is above the paper's.
    """

    variants = ({"spatial_frames": 2, "side": 2},)

    spatial_frames: int = Field(default=8, gt=0)
    """frames of the spatial path, evenly spaced"""
    side: int = Field(default=4, gt=1)
    """M: frames of a row and of a column of a mosaic; a clip has a multiple of M * M frames"""
    ratio: float = Field(default=0.25, gt=0.0)
    """hidden channels of an adapter, as a part of D"""
    scale: float = 1.0
    """s"""
    dropout: float = Field(default=0.1, ge=0.0, lt=1.0)
    """after the GELU"""
    train_embedding: bool = True
    """whether the model's own class token and positions train"""

    @property
    def starts_as_identity(self) -> bool:
        return False

    def edits(self, backbone: Backbone) -> Iterator[Edit]:
        backbone.require_time("DualPath", single=True)
        backbone.require("attn", "mlp", "norm1", "norm2")
        frames = backbone.inputs.frames
        assert frames is not None
        if frames % self.side**2 or frames < self.spatial_frames:
            raise MissingPlace(
                f"DualPath lays {self.side**2} frames on each mosaic and takes {self.spatial_frames} frames beside"
                f" them, and the clips of this backbone have {frames}. Read a multiple of {self.side**2} frames, or"
                " choose `side` and `spatial_frames`."
            )
        yield backbone.place("clips").before(MosaicsAndFrames(self.side, self.spatial_frames))
        embedding = backbone.embedding
        yield embedding.after(MosaicPositions(embedding.width, embedding.prefix, embedding.cells, self))
        if self.train_embedding and "unfreeze" in embedding.verbs:
            yield embedding.unfreeze()
        for block in backbone.blocks:
            if block.attn.layout is not Layout.TOKENS or block.layout is not Layout.TOKENS:
                raise MissingPlace(
                    f"DualPath edits what enters and leaves the attention of a whole frame, and {block.name} attends"
                    " within windows of a map."
                )
            entering = self._adapter(block.dim)
            reason = "the adapters before and behind the attention start at zero, so it learns from the third step on"
            entering.dormant = dict.fromkeys(("down.weight", "down.bias"), reason)
            yield block.attn.before(ForPaths(entering, None, self.spatial_frames))
            for place, read in ((block.attn, block.norm1), (block.mlp, block.norm2)):
                layer = ForPaths(self._adapter(block.dim), self._adapter(block.dim), self.spatial_frames)
                yield place.after(layer, reads=(read,))
        yield backbone.outlet.after(FeaturesOfPaths(backbone.outlet.width, self.spatial_frames))

    def _adapter(self, width: int) -> Bottleneck:
        hidden = max(1, int(width * self.ratio))
        return Bottleneck(width, hidden, activation="gelu", scale=self.scale, dropout=self.dropout)


def by_clip(x: Tensor, frames: int) -> Tensor:
    """(B * T, ...) -> (B, T, ...)."""
    return x.reshape(-1, frames, *x.shape[1:])


class MosaicsAndFrames(nn.Module):
    """Clips (B, C, T, H, W) -> (B, C, T / M^2 + S, H, W): mosaics of M x M frames, then S frames, evenly spaced."""

    channels_first = True
    takes_time = True

    def __init__(self, side: int, frames: int) -> None:
        super().__init__()
        self.side, self.frames = side, frames

    def forward(self, clips: Tensor) -> Tensor:
        side, (batch, channels, count, height, width) = self.side, clips.shape
        if count % side**2 or count < self.frames:
            raise UnsuitableSize(
                f"DualPath lays {side**2} frames on each mosaic and takes {self.frames} frames beside them, and this"
                f" clip has {count} frames."
            )
        rows = clips.reshape(batch, channels, -1, side, side, height, width)
        tiled = rows.permute(0, 2, 1, 3, 5, 4, 6)  # (B, m, C, M, H, M, W)
        large = tiled.reshape(-1, channels, side * height, side * width)
        # in single precision: on a CPU there is no such resizing in 16 bits
        small = F.interpolate(large.float(), size=(height, width), mode="bilinear", antialias=True, align_corners=False)
        mosaics = small.to(clips.dtype).reshape(batch, -1, channels, height, width).movedim(1, 2)
        step = count // self.frames
        return torch.cat([mosaics, clips[:, :, : step * self.frames : step]], dim=2)


class MosaicPositions(nn.Module):
    """Adds to the tokens of mosaics a learnt change of their positions, and a fixed code of the cell that they show.

    Args:
        width: D.
        prefix: n, tokens before the grid.
        cells: rows and columns of the grid.
        method: tells the sizes of the paths.
    """

    wants_frames = True
    wants_grid = True

    def __init__(self, width: int, prefix: int, cells: tuple[int, int], method: DualPath) -> None:
        super().__init__()
        self.prefix, self.cells = prefix, cells
        self.side, self.frames = method.side, method.spatial_frames
        self.change = nn.Parameter(torch.zeros(prefix + prod(cells), width))

    def forward(self, x: Tensor, *, grid: tuple[int, ...], frames: int) -> Tensor:
        clips = by_clip(x, frames)
        mosaics = frames - self.frames
        first = self.prefix if x.dim() == 3 else 0
        change = self._change((grid[-2], grid[-1]))[self.prefix - first :]
        added = change + torch.stack([self._code(number, grid, first, x) for number in range(mosaics)])
        moved = clips[:, :mosaics] + added.reshape(mosaics, *x.shape[1:])
        return torch.cat([moved, clips[:, mosaics:]], dim=1).flatten(0, 1)

    def _change(self, grid: tuple[int, int]) -> Tensor:
        """(n + H * W, D) for the grid of this pass."""
        if grid == self.cells:
            return self.change
        cells = self.change[self.prefix :].T.reshape(1, -1, *self.cells)
        fitted = F.interpolate(cells, size=grid, mode="bilinear", align_corners=False).flatten(2)[0].T
        return torch.cat([self.change[: self.prefix], fitted])

    def _code(self, mosaic: int, grid: tuple[int, ...], first: int, like: Tensor) -> Tensor:
        """(n + H * W, D): sine and cosine in turn of the cell's number, counted from 1 through all mosaics."""
        rows, columns = grid[-2:]
        down = torch.arange(rows, device=like.device) * self.side // rows
        across = torch.arange(columns, device=like.device) * self.side // columns
        numbers = 1 + mosaic * self.side**2 + (down[:, None] * self.side + across[None]).flatten()
        numbers = torch.cat([numbers.new_zeros(first), numbers]).to(like.dtype)
        width = like.shape[-1]
        rates = 10000.0 ** (-torch.arange(0, width, 2, device=like.device, dtype=like.dtype) / width)
        angles = numbers[:, None] * rates
        return torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(1)[:, :width]


class ForPaths(nn.Module):
    """Of mosaics h -> temporal(h); of the S frames behind them h -> h + spatial(read), or h as it is without `spatial`.

    Args:
        temporal: the adapter in series on the temporal path.
        spatial: the parallel adapter of the spatial path, on what is read.
        frames: S.
    """

    wants_frames = True

    def __init__(self, temporal: Bottleneck, spatial: Bottleneck | None, frames: int) -> None:
        super().__init__()
        self.temporal, self.spatial, self.frames = temporal, spatial, frames

    def forward(self, hidden: Tensor, read: Tensor | None = None, *, frames: int) -> Tensor:
        clips, mosaics = by_clip(hidden, frames), frames - self.frames
        still = clips[:, mosaics:]
        if self.spatial is not None:
            assert read is not None
            still = still + self.spatial(by_clip(read, frames)[:, mosaics:])
        return torch.cat([self.temporal(clips[:, :mosaics]), still], dim=1).flatten(0, 1)


class FeaturesOfPaths(nn.Module):
    """Features of frames (B * T, D) -> (B * T, 2 D), whose mean over T is [mean of the mosaics, mean of the frames]."""

    wants_frames = True

    def __init__(self, width: int, frames: int) -> None:
        super().__init__()
        self.feature_width, self.frames = 2 * width, frames

    def forward(self, features: Tensor, *, frames: int) -> Tensor:
        clips, mosaics = by_clip(features, frames), frames - self.frames
        moving = F.pad(clips[:, :mosaics] * (frames / mosaics), (0, clips.shape[-1]))
        still = F.pad(clips[:, mosaics:] * (frames / self.frames), (clips.shape[-1], 0))
        return torch.cat([moving, still], dim=1).flatten(0, 1)
