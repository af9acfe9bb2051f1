"""Random crops of images that are tensors already, each image with a crop of its own."""

from __future__ import annotations

import torch
from torch import Tensor
from torchvision.transforms import v2


def random_crops(images: Tensor, least: float) -> Tensor:
    """(B, C, H, W) -> crops of `least` to all of the area, resized back by cubic interpolation, mirrored at random."""
    size = [int(side) for side in images.shape[-2:]]
    crop = v2.Compose(
        [
            v2.RandomResizedCrop(size, scale=(least, 1.0), interpolation=v2.InterpolationMode.BICUBIC),
            v2.RandomHorizontalFlip(),
        ]
    )
    return torch.stack([crop(image) for image in images])
