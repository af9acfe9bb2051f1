"""`python -m vpeft.data.pocket [--store]`: make every task anew, time it, compare or store its digests."""

from __future__ import annotations

import sys
from functools import partial

from vpeft.data.drawn_splits import compare_or_store
from vpeft.data.pocket import PocketTask, pocket_tasks
from vpeft.data.pocket.task import DIGESTS, SIZES, digest


def _digests(task: PocketTask) -> dict[str, str]:
    return {split: digest(*task.generate(split)) for split in SIZES}


def main() -> int:
    made = {name: partial(_digests, task) for name, task in pocket_tasks().items()}
    return compare_or_store(DIGESTS, made, "python -m vpeft.data.pocket", __doc__ or "")


if __name__ == "__main__":
    sys.exit(main())
