"""Pictures for pre-training `pocket_vit`, from Debian packages only.

`fetch` downloads and unpacks the packages named in `PACKAGES`; `Pictures` turns them into an endless, seeded stream of
128x128 crops: pieces of wallpapers, cut-out objects pasted at random places, and procedural pictures. The stream is a
pure function of (files, seed, index), so two machines with the same packages make the same corpus.

None of these packages, and no generator in this folder, is a source of a `pocket` task: those live in
`vpeft.data.pocket` and name their own sources. tests/unit/backbones/test_pocket_vit.py checks the two lists.
"""

from __future__ import annotations

import hashlib
import subprocess
from multiprocessing.pool import ThreadPool
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageOps

SEED = 41  # of the whole pre-training corpus; the `pocket` tasks have another
SIDE = 128  # the teacher's view; the student sees the same crop at 64
CUTOUT_SIDE = 160  # cut-outs are kept no larger than this

# Debian package -> (what it holds, licence as its copyright file states it)
PACKAGES: dict[str, tuple[str, str]] = {
    "openclipart-png": ("cut-outs: 6,900 drawings", "public domain (CC0)"),
    "tuxpaint-stamps-default": ("cut-outs: 796 photographed and drawn objects", "GPL-2+ and public domain"),
    "plasma-workspace-wallpapers": ("wallpapers", "CC-BY-SA-4.0 / CC-BY-SA-3.0 / LGPL-3"),
    "mate-backgrounds": ("wallpapers", "CC-BY-SA-3.0 / CC-BY-SA-4.0 / GPL-2+"),
    "gnome-backgrounds": ("wallpapers", "CC-BY-SA-3.0"),
    "ukui-wallpapers": ("wallpapers", "CC-BY-SA-3.0 / GPL-2+"),
    "lomiri-wallpapers-16.04": ("wallpapers", "CC-BY-SA-3.0"),
    "lomiri-wallpapers-20.04": ("wallpapers", "CC-BY-SA-3.0"),
    "desktop-base": ("wallpapers", "GPL-2+"),
    "fonts-noto-core": ("glyphs of many scripts (no Latin, Greek, Cyrillic; no digits)", "OFL-1.1"),
}
CUTOUT_PACKAGES = ("openclipart-png", "tuxpaint-stamps-default")
FONT_PACKAGES = ("fonts-noto-core",)
PICTURE_SUFFIXES = {".png", ".jpg", ".jpeg", ".webp"}


def fetch(folder: Path) -> None:
    """Download and unpack every package of `PACKAGES` below `folder` (Debian or a relative of it; no root needed).

    A package that is already unpacked is left alone. Raises `subprocess.CalledProcessError` when apt has no such
    package.
    """
    for package in PACKAGES:
        target = folder / "packages" / package
        if target.is_dir():
            continue
        archives = folder / "archives"
        archives.mkdir(parents=True, exist_ok=True)
        subprocess.run(["apt-get", "download", package], cwd=archives, check=True)
        archive = next(archives.glob(f"{package}_*.deb"))
        unpacked = target.with_suffix(".part")
        subprocess.run(["dpkg-deb", "-x", str(archive), str(unpacked)], check=True)
        unpacked.rename(target)


def _files(folder: Path, packages: tuple[str, ...]) -> list[Path]:
    found: list[Path] = []
    for package in packages:
        root = folder / "packages" / package
        # resolved: wallpaper packages link several names to one file
        found += sorted({p.resolve() for p in root.rglob("*") if p.suffix.lower() in PICTURE_SUFFIXES and p.is_file()})
    return found


def digests(folder: Path) -> list[str]:
    """The first 16 hex digits of the sha256 of every file that the corpus may read, sorted."""
    paths = _files(folder, tuple(p for p in PACKAGES if p not in FONT_PACKAGES))
    for package in FONT_PACKAGES:
        paths += sorted((folder / "packages" / package).rglob("*.ttf"))
    return sorted({hashlib.sha256(path.read_bytes()).hexdigest()[:16] for path in paths})


def _read_wallpaper(path: Path) -> Image.Image | None:
    try:
        picture: Image.Image = Image.open(path)
        picture.draft("RGB", (1600, 1600))
        picture = picture.convert("RGB")
    except (OSError, ValueError, Image.DecompressionBombError):
        return None
    if min(picture.size) < 300:
        return None
    scale = 900 / min(picture.size)
    return picture.resize((round(picture.width * scale), round(picture.height * scale))) if scale < 1 else picture


