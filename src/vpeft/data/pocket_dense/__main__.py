"""`python -m vpeft.data.pocket_dense [--store]`: make every set anew, time it, compare or store its digests."""

from __future__ import annotations

import sys
from functools import partial

from vpeft.data.drawn_splits import compare_or_store
from vpeft.data.pocket_dense import DenseSet, pocket_dense_sets
from vpeft.data.pocket_dense.dense_set import DIGESTS, SIZES, digest, digest_of


def _digests(one: DenseSet) -> dict[str, str]:
    return {split: digest(one.generate(split)) for split in SIZES}


def _digests_of_normals(one: DenseSet) -> dict[str, str]:
    return {split: digest_of({"normals": one.generate_normals(split)}) for split in SIZES}


def main() -> int:
    made = {name: partial(_digests, one) for name, one in pocket_dense_sets().items()}
    surfaces = {name: one for name, one in pocket_dense_sets().items() if one.draw_normals is not None}
    made |= {f"{name}-normals": partial(_digests_of_normals, one) for name, one in surfaces.items()}
    return compare_or_store(DIGESTS, made, "python -m vpeft.data.pocket_dense", __doc__ or "")


if __name__ == "__main__":
    sys.exit(main())
