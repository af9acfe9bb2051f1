"""How commands print: tables for people, JSON and CSV for programs, always on stdout; remarks go to stderr."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from typing import Any, TextIO

from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from vpeft.safe_text import SafeConsole, json_text, visible_line, write_csv

# Where the output goes to a file or a pipe there is no width to fit into; this one keeps rows on one line.
_UNBOUNDED = 200


def console() -> Console:
    """Return a console on stdout, as wide as the terminal; without a terminal, wide enough for any row."""
    return SafeConsole(highlight=False, width=None if sys.stdout.isatty() else _UNBOUNDED)


def table(columns: Sequence[str], rows: Iterable[Sequence[object]], *, title: str | None = None) -> Table:
    """Return a plain table; fractions have four digits, and columns of numbers are aligned right."""
    cells = [[f"{cell:.4g}" if isinstance(cell, float) else visible_line(str(cell)) for cell in row] for row in rows]
    made = Table(
        title=title and escape(visible_line(title)), title_justify="left", box=None, header_style="bold", pad_edge=False
    )
    for place, name in enumerate(columns):
        numeric = bool(cells) and all(_is_number(row[place]) for row in cells)
        made.add_column(Text(visible_line(name)), justify="right" if numeric else "left", overflow="fold")
    for row in cells:
        made.add_row(*(Text(cell) for cell in row))
    return made


def as_json(value: Any) -> None:
    """Print `value` as JSON on stdout, and nothing else."""
    sys.stdout.write(json_text(value) + "\n")


def as_csv(columns: Sequence[str], rows: Iterable[Sequence[object]], to: TextIO | None = None) -> None:
    """Write rows as CSV (RFC 4180) to stdout or to `to`, with nothing that a spreadsheet or a terminal would obey."""
    write_csv(to or sys.stdout, columns, rows)


def count(number: int) -> str:
    """Format a number of parameters: 12.3K, 4.56M."""
    for size, letter in ((10**9, "B"), (10**6, "M"), (10**3, "K")):
        if number >= size:
            return f"{number / size:.3g}{letter}"
    return str(number)


def duration(seconds: float) -> str:
    """Format seconds: 8.4 s, 3 min 20 s, 2 h 5 min."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"


def _is_number(text: str) -> bool:
    try:
        float(text.rstrip("%KMB") or "x")
    except ValueError:
        return False
    return True
