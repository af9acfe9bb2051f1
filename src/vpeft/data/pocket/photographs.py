"""pocket/photographs: from which photograph is this patch? The splits are cut from different parts of each."""

from __future__ import annotations

from functools import cache
from importlib.resources import files

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vpeft.data.pocket.drawing import COLUMNS, ROWS, between, look_up, noisy, to_bytes
from vpeft.data.pocket.task import SIDE, Images, Labels, PocketTask

# class -> (package, file)
PICTURES: dict[str, tuple[str, str]] = {
    "astronaut": ("skimage.data", "astronaut.png"),
    "bricks": ("skimage.data", "brick.png"),
    "cat": ("skimage.data", "chelsea.png"),
    "coffee": ("skimage.data", "coffee.png"),
    "coins": ("skimage.data", "coins.png"),
    "flower": ("sklearn.datasets.images", "flower.jpg"),
    "galaxies": ("skimage.data", "hubble_deep_field.jpg"),
    "grass": ("skimage.data", "grass.png"),
    "gravel": ("skimage.data", "gravel.png"),
    "palace": ("sklearn.datasets.images", "china.jpg"),
    "retina": ("skimage.data", "retina.jpg"),
    "rocket": ("skimage.data", "rocket.jpg"),
    "tissue": ("skimage.data", "ihc.png"),
}
_GRID = (3, 4)  # each photograph is cut into so many rows and columns of cells
# cell (row * 4 + column) -> split, scattered so that no split is all sky or all ground
_CELLS = {"train": (0, 2, 5, 7, 8, 10), "val": (3,), "test": (1, 4, 6, 9, 11)}


@cache
def _picture(name: str) -> NDArray[np.float64]:
    """(H, W) in [0, 1]: the mean of the channels, since colour says too much about which photograph it is."""
    package, file = PICTURES[name]
    with (files(package) / file).open("rb") as stream:
        picture = Image.open(stream).convert("RGB")
        if min(picture.size) > 700:
            picture = picture.reduce(2)
        grey: NDArray[np.float64] = np.asarray(picture, dtype=np.float64).mean(-1) / 255.0
        return grey


def draw(split: str, count: int, rng: np.random.Generator) -> tuple[Images, Labels]:
    names = list(PICTURES)
    labels = rng.integers(0, len(names), count)
    images = np.zeros((count, SIDE, SIDE, 3), np.uint8)
    for i, label in enumerate(labels):
        source = _picture(names[int(label)])
        cells = _CELLS[split]
        row, column = divmod(cells[int(rng.integers(len(cells)))], _GRID[1])
        high, wide = source.shape[0] // _GRID[0], source.shape[1] // _GRID[1]
        cell = source[row * high : (row + 1) * high, column * wide : (column + 1) * wide]
        angle = between(rng, 0, 2 * np.pi)
        side = between(rng, 0.45, 0.75) * min(high, wide)  # turned by 45 degrees it still lies in the cell
        reach = side * (abs(np.cos(angle)) + abs(np.sin(angle))) / 2
        x, y = between(rng, reach, wide - reach), between(rng, reach, high - reach)
        u, v = (COLUMNS - SIDE / 2) * side / SIDE, (ROWS - SIDE / 2) * side / SIDE
        grey = look_up(cell, x + u * np.cos(angle) + v * np.sin(angle), y + v * np.cos(angle) - u * np.sin(angle))
        # a random tint, contrast and sign
        grey = (grey - grey.mean()) / (grey.std() + 0.02)
        tint = 0.3 + 0.7 * rng.random(3)
        level = between(rng, 0.35, 0.65) + between(rng, 0.1, 0.22) * (1 if rng.random() < 0.8 else -1) * grey
        images[i] = to_bytes(noisy(level[..., None] * tint / tint.max(), rng, between(rng, 0.01, 0.05)))
    return images, labels.astype(np.int64)


TASK = PocketTask(
    name="photographs",
    group="natural",
    title="Which photograph?",
    description="A small, turned, tinted patch of one of 13 photographs; no pixel of a photograph is in two splits.",
    labels=tuple(PICTURES),
    source="photographs shipped with scikit-image and scikit-learn",
    licence="CC0 or public domain (scikit-image); CC-BY-2.0 (china.jpg by danielbuechele, flower.jpg by vultilion)",
    needs=("skimage", "sklearn"),
    draw=draw,
)
