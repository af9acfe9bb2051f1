"""benchmarks/inflation.py: differences of known scores, and one small table that is really made."""

from __future__ import annotations

import json
import runpy
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from vpeft.bench.ledger import Ledger
from vpeft.bench.record import Chosen, RecordedScores, RunRecord, State

from .test_key import IDENTITY

SCRIPT = Path(__file__).resolve().parents[3] / "benchmarks" / "inflation.py"


@pytest.fixture(scope="module")
def script() -> dict[str, Any]:
    return runpy.run_path(str(SCRIPT))


def final(protocol: str, label: str, task: str, seed: int, lr: float, last: float, best: float) -> RunRecord:
    method = IDENTITY.methods[0].model_copy(update={"name": label, "fields": {}})
    changed = {"protocol": protocol, "task": f"pocket/{task}", "seed": seed, "methods": (method,)}
    identity = IDENTITY.model_copy(update=changed)
    return RunRecord(
        key=identity.key(),
        identity=identity,
        suite="pocket",
        label=label,
        state=State.done,
        chosen=Chosen(lr=lr, weight_decay=1e-4, rule="r"),
        scores=RecordedScores(split="test", values={"top1": last}, leading="top1", legacy_best_on_test=best),
    )


def records() -> Iterator[RunRecord]:
    for seed in range(2):
        # On "count" validation chose the middle of the grid, so that run stands for both.
        yield final("pocket@1", "lora", "count", seed, 4e-3, 0.60, 0.62)
        yield final("pocket@1", "lora", "glyphs", seed, 1e-3, 0.80, 0.81)
        yield final("pocket-one-rate@1", "lora", "glyphs", seed, 4e-3, 0.76, 0.78)
        yield final("pocket@1", "full_finetuning", "count", seed, 1e-4, 0.50, 0.56)
        yield final("pocket@1", "full_finetuning", "glyphs", seed, 4e-4, 0.90, 0.90)
        if seed:
            yield final("pocket-one-rate@1", "full_finetuning", "count", seed, 4e-4, 0.40, 0.40)


def test_differences_are_those_of_the_records(script: dict[str, Any]) -> None:
    methods, tasks = ["lora", "full_finetuning"], ["count", "glyphs"]
    ledger: Any = list(records())
    assert script["chosen_elsewhere"](ledger, methods, tasks) == {"lora": ["glyphs"], "full_finetuning": ["count"]}
    (row,) = script["rows_of"](ledger, methods, tasks, 2)
    assert row["method"] == "lora", "a run of the other method is missing"
    assert row["honest"] == pytest.approx(0.70)
    assert row["best_on_test"]["value"] == pytest.approx(1.5)
    assert row["one_rate"]["value"] == pytest.approx(-2.0)
    assert row["published"]["value"] == pytest.approx(0.0)
    # Tasks are drawn with replacement: two times the one or two times the other are the ends.
    assert (row["best_on_test"]["low"], row["best_on_test"]["high"]) == pytest.approx((1.0, 2.0))
    text = script["table"]([row], 2, 2)
    assert "| lora | 70.0, 1 | +1.5 (+1.0 to +2.0), 1 | -2.0 (-4.0 to +0.0), 1 |" in text
    assert "run the same command again" in script["table"]([], 2, 2)


@pytest.mark.slow
def test_a_small_table_is_made_and_resumed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--methods", "linear_probe", "--tasks", "orientation", "--seeds", "1", "--epochs", "1"]
    monkeypatch.setattr(sys, "argv", ["inflation.py", "--out", str(tmp_path), *words])
    for _ in range(2):
        runpy.run_path(str(SCRIPT), run_name="__main__")
        assert "core-hours" in capsys.readouterr().out
        (row,) = json.loads((tmp_path / "inflation.json").read_text())
        assert row["best_on_test"]["value"] == 0, "the only epoch is the best and the last"
    made = {record.identity.purpose: record.attempts for record in Ledger(tmp_path)}
    assert made == {"search": 1, "final": 1}
