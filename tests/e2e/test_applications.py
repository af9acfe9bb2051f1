"""The recipes of applications: complete, run by their own commands, and on the page only when they were measured."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from PIL import Image

from vpeft.cli import main
from vpeft.data.sources.registry import known_names
from vpeft.recipes import ShippedRecipe, shipped_recipes
from vpeft.training.recipe import Recipe

ROOT = Path(__file__).resolve().parents[2]
APPLICATIONS = {name: one for name, one in shipped_recipes().items() if one.application is not None}
# What the issue of applications asks for.
ASKED = {
    "Remote sensing",
    "Industrial inspection",
    "Medical images",
    "Fine-grained recognition",
    "Documents and handwriting",
    "Species from few photographs",
    "Product search",
    "Traffic video",
    "A multi-label catalogue",
    "A quality score",
    "A detector with new classes",
    "A class added later",
}
SMALL = """# Digits: which one
# Application: Digits
# Run: vpeft train {file} --out runs/digits
# Source: ours. Data: scikit-learn's digits.
backbone = "pocket_vit"

[data]
source = "digits"
per_class = 4

[method]
name = "lora"
rank = 2

[optimisation]
epochs = 1
batch = 20
lr = 1e-3
"""


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("applications", ROOT / "benchmarks" / "applications.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def small(folder: Path) -> ShippedRecipe:
    file = folder / "digits@pocket.toml"
    text = SMALL.format(file=file)
    file.write_text(text, encoding="utf-8")
    return ShippedRecipe(
        "digits@pocket",
        file,
        "Digits: which one",
        "Source: ours.",
        None,
        "Digits",
        (f"vpeft train {file} --out runs/digits",),
    )


def test_each_application_has_a_recipe_that_says_everything() -> None:
    assert {one.application for one in APPLICATIONS.values()} == ASKED
    for name, one in APPLICATIONS.items():
        recipe = Recipe.from_toml(one.file, {"out": "unused"})
        assert recipe.backbone == "pocket_vit" and recipe.optimisation.epochs <= 40
        assert one.title and one.source.startswith("Source: ours") and "Data: " in one.source, name
        assert any(f"vpeft train {name} --out " in command for command in one.commands), name
        # what is not known by name is made by a command before
        exported = any(command.startswith("vpeft data export") for command in one.commands)
        assert exported or recipe.data.source in known_names(), name


def test_the_command_lists_them_with_what_runs_them(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["recipes", "--json"]) == 0
    told = {one["id"]: one for one in json.loads(capsys.readouterr().out)}
    assert told["inspection@pocket"]["application"] == "Industrial inspection"
    assert told["inspection@pocket"]["commands"] == ["vpeft train inspection@pocket --out runs/inspection"]
    assert told["coco-cascade-swin-b@v-petl"]["application"] is None


def test_the_page_is_that_of_the_records(script: ModuleType) -> None:
    records = script.read_records(script.RECORDS)
    assert script.page(APPLICATIONS, records) == script.PAGE.read_text(encoding="utf-8")
    assert set(records) <= set(APPLICATIONS)
    for picture in script.IMAGES.glob("application_*.png"):
        assert picture.stat().st_size < 40_000, picture.name


def test_a_record_of_an_older_file_is_not_shown(script: ModuleType, tmp_path: Path) -> None:
    one = small(tmp_path)
    record: dict[str, Any] = {
        "recipe": script.digest(one),
        "seconds": 30.0,
        "processor_seconds": 12.0,
        "memory": 2**29,
        "hardware": "a machine",
        "test": {"values": {"top1": 0.5, "loss": 1.25}, "leading": "top1", "count": 40},
        "trained": 1234,
        "share": 0.01,
        "adapter_bytes": 5000,
    }
    page = script.page({one.id: one}, {one.id: record})
    assert "| `digits@pocket` | top1 0.5 | 1,234 (1.0%) | 5 kB | 12 | 512 MiB |" in page
    assert "On 40 test images: **top1 0.5**; loss 1.25." in page
    one.file.write_text(SMALL.replace("epochs = 1", "epochs = 2"), encoding="utf-8")
    assert "digits@pocket" not in script.page({one.id: one}, {one.id: record})


def test_output_folders_of_commands(script: ModuleType) -> None:
    commands = ("mkdir x", "vpeft train a --out runs/six", "vpeft extend b --data c --out runs/seven")
    assert script.outputs(commands) == ["runs/six", "runs/seven"]


@pytest.mark.slow
def test_a_run_gives_result_cost_and_picture(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(script, "IMAGES", tmp_path / "images")
    record = script.run(small(tmp_path), threads=1)
    assert record["test"]["leading"] == "top1" and 0 <= record["test"]["values"]["top1"] <= 1
    assert record["seconds"] > 0 and record["processor_seconds"] > 0 and record["memory"] > 2**27
    assert record["trained"] > 1000 and record["adapter_bytes"] > 4000
    file = script.picture_file("digits@pocket")
    assert file.stat().st_size < 40_000
    with Image.open(file) as picture:
        assert picture.width > 6 * 100
