"""The pre-training corpus as arrays on disk: `python pretraining/arrays.py WORK --pictures N --scenes N --glyphs N`.

Writes pictures.npy (N, 128, 128, 3), scenes.npy and glyphs.npy (N, 64, 64, 3), all uint8, with scenes_labels.npy
(N, factors) and glyphs_labels.npy (N,) as int16. Split over processes; the result does not depend on how many.
"""

from __future__ import annotations

import argparse
import multiprocessing
from collections.abc import Callable
from pathlib import Path

import numpy as np
from corpus import SEED, Pictures, fetch
from PIL import Image
from scenes import NAMES, Glyphs, floor, relief, scattered

_pictures: Pictures
_glyphs: Glyphs


def _small(crop: np.ndarray) -> np.ndarray:
    return np.asarray(Image.fromarray(crop).resize((64, 64), Image.Resampling.BOX))


def _picture(index: int) -> tuple[np.ndarray, np.ndarray]:
    return _pictures.draw(SEED, index), np.zeros(0, np.int16)


def _scene(index: int) -> tuple[np.ndarray, np.ndarray]:
    if index % 10 < 5:
        picture, labels = scattered(SEED, index, _small(_pictures.draw(SEED + 1, index)))
    elif index % 10 < 8:
        picture, labels = floor(SEED, index)
    else:
        picture, labels = relief(SEED, index)
    return picture, np.array([labels[name] for name in NAMES], np.int16)


def _glyph(index: int) -> tuple[np.ndarray, np.ndarray]:
    picture, label = _glyphs.draw(SEED, index, _small(_pictures.draw(SEED + 2, index)))
    return picture, np.array(label, np.int16)


def build(work: Path, pictures: int, scenes: int, glyphs: int, processes: int = 2) -> None:
    """Make every array that `work` lacks; downloads the packages first. About 5 ms of one core per picture."""
    wanted: list[tuple[str, int, Callable[[int], tuple[np.ndarray, np.ndarray]]]] = [
        ("pictures", pictures, _picture),
        ("scenes", scenes, _scene),
        ("glyphs", glyphs, _glyph),
    ]
    missing = [entry for entry in wanted if not (work / f"{entry[0]}_labels.npy").exists()]
    if not missing:
        return
    fetch(work)
    global _pictures, _glyphs
    _pictures, _glyphs = Pictures(work), Glyphs(work / "packages" / "fonts-noto-core")
    # fork: the children share the decoded pictures
    with multiprocessing.get_context("fork").Pool(processes) as pool:
        for name, count, draw in missing:
            images: np.memmap | None = None
            labels = []
            for i, (picture, label) in enumerate(pool.imap(draw, range(count), chunksize=64)):
                if images is None:
                    shape = (count, *picture.shape)
                    images = np.lib.format.open_memmap(work / f"{name}.npy", "w+", np.uint8, shape)
                images[i] = picture
                labels.append(label)
            np.save(work / f"{name}_labels.npy", np.stack(labels))
            print(f"{name}: {count}", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("work", type=Path)
    parser.add_argument("--pictures", type=int, default=24_000)
    parser.add_argument("--scenes", type=int, default=40_000)
    parser.add_argument("--glyphs", type=int, default=20_000)
    given = parser.parse_args()
    build(given.work, given.pictures, given.scenes, given.glyphs)
