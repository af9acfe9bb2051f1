"""Drawing with arrays alone, so that a picture does not depend on the version of a drawing library.

Coordinates are in pixels, x to the right and y down, the centre of the top left pixel at (0.5, 0.5). A shape is a
signed distance (negative inside); `cover` turns it into an antialiased mask in [0, 1].
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import numpy as np
from numpy.typing import NDArray

from vpeft.data.pocket.task import SIDE, Images

Field = NDArray[np.float64]

ROWS, COLUMNS = np.mgrid[0:SIDE, 0:SIDE] + 0.5


def colour(rng: np.random.Generator, low: float = 0.0, high: float = 1.0) -> Field:
    """A random RGB colour with every channel in [low, high]."""
    return low + (high - low) * rng.random(3)


def contrasting(rng: np.random.Generator, other: Field, least: float) -> Field:
    """A random colour whose brightness differs from that of `other` by at least `least` (in [0, 0.45])."""
    while True:
        found = rng.random(3)
        if abs(float(found.mean() - other.mean())) >= least:
            return found


def between(rng: np.random.Generator, low: float, high: float) -> float:
    """One uniform number in [low, high)."""
    return low + (high - low) * float(rng.random())


@cache
def _stretch(cells: int, side: int) -> Field:
    """The (side, cells) matrix of linear interpolation from `cells` values to `side`."""
    where = np.linspace(0, cells - 1, side)
    left = np.minimum(where.astype(int), cells - 2)
    share = where - left
    matrix = np.zeros((side, cells))
    matrix[np.arange(side), left] = 1 - share
    matrix[np.arange(side), left + 1] = share
    return matrix


def clouds(
    rng: np.random.Generator, cells: Sequence[int] = (3, 6, 12), roughness: float = 0.6, side: int = SIDE
) -> Field:
    """Smooth random values (side, side) in about [0, 1]: interpolated random grids, the finer ones weaker."""
    total, weight = np.zeros((side, side)), 0.0
    for octave, n in enumerate(cells):
        strength = roughness**octave
        stretch = _stretch(n, side)
        total += strength * (stretch @ rng.random((n, n)) @ stretch.T)
        weight += strength
    found: Field = total / weight
    return found


def backdrop(rng: np.random.Generator, base: Field, strength: float) -> Field:
    """A coloured background (64, 64, 3) around `base`: clouds of two colours, sometimes with stripes."""
    shift = (rng.random(3) - 0.5) * 2 * strength
    field = base + (clouds(rng)[..., None] - 0.5) * 2 * shift
    if rng.random() < 0.3:
        angle, period = between(rng, 0, np.pi), between(rng, 4, 16)
        wave = np.sin((COLUMNS * np.cos(angle) + ROWS * np.sin(angle)) * 2 * np.pi / period)
        field = field + wave[..., None] * (rng.random(3) - 0.5) * strength
    return field


def cover(distance: Field) -> Field:
    """Mask of a signed distance in pixels: 1 inside, 0 outside, a ramp one pixel wide between."""
    found: Field = np.clip(0.5 - distance, 0, 1)
    return found


def paint(picture: Field, mask: Field, ink: Field) -> Field:
    """`picture` (64, 64, 3) with `ink` (3,) or (64, 64, 3) where `mask` (64, 64) is one."""
    return picture + mask[..., None] * (ink - picture)


def disc(x: float, y: float, radius: float) -> Field:
    found: Field = np.sqrt((COLUMNS - x) ** 2 + (ROWS - y) ** 2) - radius
    return found


def turned(x: float, y: float, angle: float) -> tuple[Field, Field]:
    """Coordinates in a frame at (x, y) turned by `angle` radians."""
    u, v = COLUMNS - x, ROWS - y
    cos, sin = np.cos(angle), np.sin(angle)
    return u * cos + v * sin, v * cos - u * sin


def box(u: Field, v: Field, half_u: float, half_v: float) -> Field:
    a, b = np.abs(u) - half_u, np.abs(v) - half_v
    outside = np.sqrt(np.maximum(a, 0) ** 2 + np.maximum(b, 0) ** 2)
    found: Field = outside + np.minimum(np.maximum(a, b), 0)
    return found


def ellipse(u: Field, v: Field, half_u: float, half_v: float) -> Field:
    """Approximate distance to an ellipse; exact on its border."""
    scaled = np.sqrt((u / half_u) ** 2 + (v / half_v) ** 2)
    slope = np.sqrt((u / half_u**2) ** 2 + (v / half_v**2) ** 2) + 1e-9
    found: Field = scaled * (scaled - 1) / slope
    return found


def segment(x0: float, y0: float, x1: float, y1: float, thick: float) -> Field:
    dx, dy = x1 - x0, y1 - y0
    along = np.clip(((COLUMNS - x0) * dx + (ROWS - y0) * dy) / (dx * dx + dy * dy + 1e-9), 0, 1)
    found: Field = np.sqrt((COLUMNS - x0 - along * dx) ** 2 + (ROWS - y0 - along * dy) ** 2) - thick
    return found


def look_up(image: Field, x: Field, y: Field, outside: float | None = None) -> Field:
    """Bilinear samples of `image` (H, W) or (H, W, C) at pixel coordinates; the border is repeated, or `outside`."""
    height, width = image.shape[:2]
    u, v = x - 0.5, y - 0.5
    left, top = np.floor(u), np.floor(v)
    a, b = u - left, v - top
    columns = [np.clip(left + k, 0, width - 1).astype(np.intp) for k in (0, 1)]
    rows = [np.clip(top + k, 0, height - 1).astype(np.intp) for k in (0, 1)]
    if image.ndim == 3:
        a, b = a[..., None], b[..., None]
    upper = image[rows[0], columns[0]] * (1 - a) + image[rows[0], columns[1]] * a
    lower = image[rows[1], columns[0]] * (1 - a) + image[rows[1], columns[1]] * a
    found: Field = upper * (1 - b) + lower * b
    if outside is not None:
        beyond = (x < 0) | (y < 0) | (x > width) | (y > height)
        found = np.where(beyond if image.ndim == 2 else beyond[..., None], outside, found)
    return found


def noisy(picture: Field, rng: np.random.Generator, strength: float) -> Field:
    """Adds noise of that standard deviation, nearly normal (the sum of three uniform numbers)."""
    grain: Field = rng.random((3, *picture.shape)).sum(0) - 1.5
    found: Field = picture + grain * (2 * strength)
    return found


def to_bytes(picture: Field) -> Images:
    """[0, 1] to 0..255. Rounded first, so that the last bits of a sine in another build change no pixel."""
    found: Images = np.floor(np.clip(np.round(picture, 7), 0, 1) * 255 + 0.5).astype(np.uint8)
    return found
