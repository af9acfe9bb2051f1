"""Questions to a ledger in SQL: its records as tables in memory, which a query can read and nothing else.

| table | one row for each | columns |
|---|---|---|
| runs | run | all single values: what it was, its leading score, its costs, where it was made |
| scores | run and metric | key, split, metric, value |
| methods | run, method and field | key, place, method, field, value (JSON) |
| settings | run and setting of the optimisation | key, setting, value (JSON) |
| epochs | run, epoch and measure | key, epoch, measure, value |
| searched | final run and search run behind it | key, search_key |

duckdb answers. The tables are built first; then files, the network and extensions are switched off and the settings are
locked, and only a statement that reads is carried out.
"""

from __future__ import annotations

import json
import tempfile
import threading
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vpeft.bench.record import Costs, RunRecord
from vpeft.errors import VpeftError, need_extra
from vpeft.method_spec import text_of

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

# So that a mistake in a join ends: a query on some thousand records takes milliseconds.
SECONDS = 60.0
ROWS = 100_000
MEMORY = "1GB"

_TEXT, _NUMBER, _COUNT, _FLAG = "VARCHAR", "DOUBLE", "BIGINT", "BOOLEAN"
_COSTS = {
    name: _TEXT if "str" in str(field.annotation) else _COUNT if "int" in str(field.annotation) else _NUMBER
    for name, field in Costs.model_fields.items()
}
TABLES: Mapping[str, Mapping[str, str]] = {
    "runs": {
        "key": _TEXT,
        "purpose": _TEXT,
        "suite": _TEXT,
        "task": _TEXT,
        "task_group": _TEXT,
        "label": _TEXT,
        "method": _TEXT,
        "seed": _COUNT,
        "state": _TEXT,
        "protocol": _TEXT,
        "departures": _TEXT,
        "backbone": _TEXT,
        "weights": _TEXT,
        "data": _TEXT,
        "device": _TEXT,
        "precision": _TEXT,
        "lr": _NUMBER,
        "weight_decay": _NUMBER,
        "validation": _NUMBER,
        "split": _TEXT,
        "metric": _TEXT,
        "score": _NUMBER,
        "higher_is_better": _FLAG,
        "samples": _COUNT,
        "legacy_best_on_test": _NUMBER,
        **_COSTS,
        "attempts": _COUNT,
        "started": _TEXT,
        "finished": _TEXT,
        "error": _TEXT,
        "hardware": _TEXT,
        "system": _TEXT,
        "threads": _COUNT,
    },
    "scores": {"key": _TEXT, "split": _TEXT, "metric": _TEXT, "value": _NUMBER},
    "methods": {"key": _TEXT, "place": _COUNT, "method": _TEXT, "field": _TEXT, "value": _TEXT},
    "settings": {"key": _TEXT, "setting": _TEXT, "value": _TEXT},
    "epochs": {"key": _TEXT, "epoch": _COUNT, "measure": _TEXT, "value": _NUMBER},
    "searched": {"key": _TEXT, "search_key": _TEXT},
}


class BadQuery(VpeftError):
    """A query that cannot be answered, or that would do more than read."""


@dataclass(frozen=True)
class Answer:
    """The rows of an answer under their columns."""

    columns: tuple[str, ...]
    rows: tuple[tuple[Any, ...], ...]


def query(records: Iterable[RunRecord], sql: str, *, seconds: float = SECONDS, rows: int = ROWS) -> Answer:
    """Answer one SQL statement from records.

    Args:
        records: of a ledger.
        sql: a statement that reads: SELECT, WITH, FROM, SHOW, DESCRIBE, SUMMARIZE or EXPLAIN.
        seconds: after which the query is ended.
        rows: the most that an answer may have.

    Raises:
        BadQuery: it is no SQL, names what does not exist, would change or open something, or takes or gives too much.
        MissingExtra: duckdb is not installed.
    """
    duckdb = need_extra("duckdb", "bench")
    connection = duckdb.connect(":memory:", config={"threads": "1"})
    try:
        try:
            statements = connection.extract_statements(sql)
        except duckdb.Error as error:
            raise BadQuery(f"This is no SQL that can be read: {_first(error)}\n{_TABLES}") from None
        if len(statements) != 1:
            raise BadQuery(f"A query is one statement, and here are {len(statements)}.\n{_TABLES}")
        kind = statements[0].type
        if kind not in (duckdb.StatementType.SELECT, duckdb.StatementType.EXPLAIN):
            raise BadQuery(f"A ledger is only read: {kind.name} is not carried out. Use SELECT.")
        _fill(connection, records)
        _close(connection)
        ender = threading.Timer(seconds, connection.interrupt)
        ender.start()
        try:
            connection.execute(statements[0])
            columns = tuple(name for name, *_ in connection.description or ())
            found = connection.fetchmany(rows + 1)
        except duckdb.InterruptException:
            raise BadQuery(f"The query was ended after {seconds:g} seconds. Ask for less, or join on `key`.") from None
        except duckdb.Error as error:
            raise BadQuery(f"{_first(error)}\n{_TABLES}") from None
        finally:
            ender.cancel()
        if len(found) > rows:
            raise BadQuery(f"The answer has more than {rows:,} rows. Add a LIMIT, or group it.")
        return Answer(columns, tuple(map(tuple, found)))
    finally:
        connection.close()


