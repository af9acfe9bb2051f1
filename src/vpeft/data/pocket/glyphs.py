"""pocket/glyphs: which letter? Capitals and small letters of 17 typefaces, bent, hollow or filled, on a busy ground."""

from __future__ import annotations

import string
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vpeft.data.pocket.drawing import (
    COLUMNS,
    ROWS,
    backdrop,
    between,
    clouds,
    colour,
    contrasting,
    look_up,
    noisy,
    paint,
    to_bytes,
)
from vpeft.data.pocket.task import SIDE, Images, Labels, PocketTask

# As matplotlib ships them; every split draws from all of them
FACES = (
    "DejaVuSans",
    "DejaVuSans-Bold",
    "DejaVuSans-Oblique",
    "DejaVuSansMono",
    "DejaVuSansMono-Bold",
    "DejaVuSerif",
    "DejaVuSerif-Bold",
    "DejaVuSerif-Italic",
    "STIXGeneral",
    "STIXGeneralBol",
    "STIXGeneralItalic",
    "STIXGeneralBolIta",
    "cmb10",
    "cmr10",
    "cmss10",
    "cmtt10",
    "cmti10",
)
_CELLS = 64


@cache
def outline(face: str, letter: str) -> NDArray[np.float64]:
    """Mask (64, 64) of a letter's or symbol's outline, its larger side 48 cells, centred."""
    import matplotlib
    from matplotlib.font_manager import FontProperties
    from matplotlib.path import Path as Outline
    from matplotlib.textpath import TextPath

    file = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / f"{face}.ttf"
    text = TextPath((0, 0), letter, size=100, prop=FontProperties(fname=str(file)))
    loops = [np.round(np.asarray(loop, dtype=np.float64), 3) for loop in text.to_polygons(closed_only=True)]
    points = np.concatenate(loops)
    low, high = points.min(0), points.max(0)
    centre, scale = (low + high) / 2, 48 / float((high - low).max())
    # two samples a side, offset so that none lies on a rounded coordinate
    steps = (np.arange(_CELLS * 2) + 0.5) / 2 + 1.7e-4
    grid = np.stack(np.meshgrid(steps, steps), -1).reshape(-1, 2)
    inside = np.zeros(len(grid), bool)
    for loop in loops:  # even-odd: holes are loops of their own
        placed = (loop - centre) * scale * (1, -1) + _CELLS / 2
        inside ^= Outline(placed).contains_points(grid)
    mask: NDArray[np.float64] = inside.reshape(_CELLS, 2, _CELLS, 2).mean((1, 3))
    return mask


def picture_of(mask: NDArray[np.float64], rng: np.random.Generator) -> NDArray[np.uint8]:
    """A picture (64, 64, 3) of an outline, bent and turned, hollow or filled, on a busy ground."""
    angle, size = between(rng, -0.4, 0.4), between(rng, 36, 62)
    x, y = between(rng, 26, 38), between(rng, 26, 38)
    bend = between(rng, 0, 7)  # pixels by which a smooth field pushes the outline about
    u = COLUMNS - x + (clouds(rng, (4,)) - 0.5) * 2 * bend
    v = ROWS - y + (clouds(rng, (4,)) - 0.5) * 2 * bend
    shear = between(rng, -0.25, 0.25)
    u, v = u * np.cos(angle) + v * np.sin(angle), v * np.cos(angle) - u * np.sin(angle)
    scale = _CELLS / size
    shape = look_up(mask, (u + shear * v) * scale + 32, v * scale + 32, outside=0.0)
    base = colour(rng, 0.1, 0.9)
    picture = paint(backdrop(rng, base, 0.35), shape, backdrop(rng, contrasting(rng, base, 0.2), 0.15))
    if rng.random() < 0.4:  # only a rim of the letter
        inner = look_up(mask, (u + shear * v) * scale * 1.12 + 32, v * scale * 1.12 + 32, outside=0.0)
        picture = paint(picture, inner * shape, base)
    return to_bytes(noisy(picture, rng, between(rng, 0.01, 0.06)))


def draw(split: str, count: int, rng: np.random.Generator) -> tuple[Images, Labels]:
    labels = rng.integers(0, 26, count)
    images = np.zeros((count, SIDE, SIDE, 3), np.uint8)
    for i, label in enumerate(labels):
        face = FACES[int(rng.integers(len(FACES)))]
        letters = string.ascii_uppercase if rng.random() < 0.6 else string.ascii_lowercase
        mask = outline(face, letters[int(label)])
        images[i] = picture_of(mask, rng)
    return images, labels.astype(np.int64)


TASK = PocketTask(
    name="glyphs",
    group="natural",
    title="Which letter?",
    description="A capital or small Latin letter of one of 17 typefaces, bent and turned, on a busy ground.",
    labels=tuple(string.ascii_uppercase),
    source="matplotlib's fonts: DejaVu, STIX, Computer Modern",
    licence="Bitstream Vera and public domain (DejaVu), OFL-1.1 (STIX), public domain (Computer Modern)",
    draw=draw,
)
