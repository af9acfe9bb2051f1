"""`make_report`: read a ledger, write what was asked for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import RenderableType

from vpeft.atomic import write_bytes
from vpeft.bench.ledger import Ledger, open_ledger
from vpeft.bench.pictures import pictures_of
from vpeft.bench.record import RunRecord
from vpeft.report.board import Board, boards
from vpeft.report.figure import as_png
from vpeft.report.page import as_html
from vpeft.report.published import PublishedTable, published
from vpeft.report.tables import as_csv, as_markdown, on_terminal


@dataclass(frozen=True)
class Report:
    """What a ledger holds, and the files that were written. Printing it with rich shows the tables."""

    boards: tuple[Board, ...]
    records: tuple[RunRecord, ...]
    files: tuple[Path, ...]

    def __rich__(self) -> RenderableType:
        return on_terminal(self.boards)


def make_report(
    ledger_path: Path | str,
    html: Path | None = None,
    csv: Path | None = None,
    markdown: Path | None = None,
    png: Path | None = None,
    *,
    reported: Sequence[str | Path] = (),
) -> Report:
    """Read the records under `ledger_path` and write the files that are given a name.

    html: one page that needs no network. csv: every run, one line. markdown: the tables. png: the picture.
    `reported` names published tables (or CSV files) that the page shows in sections of their own, marked as such.
    Raises LedgerError for a ledger that is missing, empty or damaged, BadTable for a published table.
    """
    ledger = open_ledger(ledger_path)
    records = tuple(ledger)
    found = tuple(boards(records))
    tables = [published(name) for name in reported]
    written = []
    if html is not None:
        written.append(_write(html, _page(ledger, found, records, tables, Path(html)).encode()))
    if csv is not None:
        written.append(_write(csv, as_csv(records).encode()))
    if markdown is not None:
        written.append(_write(markdown, as_markdown(found).encode()))
    if png is not None:
        written.append(_write(png, as_png(found)))
    return Report(found, records, tuple(written))


def _page(
    ledger: Ledger,
    found: Sequence[Board],
    records: Sequence[RunRecord],
    tables: Sequence[PublishedTable],
    path: Path,
) -> str:
    return as_html(found, records, tables, ledger.place, path, lambda key: pictures_of(ledger.path, key))


def _write(path: Path | str, content: bytes) -> Path:
    """Put a file in place whole; a reader of the old one is not disturbed."""
    write_bytes(Path(path), content)
    return Path(path)
