"""Generated pictures with known factors: scattered figures, a floor in perspective, lit relief, letters.

They teach what a classifier's features lack: how many, where, how turned, how far, how rough. Everything here (figures,
renderer, seeds) is separate from the generators of the `pocket` tasks, which are in `vpeft.data.pocket`.

Each function is pure in its seed and gives a (64, 64, 3) uint8 picture with integer labels; -1 means "not defined for
this picture" and is skipped by the loss.
"""

from __future__ import annotations

import unicodedata
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

SIDE = 64
DRAWN = 192  # drawn three times larger, then averaged down

# factor -> number of classes
FACTORS: dict[str, int] = {
    "figures": 8,  # how many figures (1 to 8)
    "kind": 9,  # which figure is the largest
    "cell": 36,  # the cell of a 6x6 grid in which its centre lies
    "turn": 16,  # its rotation, in sixteenths
    "size": 6,
    "hue": 8,
    "same": 6,  # how many other figures are of its kind
    "horizon": 6,  # height of the horizon in a perspective scene
    "depth": 8,  # log distance of the nearest pillar
    "side": 5,  # where across the picture that pillar stands
    "relief": 6,  # log steepness of a lit height field
    "grain": 6,  # exponent of its power spectrum
    "sun": 8,  # where the light comes from
}
NAMES = tuple(FACTORS)

# Closed outlines in the unit disc, all without rotational symmetry so that a turn is visible
_OUTLINES: tuple[tuple[tuple[float, float], ...], ...] = (
    ((-0.3, -1), (0.3, -1), (0.3, 0.4), (0.9, 0.4), (0.9, 1), (-0.3, 1)),  # L
    ((-0.2, -1), (0.2, -1), (0.2, 0.2), (0.8, 0.2), (0, 1), (-0.8, 0.2), (-0.2, 0.2)),  # arrow
    ((0, -1), (0.55, 0.9), (-0.55, 0.9)),  # narrow triangle
    ((-0.9, -0.6), (0.9, -0.6), (0.9, -0.1), (0.3, -0.1), (0.3, 1), (-0.3, 1), (-0.3, -0.1), (-0.9, -0.1)),  # T
    ((-0.8, -0.8), (-0.3, -0.8), (-0.3, 0.3), (0.3, 0.3), (0.3, -0.8), (0.8, -0.8), (0.8, 0.8), (-0.8, 0.8)),  # U
    ((0, 1), (0.8, -0.8), (0, -0.2), (-0.8, -0.8)),  # chevron
    ((-0.8, 0.7), (-0.4, -0.7), (0.4, -0.7), (0.8, 0.7)),  # trapezium
    ((-0.9, 0.2), (0.0, -0.9), (0.9, 0.2), (0.5, 0.2), (0.5, 0.9), (-0.5, 0.9), (-0.5, 0.2)),  # house
    ((-0.9, -0.35), (0.2, -0.35), (0.2, -0.9), (0.95, 0), (0.2, 0.9), (0.2, -0.1), (-0.9, 0.1)),  # flag
)


def _hsv(hue: float, saturation: float, value: float) -> tuple[int, int, int]:
    k = (np.array([5.0, 3.0, 1.0]) + hue * 6) % 6
    rgb = value - value * saturation * np.clip(np.minimum(k, 4 - k), 0, 1)
    red, green, blue = (rgb * 255).astype(int).tolist()
    return red, green, blue


def _background(rng: np.random.Generator, cloth: np.ndarray | None) -> Image.Image:
    if cloth is not None and rng.random() < 0.3:
        return Image.fromarray(cloth).resize((DRAWN, DRAWN), Image.Resampling.BILINEAR)
    base = rng.uniform(0, 255, 3)
    slope = rng.uniform(-60, 60, (2, 3))
    ramp = np.linspace(-1, 1, DRAWN)
    field = base + ramp[:, None, None] * slope[0] + ramp[None, :, None] * slope[1]
    return Image.fromarray(np.clip(field, 0, 255).astype(np.uint8))


def _finish(canvas: Image.Image, rng: np.random.Generator) -> np.ndarray:
    small = np.asarray(canvas.resize((SIDE, SIDE), Image.Resampling.BOX), dtype=np.float32)
    small = small + rng.standard_normal(small.shape) * rng.uniform(0, 12)
    return np.clip(small, 0, 255).astype(np.uint8)


