"""Questions in SQL: right answers, and nothing that reaches beyond the tables."""

from __future__ import annotations

import json
import socket
from pathlib import Path

import pytest
from tests.unit.report.ledgers import a_failure, grid, keep

from vpeft.bench.query import TABLES, BadQuery, query
from vpeft.cli import main
from vpeft.cli.failure import DONE, MISTAKE

RECORDS = [*grid({"lora": 0.1, "ssf": 0.05}), a_failure("lora", "flags", 9)]


def test_an_answer_is_what_the_records_hold() -> None:
    answer = query(
        RECORDS, "select label, avg(score) as mean from runs where state = 'done' group by label order by mean desc"
    )
    assert answer.columns == ("label", "mean")
    for label, mean in answer.rows:
        scores = [one.scores.value for one in RECORDS if one.scores is not None and one.label == label]
        assert mean == pytest.approx(sum(scores) / len(scores))
    assert [label for label, _ in answer.rows] == ["lora", "ssf"]


def test_tables_join_on_the_key_and_null_is_what_was_not_measured() -> None:
    (found,) = query(
        RECORDS,
        "select count(*), min(s.value = r.score) from runs r join scores s using (key) where s.metric = r.metric",
    ).rows
    assert found == (len(RECORDS) - 1, True)
    (row,) = query(RECORDS, "select score, trainable, error from runs where state = 'failed'").rows
    assert row[:2] == (None, None)
    assert row[2].startswith("NonFinite: The loss is NaN")
    assert query(RECORDS, "select distinct method, field, value from methods order by method").rows == (
        ("lora", "as", '"lora"'),
        ("ssf", "as", '"ssf"'),
    )
    assert query(RECORDS, "select distinct value from settings where setting = 'epochs'").rows == (("20",),)


def test_every_table_has_the_columns_that_it_names() -> None:
    for table, columns in TABLES.items():
        assert tuple(name for name, *_ in query(RECORDS, f"describe {table}").rows) == tuple(columns)
    assert query([], "select count(*) from runs").rows == ((0,),)


@pytest.mark.parametrize(
    "sql",
    [
        "delete from runs",
        "create table x as select 1",
        "insert into scores values ('a', 'b', 'c', 1)",
        "copy runs to '{folder}/out.csv'",
        "attach '{folder}/out.db'",
        "export database '{folder}/out'",
        "install httpfs",
        "load httpfs",
        "set threads = 4",
        "pragma database_list",
        "call pragma_version()",
    ],
)
def test_a_statement_that_does_more_than_read_is_refused(sql: str, tmp_path: Path) -> None:
    with pytest.raises(BadQuery, match="A ledger is only read"):
        query(RECORDS, sql.format(folder=tmp_path))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "sql",
    [
        "select * from read_csv('{file}')",
        "select * from read_text('{file}')",
        "select * from read_json('{file}')",
        "select * from '{file}'",
        "select * from glob('/etc/*')",
        "select * from query('select * from read_text(''{file}'')')",
        "select getenv('HOME')",
        "select * from records",
        "select * from RECORDS",
    ],
)
def test_a_query_reads_no_file_and_no_variable(sql: str, tmp_path: Path) -> None:
    secret = tmp_path / "secret.csv"
    secret.write_text("a,b\n1,2\n")
    with pytest.raises(BadQuery):
        query(RECORDS, sql.format(file=secret))


def test_a_query_opens_no_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        listening.settimeout(0.3)
        address = f"http://127.0.0.1:{listening.getsockname()[1]}/a.csv"
        with pytest.raises(BadQuery):
            query(RECORDS, f"select * from read_csv('{address}')")
        with pytest.raises(TimeoutError):
            listening.accept()


@pytest.mark.parametrize(
    ("sql", "said"),
    [
        ("choose 1", "no SQL that can be read"),
        ("select nope from runs", "nope"),
        ("select * from run", 'Did you mean "runs"'),
        ("select 1; select 2", "one statement, and here are 2"),
        ("", "one statement, and here are 0"),
    ],
)
def test_a_mistake_is_said_with_the_tables(sql: str, said: str) -> None:
    with pytest.raises(BadQuery) as error:
        query(RECORDS, sql)
    assert said in str(error.value)
    assert "runs(key, purpose, suite" in str(error.value)


def test_a_query_without_an_end_is_ended_and_a_flood_is_refused() -> None:
    with pytest.raises(BadQuery, match="ended after"):
        query(RECORDS, "select sum(sin(a.range + b.range)) from range(10000000) a, range(10000000) b", seconds=0.3)
    with pytest.raises(BadQuery, match="more than 5 rows"):
        query(RECORDS, "select * from runs", rows=5)


def test_the_command_prints_a_table_csv_and_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    keep(tmp_path / "ledger", RECORDS)
    ask = ["query", "select label, count(*) as runs from runs group by label order by label", "--ledger"]
    assert main([*ask, str(tmp_path / "ledger")]) == DONE
    assert capsys.readouterr().out.split() == ["label", "runs", "lora", "10", "ssf", "9", "2", "rows"]
    assert main([*ask, str(tmp_path / "ledger"), "--format", "csv"]) == DONE
    assert capsys.readouterr().out == "label,runs\nlora,10\nssf,9\n"
    assert main([*ask, str(tmp_path / "ledger"), "--json"]) == DONE
    assert json.loads(capsys.readouterr().out) == [{"label": "lora", "runs": 10}, {"label": "ssf", "runs": 9}]
    assert main(["query"]) == DONE
    assert "searched" in capsys.readouterr().out
    assert main([*ask, str(tmp_path / "nowhere")]) == MISTAKE
    assert "There is no ledger" in capsys.readouterr().err
    assert main(["query", "drop table runs", "--ledger", str(tmp_path / "ledger")]) == MISTAKE
    assert "only read" in capsys.readouterr().err
