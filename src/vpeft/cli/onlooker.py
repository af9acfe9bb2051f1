"""A loaded adapter as the final evaluator sees a trained model; it remembers what it said of each image."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vpeft.bench.record import RecordedScores
from vpeft.bench.sealed import SplitArrays
from vpeft.cli.loaded import Loaded

_BATCH = 128


class ShownImage(NamedTuple):
    """An image (H, W, 3) with its label, what was said of it, and how sure that was."""

    pixels: NDArray[np.uint8]
    label: str
    said: str
    probability: float


class Onlooker:
    """`evaluate` as the benchmark asks for it; `seen` is what it was shown, in order."""

    def __init__(self, loaded: Loaded) -> None:
        self._loaded = loaded
        self.seen: list[ShownImage] = []

    def evaluate(self, images: SplitArrays, split: str) -> RecordedScores:
        """Scores on one split; top-1 alone."""
        transform, labels = self._loaded.preprocessing.transform(), self._loaded.labels
        self.seen = []
        for start in range(0, len(images.pixels), _BATCH):
            pixels = images.pixels[start : start + _BATCH]
            rows = self._loaded.probabilities([transform(Image.fromarray(one)) for one in pixels])
            truth = images.labels[start : start + _BATCH]
            for one, number, best in zip(pixels, truth, self._loaded.best(rows, 1), strict=True):
                self.seen.append(ShownImage(one, labels[int(number)], *best[0]))
        right = sum(one.said == one.label for one in self.seen)
        return RecordedScores(
            split=split, values={"top1": right / len(self.seen)}, leading="top1", count=len(self.seen)
        )
