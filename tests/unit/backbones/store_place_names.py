"""The stored place names of all families; `python -m tests.unit.backbones.store_place_names` adds those of new ones.

Names that are stored are never overwritten: one that changes breaks adapter files.
"""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path

import vpeft
from tests.families import EVERY

FILE = Path(__file__).parent / "place_names.json"


@lru_cache(maxsize=1)
def stored_names() -> dict[str, list[str]]:
    """For each family its place names, in order."""
    found: dict[str, list[str]] = json.loads(FILE.read_text(encoding="utf-8"))
    return found


if __name__ == "__main__":
    names = dict(stored_names())
    for family, make in EVERY.items():
        if family not in names:
            names[family] = [place.name for place in vpeft.describe(make()).places()]
            print(family)
    # one family a line, so that a difference can be read
    lines = ",\n".join(f" {json.dumps(family)}: {json.dumps(names[family])}" for family in sorted(names))
    FILE.write_text(f"{{\n{lines}\n}}\n", encoding="utf-8")
