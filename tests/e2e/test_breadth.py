"""How many of timm's names are live with LoRA: the stored page, and (slowly) all of it again."""

from __future__ import annotations

import importlib.util
import json
import sys
import warnings
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def breadth() -> ModuleType:
    spec = importlib.util.spec_from_file_location("breadth", ROOT / "benchmarks" / "breadth.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["breadth"] = module  # where a dataclass looks its annotations up
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
def test_one_name_of_each_kind_again(breadth: ModuleType) -> None:
    """The smallest name of each kind of a family, tried anew: what was live is live, and nothing breaks.

    It took 100 seconds of one processor.
    """
    stored = json.loads((ROOT / "docs" / "breadth.json").read_text())["names"]
    passed = {entry["kind"] for entry in stored.values() if entry.get("live")}
    smallest: dict[str, str] = {}
    for name in sorted(stored, key=lambda n: (stored[n].get("parameters", 0), n)):
        if stored[name].get("family"):
            smallest.setdefault(stored[name]["kind"], name)
    assert len(smallest) > 100
    wrong: dict[str, str] = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for kind, name in smallest.items():
            entry = breadth.probe(name, set())
            said = [part.get("reason", "") for part in (entry, *(entry.get(m, {}) for m in breadth.METHODS))]
            bugs = [reason for reason in said if reason.split(":")[0].endswith(("Error", "Exception"))]
            if bugs or (kind in passed and not entry.get("live")):
                wrong[name] = bugs[0] if bugs else str(entry.get("why") or entry.get("reason") or entry.get("lora"))
    assert not wrong