def scattered(seed: int, index: int, cloth: np.ndarray | None = None) -> tuple[np.ndarray, dict[str, int]]:
    """One to eight figures on `cloth` (a 64x64 crop) or a ramp; labels describe the largest figure and the count."""
    rng = np.random.Generator(np.random.PCG64([seed, index, 1]))
    canvas = _background(rng, cloth)
    pen = ImageDraw.Draw(canvas)
    # mostly few and large: among eight small ones a short training finds no outline at all
    count = int(rng.integers(1, 3)) if rng.random() < 0.5 else int(rng.integers(1, 9))
    largest = float(rng.uniform(0.12, 0.34 if count < 3 else 0.24)) * DRAWN
    placed: list[tuple[float, float, float]] = []
    labels = dict.fromkeys(NAMES, -1)
    first_kind, same = int(rng.integers(len(_OUTLINES))), 0
    for number in range(count):
        radius = largest if number == 0 else largest * float(rng.uniform(0.35, 0.8))
        for _ in range(30):
            x, y = rng.uniform(radius * 0.8, DRAWN - radius * 0.8, 2)
            if all(np.hypot(x - a, y - b) > 0.85 * (radius + r) for a, b, r in placed):
                break
        else:
            continue
        placed.append((x, y, radius))
        kind = first_kind if number == 0 or rng.random() < 0.3 else int(rng.integers(len(_OUTLINES)))
        same += int(kind == first_kind and number > 0)
        angle, hue = float(rng.uniform(0, 2 * np.pi)), float(rng.random())
        cos, sin = np.cos(angle), np.sin(angle)
        outline = [(x + radius * (u * cos - v * sin), y + radius * (u * sin + v * cos)) for u, v in _OUTLINES[kind]]
        colour = _hsv(hue, float(rng.uniform(0.4, 1)), float(rng.uniform(0.25, 1)))
        edge = _hsv(float(rng.random()), 0.3, float(rng.random())) if rng.random() < 0.4 else None
        pen.polygon(outline, fill=colour, outline=edge, width=4)
        if number == 0:
            labels["kind"], labels["turn"] = kind, int(angle / (2 * np.pi) * FACTORS["turn"])
            labels["cell"] = int(y * 6 / DRAWN) * 6 + int(x * 6 / DRAWN)
            labels["size"], labels["hue"] = int((radius / DRAWN - 0.12) / 0.22 * 5.999), int(hue * 7.999)
    labels["figures"], labels["same"] = len(placed) - 1, min(same, FACTORS["same"] - 1)
    return _finish(canvas, rng), labels


def floor(seed: int, index: int) -> tuple[np.ndarray, dict[str, int]]:
    """Pillars on a tiled floor in perspective; labels give the nearest pillar's log distance, its side, the horizon."""
    rng = np.random.Generator(np.random.PCG64([seed, index, 2]))
    horizon = float(rng.uniform(0.2, 0.6))
    height, focal = float(rng.uniform(0.8, 2.0)), float(rng.uniform(0.7, 1.3))
    rows, columns = (np.mgrid[0:DRAWN, 0:DRAWN] + 0.5) / DRAWN
    below = rows > horizon + 0.005
    depth = focal * height / np.maximum(rows - horizon, 0.005)
    across = (columns - 0.5) * depth / focal
    turn, tile = float(rng.uniform(0, np.pi / 2)), float(rng.uniform(0.5, 2))
    u = np.floor((across * np.cos(turn) + depth * np.sin(turn)) / tile)
    v = np.floor((depth * np.cos(turn) - across * np.sin(turn)) / tile)
    dark, light, sky = (
        np.array(_hsv(float(rng.random()), float(rng.uniform(0, 0.7)), float(rng.random()))) for _ in "abc"
    )
    picture = np.where(((u + v) % 2 == 0)[..., None], dark, light).astype(np.float64)
    fog = np.clip(depth / rng.uniform(15, 60), 0, 1)[..., None]
    shade = sky * (1 - 0.4 * (horizon - rows[..., None]) / horizon)
    picture = np.where(below[..., None], picture * (1 - fog) + sky * fog, shade)
    canvas = Image.fromarray(np.clip(picture, 0, 255).astype(np.uint8))
    pen = ImageDraw.Draw(canvas)
    distances = np.sort(np.exp(rng.uniform(np.log(1.6), np.log(16), int(rng.integers(1, 5)))))[::-1]
    labels = dict.fromkeys(NAMES, -1)
    for distance in distances:  # far first: nearer pillars hide farther ones
        wide, tall = rng.uniform(0.15, 0.5), rng.uniform(0.3, 1.8)
        middle = float(rng.uniform(0.08, 0.92))
        foot = horizon + focal * height / distance
        if foot > 1.05:
            foot = 1.05
            distance = focal * height / (foot - horizon)
        half, top = focal * wide / distance / 2, foot - focal * tall / distance
        box = [v * DRAWN for v in (middle - half, top, middle + half, foot)]
        colour = _hsv(float(rng.random()), float(rng.uniform(0.2, 1)), float(rng.uniform(0.3, 1)))
        (pen.rectangle if rng.random() < 0.5 else pen.ellipse)(box, fill=colour)
        labels["depth"] = int(np.clip(np.log(distance / 1.2) / np.log(16 / 1.2) * 8, 0, 7))
        labels["side"] = int(middle * 5)
    labels["horizon"] = int((horizon - 0.2) / 0.4 * 5.999)
    return _finish(canvas, rng), labels


