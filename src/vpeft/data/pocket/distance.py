"""pocket/distance: how far away is the middle of the picture? A real stereo pair, left in red and right in cyan."""

from __future__ import annotations

from functools import cache
from importlib.resources import files

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vpeft.data.pocket.drawing import Field, between, clouds, noisy, to_bytes
from vpeft.data.pocket.task import SIDE, Images, Labels, PocketTask

LABELS = ("nearest", "near", "middle", "far", "farther", "farthest")
_CORE = 12  # the side of the square in the middle whose disparity counts
_STRIP = 100  # the pair is cut into horizontal strips of so many rows
_SPLIT = {"train": ((0, 0), (1, 1), (2, 0), (3, 1), (4, 0)), "test": ((0, 1), (1, 0), (2, 1), (3, 0), (4, 1))}


@cache
def _pair() -> tuple[Field, Field, NDArray[np.float64]]:
    """Left and right photograph, grey (500, 741) in [0, 1], and the left one's measured disparity in pixels."""
    folder = files("skimage.data")
    views = []
    for name in ("motorcycle_left.png", "motorcycle_right.png"):
        with (folder / name).open("rb") as stream:
            views.append(np.asarray(Image.open(stream).convert("L")) / 255.0)
    with (folder / "motorcycle_disp.npz").open("rb") as stream:
        disparity = np.load(stream)["arr_0"].astype(np.float64)
    return views[0], views[1], disparity


@cache
def _centres() -> dict[str, tuple[NDArray[np.intp], NDArray[np.int64]]]:
    """Split -> top left corners (M, 2) of views and the class of each."""
    _, _, disparity = _pair()
    known = np.isfinite(disparity)
    rows, columns = (g.ravel() for g in np.mgrid[0 : disparity.shape[0] - SIDE + 1, 0 : disparity.shape[1] - SIDE + 1])
    half = (SIDE - _CORE) // 2

    def window(field: NDArray[np.float64]) -> NDArray[np.float64]:
        table = np.zeros((field.shape[0] + 1, field.shape[1] + 1))
        table[1:, 1:] = field.cumsum(0).cumsum(1)
        top, left = rows + half, columns + half
        down, right = top + _CORE, left + _CORE
        found: NDArray[np.float64] = table[down, right] - table[top, right] - table[down, left] + table[top, left]
        return found

    filled = np.where(known, np.round(disparity * 64) / 64, 0.0)  # sums of such numbers are exact
    area = _CORE * _CORE
    whole = window(known.astype(np.float64)) == area
    mean = window(filled) / area
    spread = window(filled**2) / area - mean**2
    plain = whole & (spread < 6.0)  # one surface, not the border between two
    edges = np.array([0.0, 14.0, 19.0, 28.0, 39.0, 48.0, 100.0])
    kind = len(LABELS) - np.digitize(mean, edges)
    clear = np.abs(mean[:, None] - edges[1:-1]).min(1) > 0.75
    strip, within = np.divmod(rows, _STRIP)
    half_width = disparity.shape[1] // 2
    side, inset = np.divmod(columns, half_width)
    fits = plain & clear & (within <= _STRIP - SIDE) & (inset <= half_width - SIDE)
    splits = {}
    for split, cells in _SPLIT.items():
        mine = fits & np.any([(strip == s) & (side == h) for s, h in cells], 0)
        splits[split] = (np.stack([rows[mine], columns[mine]], 1), kind[mine].astype(np.int64))
    return splits


def draw(split: str, count: int, rng: np.random.Generator) -> tuple[Images, Labels]:
    left, right, _ = _pair()
    # validation shares its part of the scene with training: there are too few parts for three
    corners, kinds = _centres()["test" if split == "test" else "train"]
    labels = rng.permutation(np.arange(count) % len(LABELS))
    stock = [rng.permutation(np.flatnonzero(kinds == kind)) for kind in range(len(LABELS))]
    used = [0] * len(LABELS)
    images = np.zeros((count, SIDE, SIDE, 3), np.uint8)
    for i, label in enumerate(labels.tolist()):
        row, column = corners[stock[label][used[label] % len(stock[label])]]
        used[label] += 1
        views = []
        for photograph in (left, right):
            view = photograph[row : row + SIDE, column : column + SIDE]
            if photograph is left:  # the same shadows fall on both
                shade = 0.7 + 0.6 * clouds(rng, (2, 3))
                gain, lift = between(rng, 0.7, 1.5), between(rng, -0.1, 0.1)
            views.append((view - view.mean()) * gain + view.mean() * shade + lift)
        picture = np.stack([views[0], views[1], views[1]], -1)
        if rng.random() < 0.5:
            picture = picture[::-1]
        images[i] = to_bytes(noisy(picture, rng, between(rng, 0.01, 0.04)))
    return images, labels.astype(np.int64)


TASK = PocketTask(
    name="distance",
    group="structured",
    title="How far away?",
    description="A window of a real stereo pair, left view in red and right in cyan; the distance of its middle.",
    labels=LABELS,
    source="Middlebury 2014 stereo pair 'Motorcycle' with measured disparity, shipped with scikit-image",
    licence="CC0 (as scikit-image states for its copy)",
    needs=("skimage",),
    draw=draw,
)
