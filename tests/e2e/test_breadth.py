"""How many of timm's names are live with LoRA: the stored page, and (slowly) all of it again."""

from __future__ import annotations

import importlib.util
import json
import warnings
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import timm

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def breadth() -> ModuleType:
    spec = importlib.util.spec_from_file_location("breadth", ROOT / "benchmarks" / "breadth.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_is_made_from_the_file_and_counts_enough(breadth: ModuleType) -> None:
    found = json.loads((ROOT / "docs" / "breadth.json").read_text())
    assert (ROOT / "docs" / "breadth.md").read_text() == breadth.page(found)
    passed = breadth.passed_kinds(found)
    assert sum(breadth.counts(entry, passed) for entry in found["names"].values()) >= 350


def test_one_name_is_live_and_one_is_refused_with_its_reason(breadth: ModuleType) -> None:
    entry = breadth.probe("resnet18", set())
    assert entry["live"] and entry["family"] == "timm_resnet" and entry["sites"] == 10
    assert "cannot insert_tokens" in entry["vpt_deep"]["reason"]
    assert breadth.probe("vgg11", set()).get("reason") == "no family"


@pytest.mark.slow
def test_every_name_again(breadth: ModuleType) -> None:
    found: dict[str, Any] = {"names": {}}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name in timm.list_models():
            found["names"][name] = breadth.probe(name, breadth.passed_kinds(found))
    passed = breadth.passed_kinds(found)
    live = [name for name, entry in found["names"].items() if breadth.counts(entry, passed)]
    assert len(live) >= 350
    bugs = {
        name: reason
        for name, entry in found["names"].items()
        for part in (entry, *(entry.get(method, {}) for method in breadth.METHODS))
        if (reason := part.get("reason", "")) and reason.split(":")[0].endswith(("Error", "Exception"))
    }
    assert not bugs, bugs