def relief(seed: int, index: int) -> tuple[np.ndarray, dict[str, int]]:
    """A fractal height field under slanting light, coloured by height; labels: steepness, spectrum, light."""
    rng = np.random.Generator(np.random.PCG64([seed, index, 4]))
    exponent, steep = float(rng.uniform(1.6, 4.0)), float(rng.uniform(np.log(0.02), np.log(0.35)))
    light = float(rng.uniform(0, 2 * np.pi))
    rows, columns = np.meshgrid(np.fft.fftfreq(SIDE), np.fft.rfftfreq(SIDE), indexing="ij")
    radius = np.hypot(rows, columns)
    radius[0, 0] = np.inf
    waves = rng.standard_normal((2, SIDE, SIDE // 2 + 1))
    height = np.fft.irfft2((waves[0] + 1j * waves[1]) * radius ** (-exponent / 2), (SIDE, SIDE))
    down, across = np.gradient(height)
    shade = down * np.sin(light) + across * np.cos(light)
    shade *= np.exp(steep) / shade.std()
    rank = (height - height.min()) / np.ptp(height)
    at = np.linspace(0, 1, 4)
    tones = np.stack([_hsv(float(rng.random()), float(rng.uniform(0, 0.6)), float(rng.uniform(0.25, 0.9))) for _ in at])
    # neighbouring heights of one landscape are of like colours
    tones = tones.mean(0) + (tones - tones.mean(0)) * rng.uniform(0.1, 0.6)
    ground = np.stack([np.interp(rank, at, tones[:, channel]) for channel in range(3)], -1)
    labels = dict.fromkeys(NAMES, -1)
    labels["relief"] = int((steep - np.log(0.02)) / (np.log(0.35) - np.log(0.02)) * 5.999)
    labels["grain"] = int((exponent - 1.6) / 2.4 * 5.999)
    labels["sun"] = int(light / (2 * np.pi) * FACTORS["sun"]) if labels["relief"] > 0 else -1
    picture = ground * (1 + shade[..., None]) + rng.standard_normal((SIDE, SIDE, 1)) * rng.uniform(0, 6)
    return np.clip(picture, 0, 255).astype(np.uint8), labels


class Glyphs:
    """Letters of scripts other than Latin, Greek and Cyrillic, no digits; the label is the letter."""

    def __init__(self, fonts: Path, most_classes: int = 160) -> None:
        barred = ("LATIN", "GREEK", "CYRILLIC", "COPTIC", "DIGIT", "NUMBER", "CJK")
        self.letters: list[tuple[ImageFont.FreeTypeFont, str]] = []
        files = [p for p in sorted(fonts.rglob("Noto*-Regular.ttf")) if "Symbols" not in p.name]
        for path in files:
            font = ImageFont.truetype(str(path), 110)
            drawn: set[bytes] = set()
            for code in _codes(path):
                name = unicodedata.name(chr(code), "")
                if unicodedata.category(chr(code)) != "Lo" or not name or any(word in name for word in barred):
                    continue
                mask = font.getmask(chr(code))
                if min(mask.size) < 20 or (image := bytes(mask)) in drawn:
                    continue
                drawn.add(image)
                self.letters.append((font, chr(code)))
                if len(drawn) >= 4:
                    break
        self.letters = self.letters[:most_classes]

    def draw(self, seed: int, index: int, cloth: np.ndarray | None = None) -> tuple[np.ndarray, int]:
        rng = np.random.Generator(np.random.PCG64([seed, index, 3]))
        label = int(rng.integers(len(self.letters)))
        font, letter = self.letters[label]
        mask = Image.new("L", (DRAWN, DRAWN), 0)
        ImageDraw.Draw(mask).text((DRAWN / 2, DRAWN / 2), letter, fill=255, font=font, anchor="mm")
        scale, angle = rng.uniform(0.7, 1.5), rng.uniform(-0.35, 0.35)
        shear, dx, dy = rng.uniform(-0.3, 0.3), rng.uniform(-25, 25), rng.uniform(-25, 25)
        cos, sin, half = np.cos(angle) * scale, np.sin(angle) * scale, DRAWN / 2
        a, b, d, e = cos, -sin + shear, sin, cos
        box = (a, b, half + dx - a * half - b * half, d, e, half + dy - d * half - e * half)
        mask = mask.transform((DRAWN, DRAWN), Image.Transform.AFFINE, box, Image.Resampling.BILINEAR)
        canvas = _background(rng, cloth)
        ink = Image.new("RGB", canvas.size, _hsv(float(rng.random()), float(rng.random()), float(rng.random())))
        canvas.paste(ink, (0, 0), mask)
        return _finish(canvas, rng), label


def _codes(path: Path) -> list[int]:
    from fontTools.ttLib import TTFont  # a dependency of matplotlib

    return sorted(TTFont(path, lazy=True).getBestCmap())
