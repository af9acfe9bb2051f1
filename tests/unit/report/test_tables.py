"""Tables fit the terminal they are printed on."""

from __future__ import annotations

import pytest
from rich.console import Console

from vpeft.report.board import boards
from vpeft.report.tables import on_terminal

from .ledgers import grid


@pytest.mark.parametrize("width", [60, 80, 200])
def test_a_narrow_terminal_leaves_whole_columns_out_and_says_which(width: int) -> None:
    board = boards(grid({"lora": 0.0, "ssf": 0.1}))[0]
    console = Console(width=width, color_system=None)
    with console.capture() as capture:
        console.print(on_terminal([board]))
    text = capture.get()
    assert "…" not in text
    assert all(len(row) <= width for row in text.splitlines())
    assert board.rows[0].label in text and "trained" in text
    assert ("not shown here" in text) == (width < 200)
