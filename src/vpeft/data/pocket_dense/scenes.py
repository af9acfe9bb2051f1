"""pocket-dense/scenes: what stands where in the hall? The drawn things of pocket on a floor, with exact depth.

A camera of known focal length looks along a hall with a level floor and a back wall. Things stand on the floor, the
near ones hide the far ones. Lengths are in metres: X to the right of the camera, Y above the floor, Z along its axis.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from vpeft.data.pocket.drawing import Field, between, clouds, colour, contrasting, noisy, to_bytes
from vpeft.data.pocket_dense.canvas import Patch, all_seen, paste, visible, window
from vpeft.data.pocket_dense.dense_set import ABSENT, SIDE, DensePictures, DenseSet

FOCAL = 110.0  # pixels: the picture is 60 degrees wide
FEWEST, MOST = 1, 7
THINGS = ("ball", "block", "ring", "arch", "post", "tree")
_LEAST_SEEN, _LEAST_PIXELS = 0.3, 24
# Each pixel of a thing is the mean of so many samples a side.
_FINE = 2
_FACING = (0.0, 0.0, -1.0)  # the normal of what stands upright before the camera
_UP = (0.0, 1.0, 0.0)


class _Hall(NamedTuple):
    """The camera and the room: rows and columns in pixels, lengths in metres."""

    horizon: float
    aim: float  # the column that the camera looks along
    eye: float
    wall: float  # the distance of the back wall
    light: float  # from which side, -1 to 1

    def row(self, y: float, z: float) -> float:
        return self.horizon + FOCAL * (self.eye - y) / z

    def column(self, x: float, z: float) -> float:
        return self.aim + FOCAL * x / z


class _Seen(NamedTuple):
    """What a thing shows to rays: where it is hit, its shade, and its depth, each (h, w), and its normals."""

    hit: NDArray[np.bool_]
    shade: Field
    depth: Field
    normal: Field | None = None  # (h, w, 3), x to the right, y up, z away from the camera; None: it faces the camera


class _Thing(NamedTuple):
    """A thing's form in front of a camera, the rectangle (x0, y0, x1, y1) in metres at depth z that holds its picture.

    `look(right, up)` is given the slopes of the rays, X / Z and (Y - eye) / Z.
    """

    x0: float
    y0: float
    x1: float
    y1: float
    z: float
    foot: float  # half the width of its shadow
    look: Callable[[Field, Field], _Seen]


def _hall(rng: np.random.Generator) -> _Hall:
    return _Hall(
        horizon=between(rng, 30, 52),
        aim=between(rng, 46, 82),
        eye=between(rng, 1.3, 1.8),
        wall=between(rng, 7.0, 14.0),
        light=between(rng, -1, 1),
    )


def _room(hall: _Hall, floor: Field, rng: np.random.Generator) -> tuple[Field, Field, NDArray[np.bool_]]:
    """The empty hall: its picture (128, 128, 3), its depth in metres, and where the floor is."""
    rows, columns = np.mgrid[0:SIDE, 0:SIDE] + 0.5
    below = np.maximum(rows - hall.horizon, 1e-3)
    depth = np.minimum(FOCAL * hall.eye / below, hall.wall)
    is_floor = depth < hall.wall
    across = (columns - hall.aim) * depth / FOCAL
    tile, start = between(rng, 0.6, 1.4), rng.random(2)
    odd = (np.floor(across / tile + start[0]) + np.floor(depth / tile + start[1])) % 2
    tiles = floor + (odd - 0.5)[..., None] * (rng.random(3) - 0.5) * 0.35
    paint = contrasting(rng, floor, 0.12)
    wall = paint + (clouds(rng, (3, 6, 12), side=SIDE) - 0.5)[..., None] * (rng.random(3) - 0.5) * 0.5
    if rng.random() < 0.5:  # panels
        panel = between(rng, 0.5, 2.0)
        wall = wall + ((np.floor(across / panel + start[0]) % 2) - 0.5)[..., None] * (rng.random(3) - 0.5) * 0.3
    picture = np.where(is_floor[..., None], tiles, wall)
    # what is far is darker, as where lamps hang near the camera
    picture = picture * (1.0 - 0.35 * (depth / hall.wall))[..., None]
    return picture, depth, is_floor


def _shadow(picture: Field, hall: _Hall, x: float, z: float, half: float) -> None:
    """Darken the floor below a thing, in place."""
    near, far = max(z - half, 0.5), min(z + half, hall.wall)
    top, left, bottom, right = window(
        hall.column(x - 1.5 * half, near), hall.row(0, far), hall.column(x + 1.5 * half, near), hall.row(0, near)
    )
    if top >= bottom or left >= right:
        return
    rows, columns = np.mgrid[top:bottom, left:right] + 0.5
    depth = FOCAL * hall.eye / np.maximum(rows - hall.horizon, 1e-3)
    across = (columns - hall.aim) * depth / FOCAL
    off = ((across - x) / (1.15 * half)) ** 2 + ((depth - z) / half) ** 2
    picture[top:bottom, left:right] *= (1 - 0.55 * np.clip(1.2 - off, 0, 1))[..., None]


def _flat(
    x: float, z: float, eye: float, inside: Callable[[Field, Field], NDArray[np.bool_]], round_to: float | None = None
) -> Callable[[Field, Field], _Seen]:
    """An upright thing without thickness at depth z: `inside(across, height)` in metres from its foot.

    With `round_to` it is shaded as a column of that half width.
    """

    def look(right: Field, up: Field) -> _Seen:
        across, height = right * z - x, up * z + eye
        shade = np.ones_like(across)
        if round_to is not None:
            shade = 0.45 + 0.55 * np.sqrt(np.clip(1 - (across / round_to) ** 2, 0, 1))
        return _Seen(inside(across, height), shade, np.full_like(across, z))

    return look


def _ball(x: float, z: float, hall: _Hall, rng: np.random.Generator) -> _Thing:
    radius = between(rng, 0.25, 0.6)

    def look(right: Field, up: Field) -> _Seen:
        u, v = (right * z - x) / radius, (up * z + hall.eye - radius) / radius
        bulge = np.sqrt(np.maximum(1 - u * u - v * v, 0))
        shade = 0.35 + 0.65 * np.clip(0.5 * u * hall.light + 0.45 * v + 0.7 * bulge, 0, 1)
        return _Seen(u * u + v * v < 1, shade, z - radius * bulge, np.stack((u, v, -bulge), -1))

    return _Thing(x - radius, 0, x + radius, 2 * radius, z, radius, look)


def _block(x: float, z: float, hall: _Hall, rng: np.random.Generator) -> _Thing:
    """A cuboid that faces the camera: its front at depth z, its top and one side where they are seen."""
    half, high, deep = between(rng, 0.2, 0.5), between(rng, 0.3, 1.0), between(rng, 0.3, 0.9)
    # the side nearer to the camera's axis
    flank = x - half if x > 0 else x + half

    def look(right: Field, up: Field) -> _Seen:
        hit = np.zeros(right.shape, np.bool_)
        shade, depth = np.ones(right.shape), np.full(right.shape, z)
        normal = np.broadcast_to(_FACING, (*right.shape, 3))
        # the far faces first, so that the front is on top
        for face in ("side", "top", "front"):
            if face == "side":
                at = flank / np.where(np.abs(right) < 1e-6, 1e-6, right)
                height = up * at + hall.eye
                seen, lit = (at > z) & (at < z + deep) & (height > 0) & (height < high), 0.6 + 0.2 * hall.light
                turned = (-1.0 if x > 0 else 1.0, 0.0, 0.0)
            elif face == "top":
                at = (high - hall.eye) / np.where(np.abs(up) < 1e-6, -1e-6, up)
                seen, lit = (at > z) & (at < z + deep) & (np.abs(right * at - x) < half), 1.15
                turned = (0.0, 1.0, 0.0)
            else:
                at = np.full(right.shape, z)
                height = up * at + hall.eye
                seen, lit = (np.abs(right * at - x) < half) & (height > 0) & (height < high), 0.85
                turned = _FACING
            hit |= seen
            shade, depth = np.where(seen, lit, shade), np.where(seen, at, depth)
            normal = np.where(seen[..., None], turned, normal)
        return _Seen(hit, shade, depth, normal)

    # the rectangle of the front; behind it the faces move towards the point where the camera looks
    back = z / (z + deep)
    x0, x1 = min(x - half, (x - half) * back), max(x + half, (x + half) * back)
    top = max(high, hall.eye + (high - hall.eye) * back)
    return _Thing(x0, 0, x1, top, z, half, look)


def _ring(x: float, z: float, hall: _Hall, rng: np.random.Generator) -> _Thing:
    outer = between(rng, 0.3, 0.6)
    inner = outer * between(rng, 0.5, 0.65)

    def inside(across: Field, height: Field) -> NDArray[np.bool_]:
        off = np.sqrt(across**2 + (height - outer) ** 2)
        found: NDArray[np.bool_] = (off < outer) & (off > inner)
        return found

    return _Thing(x - outer, 0, x + outer, 2 * outer, z, 0.7 * outer, _flat(x, z, hall.eye, inside))


def _arch(x: float, z: float, hall: _Hall, rng: np.random.Generator) -> _Thing:
    outer = between(rng, 0.4, 0.8)
    inner = outer * between(rng, 0.5, 0.65)

    def inside(across: Field, height: Field) -> NDArray[np.bool_]:
        off = np.sqrt(across**2 + height**2)
        found: NDArray[np.bool_] = (off < outer) & (off > inner) & (height > 0)
        return found

    return _Thing(x - outer, 0, x + outer, outer, z, outer, _flat(x, z, hall.eye, inside))


def _post(x: float, z: float, hall: _Hall, rng: np.random.Generator) -> _Thing:
    half, high = between(rng, 0.09, 0.16), between(rng, 0.8, 1.6)

    def inside(across: Field, height: Field) -> NDArray[np.bool_]:
        found: NDArray[np.bool_] = (np.abs(across) < half) & (height > 0) & (height < high)
        return found

    return _Thing(x - half, 0, x + half, high, z, 1.4 * half, _flat(x, z, hall.eye, inside, round_to=1.15 * half))


def _tree(x: float, z: float, hall: _Hall, rng: np.random.Generator) -> _Thing:
    """A trunk below a crown, as beside pocket's roads."""
    high, wide = between(rng, 1.0, 2.0), between(rng, 0.3, 0.55)
    trunk, crown = between(rng, 0.06, 0.1), between(rng, 0.3, 0.4) * high

    def look(right: Field, up: Field) -> _Seen:
        across, height = right * z - x, up * z + hall.eye
        u, v = across / wide, (height - (high - crown)) / crown
        leaves = u * u + v * v < 1
        stem = (np.abs(across) < trunk) & (height > 0) & (height < high - crown)
        lit = 0.6 + 0.4 * np.clip(0.5 * u * hall.light + 0.6 * v + 0.4, 0, 1)
        return _Seen(leaves | stem, np.where(leaves, lit, 0.45), np.full_like(across, z))

    return _Thing(x - wide, 0, x + wide, high, z, 0.6 * wide, look)


