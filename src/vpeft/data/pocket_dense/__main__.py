"""`python -m vpeft.data.pocket_dense [--store]`: make every set anew, time it, compare or store its digests."""

from __future__ import annotations

import argparse
import json
import sys
import time

from vpeft.data.pocket_dense import pocket_dense_sets
from vpeft.data.pocket_dense.dense_set import DIGESTS, SIZES, digest, stored_digests


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m vpeft.data.pocket_dense", description=__doc__)
    parser.add_argument("--store", action="store_true", help="write the digests instead of comparing them")
    parser.add_argument("names", nargs="*", help="sets; all when none is named")
    given = parser.parse_args()
    digests = {name: dict(splits) for name, splits in stored_digests().items() if name in pocket_dense_sets()}
    differing = 0
    for name, one in pocket_dense_sets().items():
        if given.names and name not in given.names:
            continue
        began = time.perf_counter()
        found = {split: digest(one.generate(split)) for split in SIZES}
        same = found == digests.get(name)
        differing += not same
        print(f"{name:12} {'as stored' if same else 'DIFFERENT'}  {time.perf_counter() - began:5.1f} s")
        digests[name] = found
    if given.store:
        DIGESTS.write_text(json.dumps(digests, indent=1, sort_keys=True) + "\n")
        return 0
    return 1 if differing else 0


if __name__ == "__main__":
    sys.exit(main())
