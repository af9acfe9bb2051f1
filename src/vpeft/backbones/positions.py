"""Position embeddings for another image size: the grid is interpolated, the tokens before it stay."""

from __future__ import annotations

import warnings
from math import isqrt

import torch
from torch import Tensor
from torch.nn import functional as F

NAMES = ("pos_embed", "position_embeddings", "position_embedding.weight")


class ResizedPositions(UserWarning):
    """Position embeddings were interpolated to another grid."""


def is_position(key: str) -> bool:
    """Whether a key names a table of absolute positions."""
    return key.endswith(NAMES)


def resized(table: Tensor, shape: torch.Size, grid: tuple[int, int] | None) -> Tensor | None:
    """A table (..., P + N, D) for another number of positions; None where the two do not differ in their grid alone.

    Args:
        table: of a square grid of N cells behind P tokens.
        shape: the shape that is wanted.
        grid: height and width of the wanted grid; a square one when None.

    Bicubic with antialiasing in single precision, as timm does it.
    """
    if table.dim() != len(shape) or table.shape[-1] != shape[-1] or table.shape[:-2] != shape[:-2]:
        return None
    old, new = table.shape[-2], shape[-2]
    for prefix in range(3):
        side = isqrt(old - prefix) if old > prefix else 0
        wanted = grid if grid is not None else (isqrt(new - prefix), isqrt(new - prefix))
        if side and side * side == old - prefix and wanted[0] * wanted[1] == new - prefix:
            flat = table.reshape(old, -1).float()
            cells = flat[prefix:].T.reshape(1, -1, side, side)
            cells = F.interpolate(cells, size=wanted, mode="bicubic", antialias=True, align_corners=False)
            rows = torch.cat([flat[:prefix], cells.flatten(2)[0].T])
            return rows.reshape(shape).to(table.dtype)
    return None


def say(model: str, old: tuple[int, ...], new: tuple[int, ...]) -> str:
    """Warn that positions were resized; returns the sentence."""
    sentence = f"The position embeddings of {model} were resized from {tuple(old)} to {tuple(new)}."
    warnings.warn(sentence, ResizedPositions, stacklevel=3)
    return sentence
