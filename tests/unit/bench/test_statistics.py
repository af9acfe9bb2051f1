"""Statistics against known answers, and against simulation where an interval is promised."""

import numpy as np
import pytest
from scipy import stats

from vpeft.bench.statistics import (
    MissingCells,
    mean_and_std,
    mean_ranks,
    missing,
    paired_bootstrap,
    rank_correlation,
    std_of_total,
    tie_groups,
    total,
    total_interval,
)

TASKS = ["a", "b"]


def test_mean_and_sample_deviation() -> None:
    assert mean_and_std([1.0, 2.0, 3.0]) == (2.0, 1.0)
    mean, std = mean_and_std([5.0])
    assert mean == 5.0
    assert np.isnan(std)
    with pytest.raises(ValueError, match="nothing"):
        mean_and_std([])


def test_a_total_weighs_tasks_alike_and_its_deviation_is_over_seeds() -> None:
    scores = np.array([[0.5, 0.7], [0.9, 0.9]])
    assert total(scores, TASKS) == pytest.approx(0.75)
    assert std_of_total(scores) == pytest.approx(np.std([0.7, 0.8], ddof=1))


def test_a_total_is_refused_while_cells_are_missing() -> None:
    scores = np.array([[0.5, np.nan], [0.9, 0.9]])
    assert missing(scores, TASKS) == ["a seed 1"]
    with pytest.raises(MissingCells, match=r"lora: 1 of 4 runs are missing \(a seed 1\)"):
        total(scores, TASKS, "lora")
    with pytest.raises(MissingCells):
        paired_bootstrap(scores, scores)
    with pytest.raises(MissingCells):
        mean_ranks({"x": scores})
    with pytest.raises(MissingCells):
        total_interval(scores)


def test_pairing_removes_what_the_tasks_have_in_common() -> None:
    generator = np.random.default_rng(0)
    difficulty = generator.uniform(0.2, 0.9, (9, 1))
    theirs = difficulty + generator.normal(0, 0.005, (9, 3))
    ours = difficulty + 0.02 + generator.normal(0, 0.005, (9, 3))
    interval = paired_bootstrap(ours, theirs)
    assert interval.low < interval.value < interval.high
    assert interval.value == pytest.approx((ours - theirs).mean())
    # The tasks differ by 70 points, the methods by two, and the interval is still narrow.
    assert interval.excludes(0.0)
    assert interval.high - interval.low < 0.02
    assert paired_bootstrap(ours, theirs) == interval


def test_the_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    generator = np.random.default_rng(1)
    covered = 0
    for _ in range(200):
        effect = 0.05 + generator.normal(0, 0.03, (20, 1)) + generator.normal(0, 0.01, (20, 3))
        covered += not paired_bootstrap(effect, np.zeros((20, 3)), draws=400).excludes(0.05)
    # A percentile bootstrap of 20 tasks is a little narrow: 95 % nominal, 0.91 to 0.95 in the literature and here.
    assert 0.87 <= covered / 200 <= 0.99


def test_unlike_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match="one shape"):
        paired_bootstrap(np.zeros((2, 3)), np.zeros((3, 3)))


def test_mean_ranks_share_ties() -> None:
    scores = {
        "x": np.array([[0.9], [0.5]]),
        "y": np.array([[0.8], [0.5]]),
        "z": np.array([[0.7], [0.9]]),
    }
    assert mean_ranks(scores) == {"x": (1 + 2.5) / 2, "y": (2 + 2.5) / 2, "z": (3 + 1) / 2}


def test_tie_groups_start_anew_where_the_leader_is_clearly_better() -> None:
    generator = np.random.default_rng(2)
    base = generator.uniform(0.4, 0.8, (9, 1))

    def method(gain: float) -> np.ndarray:
        return base + gain + generator.normal(0, 0.01, (9, 3))

    groups = tie_groups({"weak": method(0.0), "best": method(0.1), "also": method(0.099)})
    assert groups == {"best": 1, "also": 1, "weak": 2} or groups == {"also": 1, "best": 1, "weak": 2}


def test_rank_correlation_is_over_what_is_in_common() -> None:
    ours = {"a": 1.0, "b": 2.0, "c": 3.0, "d": 5.0, "only here": 9.0}
    theirs = {"a": 10.0, "b": 30.0, "c": 20.0, "d": 40.0, "only there": 0.0}
    found = rank_correlation(ours, theirs)
    assert found.count == 4
    assert found.spearman.value == pytest.approx(stats.spearmanr([1, 2, 3, 5], [10, 30, 20, 40]).statistic)
    assert found.kendall.value == pytest.approx(stats.kendalltau([1, 2, 3, 5], [10, 30, 20, 40]).statistic)
    assert found.spearman.low < found.spearman.value <= found.spearman.high <= 1.0


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [({"a": 1.0, "b": 2.0}, {"a": 1.0, "b": 2.0}), ({"a": 1.0, "b": 1.0, "c": 1.0}, {"a": 1.0, "b": 2.0, "c": 3.0})],
    ids=["too few", "constant"],
)
def test_a_correlation_that_means_nothing_is_refused(ours: dict[str, float], theirs: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="rank correlation needs"):
        rank_correlation(ours, theirs)
