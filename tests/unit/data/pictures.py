"""Small pictures for the tests: every (label, number) has its own pixels, which a test can compute again."""

from __future__ import annotations

import zlib
from pathlib import Path

import numpy as np
from PIL import Image


def pixels(name: str, side: int = 12) -> np.ndarray:
    """The picture of this name, uint8 (side, side, 3)."""
    return np.random.default_rng(zlib.crc32(name.encode())).integers(0, 256, (side, side, 3), np.uint8)


def write(file: Path, name: str | None = None) -> Path:
    """Write the picture of this name (by default that of the file's path) to `file`."""
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels(name or file.as_posix())).save(file)
    return file


def write_classes(root: Path, **counts: int) -> Path:
    """`counts` pictures in a folder for each class."""
    for label, count in counts.items():
        (root / label).mkdir(parents=True, exist_ok=True)
        for index in range(count):
            write(root / label / f"{index:03d}.png", f"{root.name}/{label}/{index}")
    return root