def _first(error: Exception) -> str:
    """The sentence of an error without the picture of the place below it, and what it proposes."""
    return str(error).partition("\n\nLINE")[0].strip()


_TABLES = "The tables: " + "; ".join(f"{table}({', '.join(columns)})" for table, columns in TABLES.items()) + "."


def _fill(connection: DuckDBPyConnection, records: Iterable[RunRecord]) -> None:
    """Write the records as JSON lines into a folder of their own, and read them into the tables."""
    with tempfile.TemporaryDirectory(prefix="vpeft-query-") as folder:
        paths = {table: Path(folder) / f"{table}.jsonl" for table in TABLES}
        files = {table: path.open("w", encoding="utf-8") for table, path in paths.items()}
        try:
            for record in records:
                for table, row in _rows(record):
                    json.dump(row, files[table])
                    files[table].write("\n")
        finally:
            for file in files.values():
                file.close()
        for table, columns in TABLES.items():
            typed = ", ".join(f"{name}: '{kind}'" for name, kind in columns.items())
            read = f"read_json(?, format = 'newline_delimited', columns = {{{typed}}})"
            connection.execute(f"CREATE TABLE {table} AS SELECT * FROM {read}", [str(paths[table])])


def _close(connection: DuckDBPyConnection) -> None:
    """Switch off what reaches beyond the tables, and lock the settings."""
    for setting in (
        f"memory_limit = '{MEMORY}'",
        "temp_directory = ''",
        "python_enable_replacements = false",
        "autoinstall_known_extensions = false",
        "autoload_known_extensions = false",
        "enable_external_access = false",
        "lock_configuration = true",
    ):
        connection.execute(f"SET {setting}")


def _rows(record: RunRecord) -> Iterator[tuple[str, dict[str, Any]]]:
    """The rows of a record, each with its table."""
    identity, scores, chosen, made = record.identity, record.scores, record.chosen, record.provenance
    yield (
        "runs",
        {
            "key": record.key,
            "purpose": identity.purpose,
            "suite": record.suite,
            "task": record.task.split("/", 1)[-1],
            "task_group": record.group,
            "label": record.label,
            "method": text_of(identity.methods),
            "seed": identity.seed,
            "state": record.state.value,
            "protocol": identity.protocol,
            "departures": json.dumps(record.departures),
            "backbone": identity.backbone,
            "weights": identity.weights,
            "data": identity.data,
            "device": identity.numerics.device,
            "precision": identity.numerics.precision,
            **({} if chosen is None else chosen.model_dump(include={"lr", "weight_decay", "validation"})),
            **({} if scores is None else {"metric": scores.leading, "score": scores.value, "samples": scores.count}),
            **(
                {}
                if scores is None
                else scores.model_dump(include={"split", "higher_is_better", "legacy_best_on_test"})
            ),
            **({} if record.costs is None else record.costs.model_dump()),
            "attempts": record.attempts,
            "started": record.started,
            "finished": record.finished,
            "error": None if record.error is None else f"{record.error.kind}: {record.error.message}",
            **({} if made is None else {"hardware": made.hardware, "system": made.system, "threads": made.threads}),
        },
    )
    if scores is not None:
        for metric, value in scores.values.items():
            yield "scores", {"key": record.key, "split": scores.split, "metric": metric, "value": value}
    for place, method in enumerate(identity.methods):
        for field, content in method.fields.items():
            told = {"method": method.name, "field": field, "value": json.dumps(content)}
            yield "methods", {"key": record.key, "place": place, **told}
    for setting, content in identity.optimisation.items():
        yield "settings", {"key": record.key, "setting": setting, "value": json.dumps(content)}
    for epoch in record.history:
        for measure, value in epoch.items():
            if measure != "epoch":
                number = int(epoch.get("epoch", 0))
                yield "epochs", {"key": record.key, "epoch": number, "measure": measure, "value": value}
    for key in () if chosen is None else chosen.searched:
        yield "searched", {"key": record.key, "search_key": key}
