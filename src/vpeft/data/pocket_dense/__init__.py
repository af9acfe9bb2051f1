"""The offline sets for dense prediction: pictures of 128 x 128 pixels with masks, objects and depth.

    pictures = pocket_dense_sets()["digits"].load("train")

A file of this folder that has a `SET` is a set; nothing else needs to know it. `python -m vpeft.data.pocket_dense`
makes them anew, prints what it checks, and with `--store` writes the digests of a new or changed set.
"""

from __future__ import annotations

import importlib
import pkgutil
from functools import cache

from vpeft.data.pocket_dense.dense_set import SEED, SIZES, VERSION, DensePictures, DenseSet

__all__ = ["SEED", "SIZES", "VERSION", "DensePictures", "DenseSet", "pocket_dense_sets"]


@cache
def pocket_dense_sets() -> dict[str, DenseSet]:
    """Every set by name, sorted."""
    found: dict[str, DenseSet] = {}
    for entry in pkgutil.iter_modules(__path__):
        if entry.name == "__main__":
            continue
        one = getattr(importlib.import_module(f"{__name__}.{entry.name}"), "SET", None)
        if isinstance(one, DenseSet):
            found[one.name] = one
    return dict(sorted(found.items()))
