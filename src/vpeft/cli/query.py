"""`vpeft query SQL`: questions to a ledger's records."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from rich.text import Text

from vpeft.bench.ledger import open_ledger
from vpeft.bench.query import TABLES
from vpeft.bench.query import query as answered
from vpeft.cli import show
from vpeft.cli.flags import Switch


def query(
    sql: str | None = None,
    /,
    *,
    ledger: Path = Path("ledger"),
    format: Literal["table", "csv", "json"] = "table",
    json: Switch = False,
) -> None:
    """Ask a ledger in SQL: its records are the tables runs, scores, methods, settings, epochs and searched.

    vpeft query "select label, avg(score) from runs where purpose = 'final' group by label" --ledger results/pocket

    The query can read these tables and nothing else: no file, no network. Without SQL the tables and their columns are
    listed. What a column holds is said in docs/records.md.

    Parameters
    ----------
    sql:
        One statement that reads, as duckdb knows it: SELECT, WITH, FROM, DESCRIBE, SUMMARIZE or EXPLAIN.
    ledger:
        The folder that `vpeft bench --out` wrote.
    format:
        How to print the answer.
    json:
        Print JSON, as `--format json` does.
    """
    if sql is None:
        rows = [(table, ", ".join(columns)) for table, columns in TABLES.items()]
        show.console().print(show.table(("table", "columns"), rows))
        return
    answer = answered(open_ledger(ledger), sql)
    if json or format == "json":
        show.as_json([dict(zip(answer.columns, row, strict=True)) for row in answer.rows])
    elif format == "csv":
        show.as_csv(answer.columns, answer.rows)
    else:
        cells = [["" if cell is None else cell for cell in row] for row in answer.rows]
        show.console().print(show.table(answer.columns, cells))
        show.console().print(Text(f"{len(answer.rows)} row{'' if len(answer.rows) == 1 else 's'}", style="dim"))