def _read_cutout(path: Path) -> Image.Image | None:
    try:
        picture = Image.open(path).convert("RGBA")
    except (OSError, ValueError, Image.DecompressionBombError):
        return None
    box = picture.getchannel("A").getbbox()
    if box is None or max(picture.size) > 6000:
        return None
    picture = picture.crop(box)
    if min(picture.size) < 24 or max(picture.size) > 5 * min(picture.size):
        return None
    picture.thumbnail((CUTOUT_SIDE, CUTOUT_SIDE), Image.Resampling.BOX)
    return picture


class Pictures:
    """The decoded packages and the seeded stream of crops made from them.

    `draw(seed, index)` gives one (128, 128, 3) uint8 crop. About 45 % are pasted cut-outs, 43 % wallpaper crops and
    12 % procedural pictures.
    """

    def __init__(self, folder: Path, most_cutouts: int | None = None) -> None:
        wallpapers = tuple(p for p in PACKAGES if p not in CUTOUT_PACKAGES + FONT_PACKAGES)
        with ThreadPool(2) as pool:  # Pillow decodes outside the interpreter lock
            self.wallpapers = [w for w in pool.map(_read_wallpaper, _files(folder, wallpapers)) if w is not None]
        paths = _files(folder, CUTOUT_PACKAGES)
        if most_cutouts is not None and len(paths) > most_cutouts:
            paths = [paths[i] for i in np.linspace(0, len(paths) - 1, most_cutouts).astype(int)]
        with ThreadPool(2) as pool:
            self.cutouts = [c for c in pool.map(_read_cutout, paths, chunksize=16) if c is not None]
        if not self.wallpapers or not self.cutouts:
            raise FileNotFoundError(f"no pictures below {folder / 'packages'}; run `fetch` first")

    def draw(self, seed: int, index: int) -> np.ndarray:
        rng = np.random.Generator(np.random.PCG64([seed, index]))
        kind = rng.random()
        if kind < 0.43:
            picture = self._wallpaper_crop(rng)
        elif kind < 0.88:
            picture = self._pasted(rng)
        else:
            picture = procedural(rng)
        if rng.random() < 0.15:
            picture = ImageOps.grayscale(picture).convert("RGB")
        if rng.random() < 0.1:
            picture = picture.filter(ImageFilter.GaussianBlur(float(rng.uniform(0.5, 2.5))))
        return np.asarray(picture, dtype=np.uint8)

    def _wallpaper_crop(self, rng: np.random.Generator) -> Image.Image:
        crop = self._any_wallpaper_crop(rng)
        for _ in range(3):  # a plain piece of sky teaches nothing: look elsewhere, but not for ever
            if max(high - low for low, high in crop.getextrema()) > 60:  # type: ignore[misc,operator]
                break
            crop = self._any_wallpaper_crop(rng)
        return crop

    def _any_wallpaper_crop(self, rng: np.random.Generator) -> Image.Image:
        picture = self.wallpapers[int(rng.integers(len(self.wallpapers)))]
        side = int(min(picture.size) * rng.uniform(0.12, 1.0))
        left = int(rng.integers(picture.width - side + 1))
        top = int(rng.integers(picture.height - side + 1))
        crop = picture.resize((SIDE, SIDE), Image.Resampling.BILINEAR, box=(left, top, left + side, top + side))
        return ImageOps.mirror(crop) if rng.random() < 0.5 else crop

    def _pasted(self, rng: np.random.Generator) -> Image.Image:
        ground = rng.random()
        if ground < 0.45:
            canvas = self._wallpaper_crop(rng)
        elif ground < 0.8:
            canvas = Image.new("RGB", (SIDE, SIDE), _colour(rng))
        else:
            canvas = procedural(rng)
        for _ in range(1 if rng.random() < 0.65 else int(rng.integers(2, 5))):
            cutout = self.cutouts[int(rng.integers(len(self.cutouts)))]
            if rng.random() < 0.5:
                cutout = cutout.rotate(float(rng.uniform(-30, 30)), Image.Resampling.BILINEAR, expand=True)
            side = SIDE * rng.uniform(0.35, 1.05)
            scale = side / max(cutout.size)
            size = (max(8, round(cutout.width * scale)), max(8, round(cutout.height * scale)))
            cutout = cutout.resize(size, Image.Resampling.BILINEAR)
            if rng.random() < 0.5:
                cutout = ImageOps.mirror(cutout)
            # uniform over every place that leaves at least two thirds of the cut-out in view
            left = round(rng.uniform(-size[0] / 3, SIDE - size[0] * 2 / 3))
            top = round(rng.uniform(-size[1] / 3, SIDE - size[1] * 2 / 3))
            canvas.paste(cutout, (left, top), cutout)
        return canvas


