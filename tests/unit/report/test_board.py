"""Boards: what may stand beside what, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest

from vpeft.bench.key import digest
from vpeft.bench.ppt import ppt
from vpeft.bench.record import RecordedScores, RunRecord, State
from vpeft.report.board import boards

from .ledgers import TASKS, a_failure, a_run, grid


def test_rows_are_ordered_by_their_mean_and_totals_are_right() -> None:
    (board,) = boards(grid({"linear_probe": -0.1, "lora": 0.1, "ssf": 0.05}))
    assert [row.label for row in board.rows] == ["lora", "ssf", "linear_probe"]
    assert [task.name for task in board.tasks] == ["flags", "photos", "count"]
    assert board.groups == {"natural": (0, 1), "structured": (2,)}
    assert board.seeds == (0, 1, 2)
    assert board.notes == []
    best = board.rows[0]
    assert best is board.best
    # 0.6 for the first task, 0.05 more for each next, 0.01 more for each seed.
    assert best.mean == pytest.approx(0.6 + 0.05 + 0.01)
    assert best.std == pytest.approx(0.01)
    assert best.group_means == pytest.approx({"natural": 0.6 + 0.025 + 0.01, "structured": 0.7 + 0.01})
    assert best.ppt == pytest.approx(ppt(0.66, 60_000))
    assert best.cell(0) == pytest.approx((0.61, 0.01))
    assert (best.rank, board.rows[2].rank) == (1.0, 3.0)
    assert board.rows[1].behind == pytest.approx(-0.05)
    interval = board.rows[1].interval
    assert interval is not None
    # The difference is the same in every cell, so no resampling moves it.
    assert (interval.low, interval.high) == pytest.approx((-0.05, -0.05))
    assert [row.tie for row in board.rows] == [1, 2, 3]


def test_costs_are_medians_over_the_runs() -> None:
    (board,) = boards(grid({"lora": 0.1}))
    costs = board.rows[0].costs
    assert costs.step_seconds == pytest.approx(0.06)
    assert costs.wall_seconds == pytest.approx(21.0)
    assert costs.trainable == 60_000
    assert isinstance(costs.trainable, int)
    assert costs.reach == "full"
    assert costs.peak_memory_bytes is None, "what was not measured stays unknown"


def test_no_total_while_a_run_is_missing() -> None:
    records = [
        record
        for record in grid({"lora": 0.1, "ssf": 0.2})
        if (record.label, record.task, record.identity.seed) != ("ssf", "pocket/count", 1)
    ]
    records.append(a_failure("ssf", "count", 1))
    (board,) = boards(records)
    lora, ssf = board.rows
    assert (ssf.label, ssf.mean, ssf.ppt, ssf.rank) == ("ssf", None, None, None)
    assert ssf.holes == ("count seed 1",)
    assert ssf.cell(2) is not None, "what is there is shown"
    assert board.best is lora, "an incomplete row is not the best, however good its runs are"
    assert "ssf (1)" in board.notes[0]
    assert [record.state for record in ssf.failures] == [State.failed]


def test_a_seed_that_only_one_method_has_is_a_hole_of_the_others() -> None:
    (board,) = boards([*grid({"lora": 0.1}, seeds=3), *grid({"ssf": 0.2}, seeds=2)])
    assert [row.complete for row in board.rows] == [True, False]
    assert len(board.rows[1].holes) == len(TASKS)


def test_planned_runs_are_holes() -> None:
    (board,) = boards([a_run("lora", "flags", 0, 0.5), a_run("lora", "flags", 1, None)])
    assert board.rows[0].holes == ("flags seed 1",)


@pytest.mark.parametrize(
    "change",
    [
        {"identity": {"weights": "cd" * 32}},
        {"identity": {"backbone": "pocket_swin"}},
        {"identity": {"protocol": "pocket@2"}},
        {"identity": {"numerics": {"device": "cuda"}}},
        {"departures": {"epochs": 3}},
        {"suite": "digits"},
    ],
    ids=str,
)
def test_what_may_not_be_compared_is_on_boards_of_its_own(change: dict[str, object]) -> None:
    assert len(boards([a_run("lora"), a_run("ssf")])) == 1
    assert len(boards([a_run("lora"), a_run("ssf", **change)])) == 2  # type: ignore[arg-type]


def test_departures_and_too_few_seeds_are_said() -> None:
    (board,) = boards([a_run("lora", departures={"epochs": 3})])
    assert "Departs from pocket@1: epochs = 3" in board.notes[0]
    assert "1 of the 2 seeds that pocket@1 demands" in board.notes[1]


def test_changed_data_is_another_column() -> None:
    (board,) = boards([a_run("lora"), a_run("ssf", identity={"data": digest("flags, changed")})])
    assert [task.name for task in board.tasks] == ["flags", "flags"]
    assert not any(row.complete for row in board.rows)


def test_search_runs_are_not_results() -> None:
    record = a_run(
        "lora",
        identity={"purpose": "search"},
        scores=RecordedScores(split="val", values={"top1": 0.99}, leading="top1"),
    )
    assert boards([record]) == []


def test_one_label_with_two_sets_of_fields_becomes_two_rows() -> None:
    other = a_run("lora", identity={"methods": ({"name": "lora", "fields": {"rank": 16}},)}, value=0.9)
    (board,) = boards([a_run("lora"), other])
    assert len({row.label for row in board.rows}) == 2
    assert all(row.label.startswith("lora [") for row in board.rows)


def test_three_seeds_of_one_task_give_a_difference_but_no_interval() -> None:
    (board,) = boards(
        [
            a_run(label, "flags", seed, 0.5 + gain + 0.01 * seed)
            for label, gain in (("lora", 0.1), ("ssf", 0.0))
            for seed in range(3)
        ]
    )
    assert board.rows[1].behind == pytest.approx(-0.1)
    assert board.rows[1].interval is None
    assert board.rows[1].tie is None


def test_one_seed_has_no_deviation() -> None:
    (board,) = boards([a_run("lora")])
    std = board.rows[0].std
    assert std is not None
    assert np.isnan(std)


def test_the_inflation_of_selecting_on_the_test_set() -> None:
    scores = RecordedScores(split="test", values={"top1": 0.5}, leading="top1", legacy_best_on_test=0.53)
    (board,) = boards([a_run("lora", scores=scores), a_run("ssf")])
    found = {row.label: row.inflation for row in board.rows}
    assert found["lora"] == pytest.approx(0.03)
    assert found["ssf"] is None


def erring(label: str, value: float | None, task: str = "flags", seed: int = 0) -> RunRecord:
    """A run whose leading metric is an error."""
    if value is None:
        return a_run(label, task, seed, None)
    scores = RecordedScores(
        split="test", values={"mae": value, "r2": 0.5}, leading="mae", higher_is_better=False, count=9
    )
    return a_run(label, task, seed, scores=scores)


def test_of_an_error_the_lowest_is_best() -> None:
    records = [
        erring(label, value + 0.1 * index + 0.01 * seed, task, seed)
        for label, value in (("lora", 2.0), ("ssf", 1.0), ("bitfit", 3.0))
        for index, task in enumerate(TASKS)
        for seed in range(3)
    ]
    (board,) = boards(records)
    assert (board.measure.title, board.measure.share) == ("mae", False)
    assert [row.label for row in board.rows] == ["ssf", "lora", "bitfit"]
    assert [row.rank for row in board.rows] == [1.0, 2.0, 3.0]
    assert [row.tie for row in board.rows] == [1, 2, 3]
    assert [row.behind for row in board.rows] == [None, pytest.approx(1.0), pytest.approx(2.0)]
    assert {row.ppt for row in board.rows} == {None}, "PPT is made of shares"
    assert board.measure.number(board.rows[0].mean) == "1.11"


def test_metrics_are_never_averaged_with_each_other() -> None:
    records = [a_run("lora", "flags"), erring("lora", 1.5, "count"), erring("ssf", None, "count", 1)]
    found = {board.measure.name: board for board in boards(records)}
    assert set(found) == {"top1", "mae"}
    assert [task.name for task in found["top1"].tasks] == ["flags"]
    # The run without scores stands with the others of its task.
    assert [row.label for row in found["mae"].rows] == ["lora", "ssf"]
    assert found["mae"].best is None


def test_the_inflation_of_an_error_is_how_much_lower_the_best_epoch_was() -> None:
    scores = RecordedScores(
        split="test", values={"mae": 2.0}, leading="mae", higher_is_better=False, legacy_best_on_test=1.5
    )
    (board,) = boards([a_run("lora", scores=scores)])
    assert board.rows[0].inflation == pytest.approx(0.5)
