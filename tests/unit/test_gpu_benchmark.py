"""benchmarks/gpu.py: it ends in time with what it has, and its results reach the page."""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"

# A part that writes a row and never ends.
ENDLESS = """
import sys, time
from pathlib import Path
Path(sys.argv[sys.argv.index("--out") + 1]).write_text('[{"row": 1}]')
time.sleep(300)
"""


def loaded(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"benchmark_{name}", BENCHMARKS / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def gpu() -> ModuleType:
    return loaded("gpu")


def options(tmp_path: Path) -> argparse.Namespace:
    return argparse.Namespace(out=tmp_path / "gpu.json", device="cpu", seconds=0.1, tiny=True)


def test_a_part_that_does_not_end_is_stopped_and_its_rows_are_kept(
    gpu: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    endless = tmp_path / "endless.py"
    endless.write_text(ENDLESS)
    monkeypatch.setattr(gpu, "__file__", str(endless))
    monkeypatch.setattr(gpu, "STARTING", 0.0)
    begun = time.monotonic()
    rows, ended = gpu.in_time("training", options(tmp_path), 5.0)
    assert (rows, ended) == ([{"row": 1}], "time")
    assert time.monotonic() - begun < 20
    assert not list(tmp_path.glob("*.part"))


def test_without_time_a_part_is_not_begun(gpu: ModuleType, tmp_path: Path) -> None:
    assert gpu.in_time("training", options(tmp_path), 1.0) == ([], "time")


def test_a_row_that_fails_says_why(gpu: ModuleType) -> None:
    def fails() -> dict[str, Any]:
        raise RuntimeError("out of memory")

    assert gpu.attempted(fails) == {"failed": "RuntimeError: out of memory"}


def test_without_a_gpu_it_says_so(gpu: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu.torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(sys, "argv", ["gpu.py", "--out", str(tmp_path / "gpu.json")])
    assert gpu.main() == 1
    assert not (tmp_path / "gpu.json").exists()


@pytest.mark.slow
@pytest.mark.parametrize("part", ["serving", "batched"])
def test_rows_on_tiny_models(gpu: ModuleType, part: str, tmp_path: Path) -> None:
    gpu.measure(part, gpu.Place("cpu", True, 0.02), tmp_path / "rows.json")
    rows = json.loads((tmp_path / "rows.json").read_text())
    assert rows and all("failed" not in row for row in rows), rows


@pytest.mark.slow
def test_every_way_to_train_a_tiny_model(gpu: ModuleType) -> None:
    place = gpu.Place("cpu", True, 0.0)
    name = gpu.MODELS[-1][1]
    for way, make in gpu.ways(place, name, False).items():
        row = gpu.trained(place, make, 2)
        assert row["images_per_second"] > 0 and row["trained"] > 0, way


RESULT: dict[str, Any] = {
    "device": "cuda",
    "gpu": {"name": "a GPU", "bytes": 80 * 2**30, "cuda": "13"},
    "versions": {"torch": "2"},
    "date": "2026-01-01",
    "tiny": False,
    "parts": {
        "training": {
            "rows": [
                {
                    "model": "ViT-B/16",
                    "way": "lora, peft",
                    "trained": 1000,
                    "batch": 64,
                    "images_per_second": 700.4,
                    "slowest": 650.0,
                    "fastest": 710.0,
                    "set_up_seconds": 3.0,
                    "peak_bytes": 3 * 2**30,
                },
                {"model": "ViT-B/16", "way": "ssf, vpeft, auto", "failed": "RuntimeError: a | b\nc"},
            ]
        },
        "batched": {"rows": []},
        "serving": {"rows": [{"method": "lora", "adapters": 4, "images": 64, "images_per_second": {"backbone": 9.0}}]},
        "tests": {"rows": [{"file": "a", "passed": 3, "failed": 1, "skipped": 0, "error": 0}]},
    },
}


def test_results_reach_the_page() -> None:
    page = loaded("speed_page")
    text = "\n".join(page._gpu(RESULT))
    assert "## On a GPU" in text and "one a GPU (80 GiB)" in text
    assert "| ViT-B/16 | lora, peft | 1,000 | 64 | 700 | 650 to 710 | 3.00 GiB | 3.0 s |" in text
    assert "| ViT-B/16 | ssf, vpeft, auto | | | RuntimeError: a / b c | | | |" in text
    assert "| lora | 4 | 9 | – | – | – | – |" in text
    assert "GPU tests: 3 passed, 1 failed, 0 error, 0 skipped." in text
    assert "Several runs" not in text


@pytest.mark.parametrize("result", [None, {**RESULT, "device": "cpu"}, {**RESULT, "tiny": True}])
def test_a_trial_of_the_program_is_no_measurement(result: dict[str, Any] | None) -> None:
    page = loaded("speed_page")
    assert page._gpu(result) == ["", "Nothing on this page was measured on a GPU.", ""]
