"""Store the place names of families that have no file yet: `python -m tests.unit.backbones.store_place_names`."""

from __future__ import annotations

from pathlib import Path

import vpeft
from tests.families import EVERY

if __name__ == "__main__":
    folder = Path(__file__).parent / "place_names"
    for family, make in EVERY.items():
        file = folder / f"{family}.txt"
        if not file.exists():  # never overwritten: a name that changes breaks adapter files
            file.write_text("".join(f"{place.name}\n" for place in vpeft.describe(make()).places()))
            print(file)
