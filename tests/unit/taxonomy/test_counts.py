"""The page of counts: what it compares, and that a difference without a reason stops it."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

from vpeft.methods import all_methods

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
def tool(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    spec = importlib.util.spec_from_file_location("tools_counts", ROOT / "tools" / "counts.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "tools_counts", module)  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def test_every_method_has_a_row(tool: ModuleType) -> None:
    own = {name for name, kind in all_methods().items() if kind.__module__.startswith("vpeft.")}
    listed = {row.method for row in (*tool._bench(), *tool._around(), *tool._dense())}
    assert listed <= own
    papers = {name for name in own if all_methods()[name].year}
    assert len(papers - listed) <= len(own) - 46, sorted(papers - listed)  # methods that came later may follow


def test_a_print_is_compared_to_its_last_digit(tool: ModuleType) -> None:
    row = tool.Row("ssf", None, "0.39M", plus=tool.FGVC_HEAD)
    assert tool.fits(row, 205_824) and not tool.fits(row, 215_824)
    assert tool.fits(tool.Row("full_finetuning", None, "85.8M"), 85_798_656)


@pytest.mark.parametrize("row", [("dra", 18_432, "0.03M"), ("dra", 18_431, "0.02M", "a reason does not mend a count")])
def test_a_difference_stops_it(tool: ModuleType, monkeypatch: pytest.MonkeyPatch, row: tuple[object, ...]) -> None:
    monkeypatch.setattr(tool, "_bench", lambda: [tool.Row(*row)])
    monkeypatch.setattr(tool, "_around", list)
    monkeypatch.setattr(tool, "_dense", list)
    with pytest.raises(AssertionError, match="18,432"):
        tool.page()


def test_the_page_counts_live_models_and_lines(
    tool: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(tool, "_bench", lambda: [tool.Row("dra", 18_432, "0.02M")])
    monkeypatch.setattr(tool, "_around", list)
    monkeypatch.setattr(tool, "_dense", list)
    made = tool.page()
    assert "| 18,432 | 95,332 | 0 | 0.02M | yes |" in made and "1 rows. 1 have a formula" in made
    assert "files hold one method each. The median" in made and "without docstrings and blank lines" in made
    monkeypatch.setattr(tool, "PAGE", tmp_path / "counts.md")
    monkeypatch.setattr(tool, "ROOT", tmp_path)
    monkeypatch.setattr(tool, "page", lambda: made)
    assert tool.run(["--check"]) == 1 and "stale" in capsys.readouterr().out
    assert tool.run([]) == 0 and tool.run(["--check"]) == 0


def test_lines_of_code_are_those_that_are_no_docstring_and_not_blank(tool: ModuleType) -> None:
    text = (
        '"""One.\n\nTwo."""\n\nx = 1  # three\n\n\n'
        'def f():\n    """Four."""\n    return "five"\n\n\n'
        'class A:\n    y = 1\n    """six"""\n'
    )
    assert tool.code_lines(text) == 5
