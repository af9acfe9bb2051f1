"""What hostile files do: counts over mutated adapter files, costs of the corpus, and extremes of every method.

    python benchmarks/hostile_files.py --files 20000

Each part runs in a process of its own under a limit of memory. The figures are printed; the exit status is 1 where
something happened that must not. The corpus and the mutations are those of tests/hostile.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]


def last_line(module: str, *arguments: str) -> Any:
    """The JSON that a module of tests/hostile prints at its end."""
    paths = os.pathsep.join((str(ROOT / "src"), str(ROOT)))
    done = subprocess.run(
        [sys.executable, "-m", f"tests.hostile.{module}", *arguments],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return json.loads(done.stdout.splitlines()[-1])


def main() -> int:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=20_000, help="mutated adapter files")
    parser.add_argument("--seed", type=int, default=0, help="of the mutations")
    parser.add_argument("--fields", action="store_true", help="also extremes of every field of every method (minutes)")
    chosen = parser.parse_args()
    bad = 0

    found = last_line("mutations", str(chosen.files), "--seed", str(chosen.seed))
    print(f"{found['files']} mutated adapter files")
    for key in ("refused", "other_exceptions", "bombs", "damaged_but_accepted", "left_behind", "forged_and_valid"):
        print(f"  {key.replace('_', ' '):22} {found[key]}")
        bad += found[key] if key not in ("refused", "forged_and_valid") else 0
    print(f"  {'slowest':22} {found['slowest_seconds']:.2f} s")
    print(f"  {'most memory':22} {found['most_mebibytes']:.1f} MiB")
    for example in found["examples"]:
        print(f"  {example}")

    costs = last_line("measure")
    wrong = {name: row for name, row in costs.items() if row[0] != "refused" or row[1] > 1 or row[2] > 100}
    print(f"{len(costs)} hostile adapter files of the corpus")
    print(f"  {'not refused or costly':22} {len(wrong)}")
    print(f"  {'slowest':22} {max(row[1] for row in costs.values()):.2f} s")
    print(f"  {'most memory':22} {max(row[2] for row in costs.values()):.1f} MiB")
    bad += len(wrong)

    if chosen.fields:
        fields = last_line("extreme_fields")
        print(f"{fields['tried']} extreme values of fields of methods")
        print(f"  {'wrong':22} {len(fields['wrong'])}")
        for line in fields["wrong"]:
            print(f"  {line}")
        bad += len(fields["wrong"])
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
