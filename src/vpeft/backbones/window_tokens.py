"""Tokens that travel beside a map, and how they pass blocks that attend within windows: as VPT has it for Swin."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from timm.models.swin_transformer import window_partition, window_reverse
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from .points import NothingRead
from .tokens import TokenCarrier, spread_mean


class BesideTokens(TokenCarrier):
    """Tokens that travel beside a (B, H, W, D) map; the re-expressed blocks take them into their windows.

    `norm` is the model's last one: tokens that are pooled pass it like the map does.
    """

    def __init__(self, norm: nn.Module) -> None:
        super().__init__(prefix=0)
        self.norm = norm

    @property
    def tokens(self) -> Tensor | None:
        """What travels beside the map in this pass."""
        found: Tensor | None = self.plain if self.memory is None else self.memory.recall(self)
        return found

    @tokens.setter
    def tokens(self, tokens: Tensor | None) -> None:
        if self.memory is None:
            self.plain = tokens
        else:
            self.memory.keep(self, tokens)

    def reset(self) -> None:
        self.plain = None

    def state(self) -> dict[str, Tensor | None]:
        return {"tokens": self.tokens}

    def put(self, state: dict[str, Tensor | None]) -> None:
        self.tokens = state["tokens"]

    def enter(self, hidden: Tensor, tokens: Tensor) -> Tensor:
        self.tokens = tokens if self.tokens is None else torch.cat([tokens, self.tokens], dim=1)
        return hidden

    def carried(self, hidden: Tensor, count: int) -> Tensor:
        assert self.tokens is not None
        return self.tokens[:, :count]

    def leave(self, hidden: Tensor, count: int, pooled: bool) -> Tensor:
        assert self.tokens is not None
        leaving, rest = self.tokens[:, :count], self.tokens[:, count:]
        self.tokens = rest if rest.shape[1] else None
        return spread_mean(hidden, self.norm.forward(leaving)) if pooled else hidden

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "plain": None}  # a copy starts between two forward passes


def beside(block: nn.Module) -> Tensor | None:
    """The tokens that the carrier brings to a block, (B, n, D), if it brings any.

    Raises:
        NothingRead: the block had tokens, and is run again in the backward pass without them.
    """
    carrier: BesideTokens | None = block.__dict__.get("vpeft_carrier")
    tokens = None if carrier is None else carrier.tokens
    if carrier is None or torch.compiler.is_compiling():
        return tokens
    if torch._C._current_graph_task_id() == -1:  # no backward pass is under way
        block.__dict__["vpeft_had_tokens"] = tokens is not None
    elif tokens is None and block.__dict__.get("vpeft_had_tokens"):
        raise NothingRead(
            f"A {type(block).__name__} is run again in the backward pass, but the inserted tokens travel beside what it"
            " was given and are not there. Checkpoint with the model's own switch, if it has one, or with"
            " acceleration='recompute_blocks' in training; or not at all."
        )
    return tokens


def attend_beside(block: Any, x: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """One window attention of a timm Swin block, (B, H, W, D) and (B, n, D) -> the same shapes.

    The tokens join every (shifted) window in front; what comes out for them is averaged over the windows.
    """
    batch, height, width, channels = x.shape
    count = tokens.shape[1]
    shift = tuple(block.shift_size)
    if any(shift):
        x = torch.roll(x, shifts=(-shift[0], -shift[1]), dims=(1, 2))
    high, wide = block.window_size
    x = F.pad(x, (0, 0, 0, -width % wide, 0, -height % high))
    padded = (x.shape[1], x.shape[2])
    windows = window_partition(x, block.window_size).view(batch, -1, block.window_area, channels)
    number = windows.shape[1]
    beside = tokens[:, None].expand(-1, number, -1, -1)
    rows = torch.cat([beside, windows], dim=2).reshape(batch * number, count + block.window_area, channels)
    mask = block.get_attn_mask(x) if getattr(block, "dynamic_mask", False) else block.attn_mask
    rows = block.attn(rows, mask=mask).view(batch, number, count + block.window_area, channels)
    own = rows[:, :, :count].mean(dim=1)
    mapped = rows[:, :, count:].reshape(-1, high, wide, channels)
    x = window_reverse(mapped, block.window_size, *padded)[:, :height, :width].contiguous()
    return (torch.roll(x, shifts=shift, dims=(1, 2)) if any(shift) else x), own


class CellsInWindows:
    """(rows, columns) of a map -> the number of each cell's token among those of all windows, row by row, (H W,).

    Args:
        block: a live timm Swin block, whose windows and shift may follow the size of the images.
    """

    def __init__(self, block: nn.Module) -> None:
        self.block = block

    def __call__(self, height: int, width: int) -> Tensor:
        block: Any = self.block
        shift, (high, wide) = tuple(block.shift_size), block.window_size
        cells = torch.arange(height * width).view(1, height, width, 1)
        if any(shift):
            cells = torch.roll(cells, shifts=(-shift[0], -shift[1]), dims=(1, 2))
        cells = F.pad(cells, (0, 0, 0, -width % wide, 0, -height % high), value=-1)
        found = window_partition(cells, block.window_size).flatten()
        return found.argsort(stable=True)[len(found) - height * width :]  # what pads a window comes first, as -1


def checkpointed(stage: Any, carrier: BesideTokens, x: Tensor) -> Tensor:
    """A stage whose activation checkpoints take the carrier's tokens in and out with the map."""
    return checkpointed_blocks(stage.blocks, carrier, stage.downsample(x))


def checkpointed_blocks(blocks: Iterable[nn.Module], carrier: BesideTokens, x: Tensor) -> Tensor:
    """Blocks one after the other, each recomputed with the tokens that it was given."""
    for block in blocks:
        x, carrier.tokens = checkpoint(_beside, block, carrier, x, carrier.tokens, use_reentrant=False)
    return x


def _beside(block: nn.Module, carrier: BesideTokens, x: Tensor, tokens: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """One block as a function of the map and the tokens; the carrier is left as it was found."""
    found, carrier.tokens = carrier.tokens, tokens
    try:
        x = block(x)
        return x, carrier.tokens
    finally:
        carrier.tokens = found