_MAKE = {"ball": _ball, "block": _block, "ring": _ring, "arch": _arch, "post": _post, "tree": _tree}


def _patch(thing: _Thing, hall: _Hall, ink: Field) -> Patch | None:
    """The thing as the camera sees it, `_FINE` x `_FINE` samples a pixel; None where it is outside the picture."""
    top, left, bottom, right = window(
        hall.column(thing.x0, thing.z) - 1,
        hall.row(thing.y1, thing.z) - 1,
        hall.column(thing.x1, thing.z) + 1,
        hall.row(thing.y0, thing.z) + 1,
    )
    if top >= bottom or left >= right:
        return None
    rows = top + (np.arange((bottom - top) * _FINE) + 0.5) / _FINE
    columns = left + (np.arange((right - left) * _FINE) + 0.5) / _FINE
    slopes = np.meshgrid((columns - hall.aim) / FOCAL, (hall.horizon - rows) / FOCAL)
    seen = thing.look(slopes[0], slopes[1])
    hit = _pooled(seen.hit.astype(np.float64))
    share = np.maximum(hit, 1e-9)
    shade = _pooled(np.where(seen.hit, seen.shade, 0.0)) / share
    depth = _pooled(np.where(seen.hit, seen.depth, 0.0)) / share
    facing = np.broadcast_to(_FACING, (*seen.hit.shape, 3)) if seen.normal is None else seen.normal
    normal = np.stack([_pooled(np.where(seen.hit, facing[..., axis], 0.0)) for axis in range(3)], -1)
    return Patch(top, left, hit, np.clip(shade[..., None] * ink, 0, 1), depth, normal)


