"""The table of methods on families: one method's row beside those of an earlier run."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.contract import matrix
from tests.families import EVERY
from vpeft.methods import all_methods

FAMILY = "timm_vit"


@pytest.fixture
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file of one family's cells that other code has made."""
    monkeypatch.setattr(matrix, "EVERY", {FAMILY: EVERY[FAMILY]})
    monkeypatch.setattr(matrix, "ProcessPoolExecutor", ThreadPoolExecutor)
    monkeypatch.setattr(matrix, "cell_text", lambda name, family, checks: ("now", None))
    file = tmp_path / "cells.jsonl"
    lines = [json.dumps([name, FAMILY, "before", None]) for name in all_methods() if name != "difffit"]
    file.write_text("\n".join(["digest of other code", *lines]) + "\n")
    return file


def test_only_the_named_method_runs_and_the_others_are_taken_from_the_file(kept: Path) -> None:
    found = matrix.results(1, False, kept, ("difffit", "lora"))
    assert {name for (name, _), (text, _) in found.items() if text == "now"} == {"difffit", "lora"}
    assert len(found) == len(all_methods())


def test_without_names_cells_of_other_code_are_not_taken_up(kept: Path) -> None:
    assert {text for text, _ in matrix.results(1, False, kept).values()} == {"now"}


def test_a_method_that_is_neither_named_nor_in_the_file_is_said(kept: Path) -> None:
    with pytest.raises(SystemExit, match="no cells of difffit"):
        matrix.results(1, False, kept, ("lora",))
