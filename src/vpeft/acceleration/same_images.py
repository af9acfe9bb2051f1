"""Find out whether a data set returns the same tensors every time."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from vpeft.data.image_set import ImageSet
from vpeft.data.preprocessing import AsPicture, CropTo, ResizeTo

LOOKED_AT = 8


class ImageSource(Protocol):
    """A data set with a length: item i is (image float (C, H, W), target)."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> tuple[Tensor, int]: ...


def why_not_the_same(images: ImageSource) -> str | None:
    """Return why `images[i]` may differ from one reading to the next, or None if it does not.

    For vpeft's own image sets, the classes of the transforms decide. Of other data sets, a few images are read twice
    with different seeds and epochs: they must be equal, and no random generator may have changed. The state of the
    generators is restored.
    """
    if getattr(images, "told", None) is not None:
        return None  # views, each of which has its own random numbers
    if isinstance(images, ImageSet):
        unknown = next(_not_known(images.transform), None)
        return None if unknown is None else f"{unknown} may treat an image differently each time"
    count = len(images)
    looked = sorted({round(i * (count - 1) / max(1, LOOKED_AT - 1)) for i in range(min(LOOKED_AT, count))})
    tell = getattr(images, "set_epoch", None)
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()
    found: list[list[Tensor]] = []
    try:
        for seed in (11, 12):
            if callable(tell):
                tell(seed)
            torch.manual_seed(seed)
            random.seed(seed)
            np.random.seed(seed)
            start = _generators()
            found.append([images[index][0].clone() for index in looked])
            if _generators() != start:
                return "reading an image draws random numbers"
    finally:
        torch.set_rng_state(before[0])
        random.setstate(before[1])
        np.random.set_state(before[2])
    if not all(torch.equal(one, other) for one, other in zip(*found, strict=True)):
        return "an image read twice is not the same"
    return None


def _generators() -> tuple[bytes, int, bytes]:
    state: Any = np.random.get_state()
    return (
        torch.get_rng_state().numpy().tobytes(),
        hash(random.getstate()),
        state[1].tobytes() + bytes([state[2] % 256]),
    )


def _not_known(transform: Any) -> Iterator[str]:
    """Yield the names of transforms that may be random."""
    from torchvision.transforms import v2

    known = (v2.Compose, AsPicture, ResizeTo, CropTo, v2.PILToTensor, v2.ToDtype, v2.Normalize)
    if transform is None:
        return
    if not isinstance(transform, nn.Module):
        yield getattr(transform, "__name__", type(transform).__name__)
        return
    steps = transform.transforms if isinstance(transform, v2.Compose) else [transform]
    for step in steps:
        # Steps on clips say it themselves; they are drawn once for all frames.
        if not isinstance(step, known) and getattr(step, "random", True):
            yield type(step).__name__
