"""No file of the corpus costs a second or 100 MB, whatever it asks for; nor does any number of any method."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.hostile.mutations import MEBIBYTES, SECONDS

ROOT = Path(__file__).parents[2]
PARTS = 8  # shares of the methods, so that the workers of a test run divide them


def lines_of(module: str, *arguments: str) -> list[str]:
    """What a module of this folder prints, in a process whose memory is its own."""
    done = subprocess.run(
        [sys.executable, "-m", f"tests.hostile.{module}", *arguments],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": f"{ROOT / 'src'}{os.pathsep}{ROOT}", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=3000,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout.splitlines()


def test_hostile_adapters_cost_neither_time_nor_memory() -> None:
    found = json.loads(lines_of("measure")[-1])
    assert len(found) > 40 and {
        "adapter_rank_200000.safetensors",
        "adapter_classes_100000000.safetensors",
        "adapter_methods_1000.safetensors",
        "adapter_origin_giant.safetensors",
    } <= set(found)
    for name, (said, seconds, mebibytes) in found.items():
        assert said == "refused" and seconds < SECONDS and mebibytes < MEBIBYTES, (name, said, seconds, mebibytes)


@pytest.mark.slow
@pytest.mark.parametrize("part", range(PARTS))
def test_no_number_of_any_method_is_a_bomb(part: int) -> None:
    found = json.loads(lines_of("extreme_fields", str(part), str(PARTS))[-1])
    assert found["tried"] > 500 / PARTS and not found["wrong"], found