def _colour(rng: np.random.Generator) -> tuple[int, int, int]:
    red, green, blue = rng.integers(0, 256, 3).tolist()
    return red, green, blue


def procedural(rng: np.random.Generator) -> Image.Image:
    """One procedural 128x128 picture: dead leaves, an iterated function system, or coloured 1/f noise."""
    kind = rng.random()
    if kind < 0.45:
        return _dead_leaves(rng)
    return _fractal(rng) if kind < 0.7 else _noise(rng)


def _dead_leaves(rng: np.random.Generator) -> Image.Image:
    canvas = Image.new("RGB", (SIDE, SIDE), _colour(rng))
    pen = ImageDraw.Draw(canvas)
    biggest = rng.uniform(0.15, 0.5) * SIDE
    for _ in range(int(rng.integers(15, 90))):
        # power law of sizes: the statistics of natural pictures (Lee, Mumford and Huang 2001)
        radius = min(biggest, 4.0 / np.sqrt(1 - rng.random() * 0.999))
        x, y = rng.uniform(0, SIDE, 2)
        if rng.random() < 0.5:
            pen.ellipse((x - radius, y - radius, x + radius, y + radius), fill=_colour(rng))
        else:
            angles = np.sort(rng.uniform(0, 2 * np.pi, int(rng.integers(3, 7))))
            pen.polygon([(x + radius * np.cos(a), y + radius * np.sin(a)) for a in angles], fill=_colour(rng))
    return canvas


def _fractal(rng: np.random.Generator) -> Image.Image:
    return attractor(function_system(rng), rng)


def function_system(rng: np.random.Generator) -> np.ndarray:
    """Two to four affine maps of the plane that contract, (maps, 2, 3)."""
    maps = int(rng.integers(2, 5))
    weights = rng.uniform(-1, 1, (maps, 2, 3))
    for m in range(maps):  # contract each map, else the orbit leaves
        norm = np.linalg.norm(weights[m, :, :2], 2)
        weights[m, :, :2] *= rng.uniform(0.4, 0.9) / norm
    return weights


def attractor(weights: np.ndarray, rng: np.random.Generator) -> Image.Image:
    """Where the orbits of a function system go, in two colours, 128x128."""
    maps = len(weights)
    points = np.zeros((400, 2))
    trail = []
    for step in range(30):
        choice = weights[rng.integers(maps, size=len(points))]
        points = np.einsum("nij,nj->ni", choice[:, :, :2], points) + choice[:, :, 2]
        if step > 5:
            trail.append(points)
    cloud = np.concatenate(trail)
    low, high = cloud.min(0), cloud.max(0)
    cells = ((cloud - low) / np.maximum(high - low, 1e-6) * (SIDE - 1)).astype(int)
    density = np.zeros((SIDE, SIDE))
    np.add.at(density, (cells[:, 1], cells[:, 0]), 1)
    shade = np.clip(np.log1p(density) / np.log1p(density.max()) * 2, 0, 1)[..., None]
    front, back = np.array(_colour(rng)), np.array(_colour(rng))
    return Image.fromarray((front * shade + back * (1 - shade)).astype(np.uint8))


def _noise(rng: np.random.Generator) -> Image.Image:
    frequency = np.hypot(np.fft.fftfreq(SIDE)[:, None], np.fft.rfftfreq(SIDE)[None])
    frequency[0, 0] = 1
    spectrum = rng.standard_normal((3, SIDE, SIDE // 2 + 1)) + 1j * rng.standard_normal((3, SIDE, SIDE // 2 + 1))
    field = np.fft.irfft2(spectrum / frequency ** rng.uniform(0.5, 2.0), s=(SIDE, SIDE))
    field = np.einsum("ck,khw->hwc", rng.uniform(-1, 1, (3, 3)), field)
    low, high = field.min((0, 1)), field.max((0, 1))
    return Image.fromarray(((field - low) / (high - low) * 255).astype(np.uint8))
