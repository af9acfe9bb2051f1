"""`vpeft report`: tables, a picture and a page from a ledger."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter
from rich.text import Text

from vpeft.bench.ledger import Ledger, open_ledger
from vpeft.cli import show
from vpeft.cli.flags import Switch
from vpeft.report import make_report


def report(
    ledger: Path,
    /,
    *,
    html: Path | None = None,
    png: Path | None = None,
    csv: Path | None = None,
    markdown: Path | None = None,
    reported: Annotated[tuple[str, ...], Parameter(negative=(), show_default=False)] = (),
    pack: Switch = False,
    quiet: Switch = False,
) -> None:
    """Turn the run records of a ledger into tables, a picture and a page that works offline.

    Parameters
    ----------
    ledger:
        The folder that `vpeft bench --out` wrote.
    html:
        Write the page to this file.
    png:
        Write the picture of accuracy against trained parameters to this file.
    csv:
        Write every run as one line to this file.
    markdown:
        Write the tables to this file.
    reported:
        Published tables (`vtab1k`, or a CSV file) that the page shows in separate sections, marked as reported.
    pack:
        First move the records of finished runs from their files into one compressed table of the ledger.
    quiet:
        Print no tables.
    """
    if pack:
        moved = open_ledger(ledger).pack()
        show.console().print(Text(f"packed: {moved} records into {Ledger(ledger).table}"))
    made = make_report(ledger, html=html, csv=csv, markdown=markdown, png=png, reported=reported)
    if not quiet:
        show.console().print(made)
    for file in made.files:
        show.console().print(Text(f"written: {file}"))