def _pooled(fine: Field) -> Field:
    height, width = fine.shape
    found: Field = fine.reshape(height // _FINE, _FINE, width // _FINE, _FINE).mean((1, 3))
    return found


def _place(hall: _Hall, rng: np.random.Generator) -> tuple[float, float]:
    """Where a thing stands: X and Z, as often in each doubling of the distance, with its foot inside the picture."""
    near = max(2.4, FOCAL * hall.eye / (SIDE - 6 - hall.horizon))
    z = near * ((hall.wall - 1.0) / near) ** between(rng, 0, 1)
    return (between(rng, 8, SIDE - 8) - hall.aim) * z / FOCAL, z


def draw(split: str, count: int, rng: np.random.Generator) -> DensePictures:
    return _drawn(count, rng)[0]


def normals(split: str, count: int, rng: np.random.Generator) -> NDArray[np.int8]:
    """The normals of the same pictures, int8 (N, 128, 128, 3): x to the right, y up, z away from the camera, by 127."""
    return _drawn(count, rng)[1]


def _drawn(count: int, rng: np.random.Generator) -> tuple[DensePictures, NDArray[np.int8]]:
    directions = np.zeros((count, SIDE, SIDE, 3), np.int8)
    images = np.zeros((count, SIDE, SIDE, 3), np.uint8)
    instances, mask = np.zeros((2, count, SIDE, SIDE), np.uint8)
    classes = np.full((count, MOST), ABSENT, np.uint8)
    distance = np.zeros((count, SIDE, SIDE), np.uint16)
    counts = rng.permutation(np.arange(count) % (MOST - FEWEST + 1)) + FEWEST
    for i, wanted in enumerate(counts.tolist()):
        hall = _hall(rng)
        floor = colour(rng, 0.2, 0.85)
        picture, depth, is_floor = _room(hall, floor, rng)
        made: list[tuple[_Thing, Patch, int]] = []
        for _ in range(wanted):
            kind = int(rng.integers(len(THINGS)))
            x, z = _place(hall, rng)
            thing = _MAKE[THINGS[kind]](x, z, hall, rng)
            patch = _patch(thing, hall, contrasting(rng, floor, 0.15))
            if patch is not None:
                made.append((thing, patch, kind))
        made.sort(key=lambda one: -one[0].z)  # the near hides the far
        kept = {id(patch) for patch in all_seen([patch for _, patch, _ in made], _LEAST_SEEN, _LEAST_PIXELS)}
        made = [one for one in made if id(one[1]) in kept]
        for thing, _, _ in made:
            _shadow(picture, hall, (thing.x0 + thing.x1) / 2, thing.z, thing.foot)
        surface = np.where(is_floor[..., None], _UP, _FACING)
        for _, patch, _ in made:
            paste(picture, patch)
            assert patch.depth is not None  # every thing here has one
            depth[patch.place] = np.where(patch.mask, patch.depth, depth[patch.place])
            assert patch.normal is not None
            surface[patch.place] = np.where(patch.mask[..., None], patch.normal, surface[patch.place])
        # Where several faces meet in a pixel it is the mean of theirs; rounded, so that all machines agree.
        long = np.maximum(np.sqrt((surface**2).sum(-1, keepdims=True)), 1e-9)
        directions[i] = np.floor(np.round(surface / long, 7) * 127 + 0.5).astype(np.int8)
        seen = visible([patch for _, patch, _ in made])
        classes[i, : len(made)] = [kind for _, _, kind in made]
        instances[i] = seen
        things = np.array([0, *(kind + 2 for _, _, kind in made)], np.uint8)[seen]
        mask[i] = np.where(seen > 0, things, np.where(is_floor, 0, 1))
        distance[i] = np.floor(np.round(depth, 7) * 1000 + 0.5).astype(np.uint16)
        light = between(rng, 0.7, 1.15) * (0.9 + 0.2 * rng.random(3))
        images[i] = to_bytes(noisy(picture * light, rng, between(rng, 0.01, 0.03)))
    return DensePictures(images, mask, instances, classes, distance), directions


SET = DenseSet(
    name="scenes",
    title="What stands where, and how far away?",
    description="Up to seven balls, blocks, rings, arches, posts and trees on the floor of a hall, 2 to 13 metres away;"
    " the near hide the far. Pitch, height and aim of the camera vary, its focal length does not.",
    mask_labels=("floor", "wall", *THINGS),
    object_labels=THINGS,
    source="drawn",
    licence="Apache-2.0",
    draw=draw,
    has_depth=True,
    draw_normals=normals,
)
