"""The handwritten digits that come with scikit-learn: 1797 images of ten classes, for trying things without a network.

They are the test part of the UCI set "Optical Recognition of Handwritten Digits" (Alpaydin and Kaynak, 1998): 8 x 8
counts of ink from 0 to 16, drawn here as 64 x 64 grey images by bicubic interpolation, white on black.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
from PIL import Image

from vpeft.data.config import DataConfig
from vpeft.data.items import ArrayPicture, Item, Listing
from vpeft.data.sources.registry import Claim, source
from vpeft.errors import need_extra

SIDE = 64


@source
class Digits:
    """One fixed set without splits of its own."""

    name = "digits"
    title = "scikit-learn's handwritten digits, 1797 images of ten classes"

    def claims(self, config: DataConfig) -> Claim:
        if config.source != self.name:
            return Claim.NONE
        # A folder of that name may be meant instead: then neither is taken without asking.
        return Claim.LIKENESS if Path(config.source).exists() else Claim.MARK

    def names(self) -> Iterable[str]:
        return (self.name,)

    def read(self, config: DataConfig) -> Listing:
        loaded = need_extra("sklearn.datasets", "bench").load_digits()
        ink = (loaded.images * (255 / 16) + 0.5).astype(np.uint8)
        size = (SIDE, SIDE)
        large = np.stack([np.asarray(Image.fromarray(one).resize(size, Image.Resampling.BICUBIC)) for one in ink])
        items = [
            Item(f"digits[{index:04d}]", str(int(label)), ArrayPicture(large, index))
            for index, label in enumerate(loaded.target)
        ]
        return Listing(self.title, whole=items)
