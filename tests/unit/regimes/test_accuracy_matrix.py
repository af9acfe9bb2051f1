"""The metrics of a stream against sums by hand, and its pictures."""

from __future__ import annotations

from pathlib import Path

import pytest

from vpeft.regimes.accuracy_matrix import AccuracyMatrix
from vpeft.regimes.matrix_pictures import curves, heat_map

ROWS = ((0.9, None, None), (0.5, 0.8, None), (0.6, 0.7, 1.0))


def made(rows: tuple[tuple[float | None, ...], ...] = ROWS) -> AccuracyMatrix:
    matrix = AccuracyMatrix(counts=(10, 20, 30), chances=(0.5, 0.25, 0.1))
    for row in rows:
        matrix = matrix.with_row(row)
    return matrix


def test_by_hand() -> None:
    matrix = made()
    assert matrix.curve == pytest.approx([0.9, (5 + 16) / 30, (6 + 14 + 30) / 60])
    found = matrix.metrics()
    assert found["last"] == pytest.approx(50 / 60)
    assert found["average"] == pytest.approx((0.9 + 0.7 + 50 / 60) / 3)
    assert found["last_per_task"] == pytest.approx((0.6 + 0.7 + 1.0) / 3)
    assert found["average_per_task"] == pytest.approx((0.9 + 0.65 + 2.3 / 3) / 3)
    # task 0 was best at 0.9 before the last task, task 1 at 0.8
    assert found["forgetting"] == pytest.approx(((0.9 - 0.6) + (0.8 - 0.7)) / 2)
    assert found["backward_transfer"] == pytest.approx(((0.6 - 0.9) + (0.7 - 0.8)) / 2)
    assert found["forward_transfer"] is None


def test_forgetting_takes_the_best_and_not_the_first() -> None:
    matrix = made(((0.5, None, None), (0.9, 0.8, None), (0.6, 0.8, 0.1)))
    assert matrix.forgetting == pytest.approx((0.9 - 0.6) / 2)
    assert matrix.backward_transfer == pytest.approx((0.6 - 0.5) / 2)


def test_forward_transfer_where_later_tasks_have_outputs() -> None:
    matrix = made(((0.9, 0.4, 0.3), (0.9, 0.9, 0.5), (0.9, 0.9, 0.9)))
    assert matrix.forward_transfer == pytest.approx(((0.4 - 0.25) + (0.5 - 0.1)) / 2)


def test_one_task_has_nothing_to_forget() -> None:
    found = made(ROWS[:1]).metrics()
    assert found["last"] == found["average"] == 0.9
    assert found["forgetting"] is found["backward_transfer"] is found["forward_transfer"] is None


def test_pictures_have_the_numbers(tmp_path: Path) -> None:
    figure = heat_map(made(), "three tasks")
    texts = [text.get_text() for text in figure.axes[0].texts]
    assert texts == ["90", "50", "80", "60", "70", "100"]
    drawn = curves({"a": [[0.9, 0.5], [0.7, 0.5]], "b": [[0.2, 0.1]]})
    lines = {line.get_label(): list(line.get_ydata()) for line in drawn.axes[0].lines}
    assert lines["a"] == pytest.approx([80.0, 50.0]) and lines["b"] == pytest.approx([20.0, 10.0])
    (band,) = drawn.axes[0].collections  # of the two runs of a: 12.706 standard errors of 10 points
    edges = band.get_paths()[0].vertices[:, 1]
    assert max(edges) == pytest.approx(80 + 127.06, abs=0.1) and min(edges) == pytest.approx(80 - 127.06, abs=0.1)
    for name, one in (("m.png", figure), ("c.png", drawn)):
        one.savefig(tmp_path / name)
        assert (tmp_path / name).stat().st_size > 1000
