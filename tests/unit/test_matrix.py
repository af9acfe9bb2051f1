"""The table of methods on families: one method's row beside those that the page has."""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.contract import matrix
from tests.families import EVERY
from vpeft.methods import all_methods

FAMILY = "timm_vit"
REASON = "there is no place (or none that fits); `x`: y"


@pytest.fixture
def written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A page of one family without DiffFit, where SSF is refused and BitFit passes with a remark."""
    monkeypatch.setattr(matrix, "EVERY", {FAMILY: EVERY[FAMILY]})
    monkeypatch.setattr(matrix, "ProcessPoolExecutor", ThreadPoolExecutor)
    monkeypatch.setattr(matrix, "cell_text", lambda name, family, checks: ("7", None))
    cells: dict[str, tuple[str, str | None]] = dict.fromkeys(all_methods(), ("5", None))
    cells |= {"ssf": ("refused", REASON), "bitfit": ("5", "with only='query_fc1'")}
    file, whole = tmp_path / "page.md", {(name, FAMILY): cell for name, cell in cells.items()}
    file.write_text(matrix.page(whole, False))
    assert matrix.cells_of(file.read_text()) == whole
    file.write_text("\n".join(line for line in file.read_text().splitlines() if not line.startswith("| `difffit`")))
    return file


def call(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr(sys, "argv", ["matrix", *map(str, arguments)])
    return matrix.main()


def test_only_the_named_methods_run_and_the_page_keeps_the_others(
    written: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = matrix.cells_of(written.read_text())
    assert call(monkeypatch, "--only", "difffit,lora", "--write", written) == 0
    after = matrix.cells_of(written.read_text())
    assert after == before | {("difffit", FAMILY): ("7", None), ("lora", FAMILY): ("7", None)}
    assert after["ssf", FAMILY] == ("refused", REASON)


def test_a_method_that_is_neither_named_nor_on_the_page_is_said(
    written: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        call(monkeypatch, "--only", "lora", "--write", written)
    assert "lacks cells of difffit" in capsys.readouterr().err


def test_the_missing_cells_run_and_the_page_keeps_the_others(written: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = matrix.cells_of(written.read_text())
    assert call(monkeypatch, "--missing", "--write", written) == 0
    assert matrix.cells_of(written.read_text()) == before | {("difffit", FAMILY): ("7", None)}


def test_cells_of_other_code_are_not_taken_up_from_a_killed_run(tmp_path: Path, written: Path) -> None:
    kept = tmp_path / "cells.jsonl"
    kept.write_text('digest of other code\n["lora", "timm_vit", "5", null]\n')
    assert {text for text, _ in matrix.results(1, False, kept).values()} == {"7"}
    again = kept.read_text()
    assert {text for text, _ in matrix.results(1, False, kept).values()} == {"7"}
    assert kept.read_text() == again  # every cell was found
