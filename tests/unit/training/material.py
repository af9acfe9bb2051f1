"""What the training tests train: a tiny ViT with dropout and drop path, and images that noise is added to."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch
from torch import Tensor

import vpeft
from tests.models import tiny_vit
from vpeft.injection.tuned_model import TunedModel


class Patches:
    """`count` images (3, 32, 32) of `classes` classes, told apart by their colour.

    With `noise`, each access draws from torch, Python and NumPy, as random transforms do.
    """

    def __init__(self, count: int = 40, classes: int = 3, noise: float = 0.0, seed: int = 3) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.images = torch.randn(count, 3, 32, 32, generator=generator) * 0.3
        self.targets = [i % classes for i in range(count)]
        self.labels = [f"class {i}" for i in range(classes)]
        self.noise = noise
        for image, target in zip(self.images, self.targets, strict=True):
            image[target % 3] += 1.0 + target // 3

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        image = self.images[index]
        if self.noise:
            drawn = torch.randn(image.shape) + random.gauss(0, 1) + float(np.random.standard_normal())
            image = image + self.noise * drawn
        return image, self.targets[index]


def tuned_vit(classes: int = 3, seed: int = 0, **options: Any) -> TunedModel:
    """A tiny ViT with LoRA; dropout and drop path act in training, so that random numbers matter."""
    torch.manual_seed(0)
    model = tiny_vit(drop_path_rate=0.2, **options)
    torch.manual_seed(seed)
    method = vpeft.methods.LoRA(rank=2, dropout=0.2)
    return vpeft.tune(model, method, num_classes=classes, show=False, verify=False)


def weights(tuned: TunedModel) -> dict[str, Tensor]:
    """A copy of everything that makes the adapter."""
    return {name: tensor.clone() for name, tensor in tuned.adapter_state().items()}


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    """Bit by bit."""
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
