"""digits: 1,797 handwritten digits, 8 x 8 pixels, that come with scikit-learn: one small real task, offline.

800 images train, 200 validate, 797 test. The digits are the test part of the UCI "Optical Recognition of Handwritten
Digits" (E. Alpaydin, C. Kaynak, 1998), written by 13 people; writers are not told apart there, so the same hand may be
on both sides of a split.
"""

from __future__ import annotations

import hashlib
from collections import Counter

import numpy as np

from vpeft.bench.splits import SplitArrays
from vpeft.bench.suite import BenchTask, Suite, Tier, make_task
from vpeft.errors import need_extra

TRAIN, VAL = 800, 200
# The darkest value of the 8 x 8 images, which count pixels of a finer bitmap.
FULL = 16


def _open(name: str) -> BenchTask:
    data = need_extra("sklearn.datasets", "bench").load_digits()
    grey = np.rint(np.asarray(data.images, dtype=np.float64) * 255.0 / FULL).astype(np.uint8)
    pixels = np.repeat(grey[..., None], 3, axis=3)
    labels = np.asarray(data.target, dtype=np.int64)
    # Ranked by a hash and not by a generator, whose stream may change from version to version.
    order = sorted(range(len(labels)), key=lambda index: hashlib.sha256(f"digits@1 {index}".encode()).hexdigest())
    # Stratified: the classes take turns, so that any prefix has nearly equal numbers of each.
    seen: Counter[int] = Counter()
    turn: dict[int, int] = {}
    for index in order:
        turn[index] = seen[int(labels[index])]
        seen[int(labels[index])] += 1
    order.sort(key=lambda index: turn[index])
    parts = order[:TRAIN], order[TRAIN : TRAIN + VAL], order[TRAIN + VAL :]
    train, val, test = (SplitArrays(pixels[part], labels[part]) for part in parts)
    return make_task("digits", name, "handwriting", tuple(str(digit) for digit in range(10)), train, val, test)


SUITE = Suite(
    name="digits",
    title="Digits",
    about="Handwritten digits of scikit-learn as images: 10 classes, 800 + 200 + 797 images.",
    groups={"classes": "handwriting"},
    tiers={
        "smoke": Tier(protocol="digits-smoke@1", seeds=1),
        "quick": Tier(protocol="digits-quick@1", seeds=3),
        "demo": Tier(protocol="digits-demo@1", seeds=1),
        "full": Tier(protocol="digits@1", seeds=3),
    },
    default_tier="quick",
    open=_open,
    licence="CC BY 4.0 (UCI); BSD-3-Clause (scikit-learn)",
)
