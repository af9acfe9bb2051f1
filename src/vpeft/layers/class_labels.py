"""One class label for each image, which methods ask for that choose their weights or channels by class."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..errors import VpeftError


class NeedsClassLabels(VpeftError):
    """A method chooses what it trains by the class of each image, and the task gives no such label."""


def class_labels(targets: Any, images: int, method: str) -> Tensor:
    """Return the targets (B,) if they are one class index for each of the `images` images.

    Raises:
        NeedsClassLabels: the targets are of another kind or shape, as those of several labels, numbers, masks or pairs.
    """
    if isinstance(targets, Tensor) and targets.shape == (images,) and not targets.is_floating_point():
        return targets
    shape = f"{tuple(targets.shape)} of {targets.dtype}" if isinstance(targets, Tensor) else type(targets).__name__
    raise NeedsClassLabels(
        f"{method} chooses what it trains by the class of each image, so it needs one class index for each of the"
        f" {images} images; the task gives {shape}. Use it with classification, or take another method."
    )
