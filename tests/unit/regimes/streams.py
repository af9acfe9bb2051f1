"""Tiny streams: drawn classes of 32 x 32 pixels, and a tiny backbone that makes the same weights at each call."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import nn

from tests.models import tiny_vit
from vpeft.data.config import DataConfig
from vpeft.data.datasets import Datasets, open_data
from vpeft.data.preprocessing import Preprocessing
from vpeft.regimes.learner import Setting
from vpeft.regimes.stream import Stream, class_stream
from vpeft.training.optimisation import Optimisation

CLASSES = ("ant", "bee", "cat", "dog", "elk", "fox")


def backbone() -> nn.Module:
    """A tiny vision transformer with the same weights at each call."""
    torch.manual_seed(0)
    return tiny_vit()


def draw(folder: Path, classes: Sequence[str] = CLASSES, each: int = 6, shift: int = 0) -> Path:
    """A folder of classes that differ in colour and in the direction of stripes, with a little noise."""
    for number, name in enumerate(classes):
        at = folder / name
        at.mkdir(parents=True)
        code = sum(map(ord, name)) + shift
        draws = np.random.default_rng(code)
        rows, columns = np.mgrid[:32, :32]
        stripes = (rows if code % 2 else columns) // (2 + number % 3) % 2
        colour = np.random.default_rng(code + 7).integers(40, 215, 3)
        for index in range(each):
            image = colour * (0.5 + 0.5 * stripes[..., None]) + draws.normal(0, 12, (32, 32, 3))
            Image.fromarray(image.clip(0, 255).astype(np.uint8)).save(at / f"{index}.png")
    return folder


def opened(folder: Path) -> Datasets:
    """The folder, a third of it for the test."""
    return open_data(DataConfig(source=str(folder), val_fraction=0, test_fraction=0.34))


def preprocessing() -> Preprocessing:
    return Preprocessing.from_model(backbone()).resized((32, 32))


def stream_of(folder: Path, increment: int = 2, first: int = 0) -> Stream:
    """The classes of a folder in the order of their names."""
    return class_stream(opened(folder), preprocessing(), increment=increment, first=first, order_seed=None)


def setting(tasks: int | None = None, epochs: int = 2, seed: int = 0, **more: object) -> Setting:
    """A few steps of plain SGD on the processor."""
    fields = {"epochs": epochs, "batch": 4, "lr": 0.05, "optimiser": "sgd", "warmup": 0, "device": "cpu", **more}
    return Setting(backbone, Optimisation.model_validate(fields), seed=seed, tasks=tasks)
