"""Trainings killed without warning at random moments: how many were lost, or ended otherwise than one left alone.

    python benchmarks/kills.py --kills 100

The exit status is 1 where a training was lost, ended with other bits, or left something half-written. The code is
tests/e2e/random_kills.py.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def main() -> int:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100, help="in all")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    chosen = parser.parse_args()
    paths = os.pathsep.join((str(ROOT / "src"), str(ROOT)))
    done = subprocess.run(
        [sys.executable, "-m", "tests.e2e.random_kills", str(chosen.kills), "--seed", str(chosen.seed)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    found = json.loads(done.stdout.splitlines()[-1])
    steps = found.pop("steps")
    print(f"{found.pop('kills')} kills of {found.pop('trainings')} trainings in {found.pop('seconds')} s")
    for name, value in found.items():
        print(f"  {name.replace('_', ' '):28} {value}")
    print(f"  {'killed at steps':28} {min(steps, default=0)} to {max(steps, default=0)} of 30")
    return int(any(found[name] for name in ("damaged_checkpoints", "lost", "unequal", "leftovers")))


if __name__ == "__main__":
    sys.exit(main())
