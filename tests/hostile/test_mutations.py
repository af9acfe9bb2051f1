"""Changed adapter files under limits of time and memory, in a process of their own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]


def counted(files: int, seed: int) -> dict[str, Any]:
    """What `tests.hostile.mutations` counts."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.hostile.mutations", str(files), "--seed", str(seed)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": f"{ROOT / 'src'}{os.pathsep}{ROOT}", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=3000,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


@pytest.mark.parametrize(("files", "seed"), [(300, 1), pytest.param(20_000, 0, marks=pytest.mark.slow)])
def test_changed_files_are_refused_or_harmless(files: int, seed: int) -> None:
    found = counted(files, seed)
    # a change that gives the same bytes again, about three in a hundred, is not counted
    assert found["files"] > 0.95 * files and found["refused"] > 0.7 * files
    wrong = {
        key: found[key] for key in ("other_exceptions", "bombs", "damaged_but_accepted", "left_behind") if found[key]
    }
    assert not wrong, found
