"""The importance of each frozen weight for a task: the diagonal of the empirical Fisher information."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from ..backbones.places import Projection, stored_weight
from ..errors import VpeftError


class NoBatches(VpeftError):
    """There are no batches to measure on."""


def fisher(
    logits: Callable[[Tensor], Tensor], places: Sequence[Projection], batches: Iterable[tuple[Tensor, Tensor]]
) -> list[Tensor]:
    """The mean over batches of the squared gradient of the cross-entropy, for the weight of each place.

    Args:
        logits: images (B, 3, H, W) -> (B, K).
        places: frozen projections; several may be rows of one weight.
        batches: images and labels.

    The gradient is that of a batch's mean, as in the FISH mask, so the square is not each image's own. Computed in
    single precision, and `requires_grad` is afterwards as it was.

    Raises:
        NoBatches: there are none.
    """
    whole = {id(place.module): stored_weight(place.module) for place in places}
    flags = {key: tensor.requires_grad for key, tensor in whole.items()}
    total = {key: torch.zeros_like(tensor) for key, tensor in whole.items()}
    count = 0
    try:
        for tensor in whole.values():
            tensor.requires_grad_(True)
        for images, labels in batches:
            device = next(iter(whole.values())).device
            with torch.enable_grad(), torch.autocast(device.type, enabled=False):
                loss = F.cross_entropy(logits(images.to(device)), labels.to(device))
                slopes = torch.autograd.grad(loss, list(whole.values()))
            for key, slope in zip(whole, slopes, strict=True):
                total[key] += slope.square()
            count += 1
    finally:
        for key, tensor in whole.items():
            tensor.requires_grad_(flags[key])
    if not count:
        raise NoBatches("Fisher information is measured on labelled images, but `prepare` was given none.")
    found = [total[id(place.module)] / count for place in places]
    return [
        power if place.rows is None else place.rows.take(power, 0) for power, place in zip(found, places, strict=True)
    ]
