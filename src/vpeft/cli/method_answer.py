"""The answers of `vpeft methods --like`, and the methods near one: as tables and as plain data."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.text import Text

from vpeft.bench.ledger import open_ledger
from vpeft.cli import show
from vpeft.method import all_methods
from vpeft.report.board import boards
from vpeft.taxonomy.facts import facts_of
from vpeft.taxonomy.neighbours import Neighbour, built_on, neighbours
from vpeft.taxonomy.properties import Properties, stored_properties
from vpeft.taxonomy.results import Results, ScoreTable, stored_results
from vpeft.taxonomy.wishes import Answer, Query

_MISSED = 12  # methods that are listed with the wish that they miss


def results_of(ledger: Path | None) -> Results:
    """The results of a ledger, or those that ship with the package.

    Only methods with default settings count, and only tables that depart in nothing from their protocol.

    Raises:
        LedgerError: there is no ledger at that path.
    """
    if ledger is None:
        return stored_results()
    tables = []
    for board in boards(open_ledger(ledger)):
        plain = [row for row in board.rows if [one.name for one in row.methods] == [row.label]]
        scores = {
            row.label: {
                task.name: cell[0] for index, task in enumerate(board.tasks) if (cell := row.cell(index)) is not None
            }
            for row in plain
        }
        if scores and not board.departures:
            tables.append(
                ScoreTable(
                    protocol=board.protocol,
                    higher_is_better=board.measure.higher_is_better,
                    tasks={task.name: task.group for task in board.tasks},
                    scores=scores,
                )
            )
    return Results(source=str(ledger), tables=tuple(tables))


def as_data(answer: Answer) -> list[dict[str, Any]]:
    """The methods that fit, as properties and standings."""
    return [
        {**asdict(fit.properties), "standings": {one.name: asdict(one) for one in fit.standings}} for fit in answer.fits
    ]


def print_answer(query: Query, answer: Answer, of: int, source: str) -> None:
    """The methods that fit as a table, how the query was read, and what could not be decided."""
    out = show.console()
    names = query.on
    columns = ("method", "family", "parameters", "share", "memory", "merges", "gradients", *names)
    rows = [
        (
            one.name,
            one.family,
            f"{one.parameters:,}",
            f"{100 * one.share:.2f} %",
            f"{one.memory:.2f}",
            "yes" if one.mergeable else "no",
            one.reach,
            *(str(standing) for standing in fit.standings),
        )
        for fit in answer.fits
        for one in [fit.properties]
    ]
    if rows:
        out.print(show.table(columns, rows))
    out.print(Text(f"\n{len(rows)} of {of} methods. Properties hold for default settings."))
    filters = [wish.filter for wish in query.wishes if wish.filter is not None]
    if filters:
        out.print(Text(f'Read as --where "{" and ".join(filters)}".'))
    if names:
        out.print(Text(f"Good on {', '.join(names)}: in the upper third of the methods of its table; {source}."))
    if answer.unmeasured:
        out.print(Text(f"These fit otherwise and were not measured there: {', '.join(answer.unmeasured)}."))
    if answer.missing:
        missed = list(answer.missing.items())
        more = f", and {len(missed) - _MISSED} more" if len(missed) > _MISSED else ""
        listed = ", ".join(f"{name} ({wish})" for name, wish in missed[:_MISSED])
        out.print(Text(f"None fits all. These miss one wish: {listed}{more}."))


def near(one: Properties) -> list[Neighbour]:
    """The methods near one, among those whose properties are stored."""
    return neighbours(one, stored_properties())


def lineage(name: str) -> dict[str, list[str]]:
    """What a method builds on and what builds on it."""
    return {
        "builds_on": [one.method for one in facts_of(name).builds_on],
        "built_on_it": built_on(name, all_methods()),
    }
