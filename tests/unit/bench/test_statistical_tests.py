"""Tests of methods over tasks, and fronts: against published examples and libraries."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from scipy import stats

from vpeft.bench.statistics import (
    MissingCells,
    bayesian_signed_rank,
    cliques,
    critical_difference,
    friedman,
    holm,
    pareto_front,
    studentised_range,
    wilcoxon_holm,
)

# Demšar (JMLR 7, 2006), table 6: AUC of C4.5 and three variants on 14 data sets. On the last but one the paper prints
# two equal values with the ranks 2 and 3: they differ in a digit that it does not print.
DEMSAR = np.array(
    [
        [0.763, 0.768, 0.771, 0.798],
        [0.599, 0.591, 0.590, 0.569],
        [0.954, 0.971, 0.968, 0.967],
        [0.628, 0.661, 0.654, 0.657],
        [0.882, 0.888, 0.886, 0.898],
        [0.936, 0.931, 0.916, 0.931],
        [0.661, 0.668, 0.609, 0.685],
        [0.583, 0.583, 0.563, 0.625],
        [0.775, 0.838, 0.866, 0.875],
        [1.000, 1.000, 1.000, 1.000],
        [0.940, 0.962, 0.965, 0.962],
        [0.619, 0.666, 0.614, 0.669],
        [0.972, 0.981, 0.97501, 0.975],
        [0.957, 0.978, 0.946, 0.970],
    ]
)
VARIANTS = ("C4.5", "C4.5+m", "C4.5+cf", "C4.5+m+cf")
EXAMPLE = {name: DEMSAR[:, [index]] for index, name in enumerate(VARIANTS)}


def test_mean_ranks_and_friedman_are_those_of_the_worked_example() -> None:
    found = friedman(EXAMPLE)
    assert [round(found.ranks[name], 3) for name in VARIANTS] == [3.143, 2.000, 2.893, 1.964]
    # The paper's statistic has no correction for ties, which divides it by a known factor.
    tasks, methods = DEMSAR.shape
    plain = 12 * tasks / (methods * (methods + 1)) * (sum(rank**2 for rank in found.ranks.values()) - methods * 25 / 4)
    assert plain == pytest.approx(9.28, abs=0.01)
    ties = sum(count**3 - count for row in DEMSAR for count in np.unique(row, return_counts=True)[1])
    assert found.chi_square == pytest.approx(plain / (1 - ties / (tasks * methods * (methods**2 - 1))))
    assert found.f == pytest.approx((tasks - 1) * found.chi_square / (tasks * 3 - found.chi_square))
    assert found.p == pytest.approx(stats.f.sf(found.f, 3, 39))
    assert found.p_chi_square == pytest.approx(stats.chi2.sf(found.chi_square, 3))


def test_friedman_without_ties_is_the_textbook_formula() -> None:
    generator = np.random.default_rng(0)
    table = generator.normal(size=(11, 5)) + 0.5 * np.arange(5)
    found = friedman({str(index): table[:, [index]] for index in range(5)})
    ranks = np.array([stats.rankdata(-row) for row in table]).mean(axis=0)
    assert list(found.ranks.values()) == pytest.approx(ranks.tolist())
    assert found.chi_square == pytest.approx(12 * 11 / 30 * ((ranks**2).sum() - 5 * 36 / 4))
    lower = friedman({str(index): -table[:, [index]] for index in range(5)}, higher_is_better=False)
    assert (lower.ranks, lower.chi_square) == (found.ranks, pytest.approx(found.chi_square))


def test_extremes_of_friedman_give_probabilities() -> None:
    alike = np.full((6, 2), 0.5)
    assert friedman({"a": alike, "b": alike, "c": alike}).p == 1.0
    always = friedman({"a": alike + 0.2, "b": alike + 0.1, "c": alike})
    assert math.isinf(always.f) and 0.0 < always.p == always.p_chi_square < 0.05


# Demšar (2006), table 5a: critical values of the two-tailed Nemenyi test, for 2 to 10 methods.
@pytest.mark.parametrize(
    ("alpha", "printed"),
    [
        (0.05, (1.960, 2.343, 2.569, 2.728, 2.850, 2.949, 3.031, 3.102, 3.164)),
        (0.10, (1.645, 2.052, 2.291, 2.459, 2.589, 2.693, 2.780, 2.855, 2.920)),
    ],
)
def test_critical_values_are_the_printed_ones(alpha: float, printed: tuple[float, ...]) -> None:
    found = [studentised_range(methods, alpha) for methods in range(2, 11)]
    assert found == pytest.approx(printed, abs=0.001)


def test_the_critical_difference_is_that_of_the_worked_example() -> None:
    assert critical_difference(4, 14) == pytest.approx(1.25, abs=0.005)
    assert critical_difference(4, 14, alpha=0.10) == pytest.approx(1.12, abs=0.005)


def test_wilcoxon_of_pairs_is_scipys_and_corrected_by_holm() -> None:
    generator = np.random.default_rng(1)
    scores = {name: generator.normal(gain, 0.1, (12, 3)) for name, gain in (("a", 0.0), ("b", 0.05), ("c", 0.3))}
    found = wilcoxon_holm(scores)
    for left, right in itertools.combinations("abc", 2):
        expected = stats.wilcoxon(scores[left].mean(axis=1), scores[right].mean(axis=1)).pvalue
        assert found.p[left, right] == pytest.approx(expected)
    first, second, third = sorted(found.p.values())
    assert sorted(found.corrected.values()) == pytest.approx(
        [3 * first, max(3 * first, 2 * second), max(3 * first, 2 * second, third)]
    )
    assert found.differ("c", "a") and found.differ("a", "c")
    assert set(wilcoxon_holm(scores, against="b").p) == {("a", "b"), ("b", "c")}
    with pytest.raises(ValueError, match="none of the methods"):
        wilcoxon_holm(scores, against="d")


def test_holm_on_a_worked_example() -> None:
    # Holm's steps by hand: 4 x 0.005, 3 x 0.01, 2 x 0.03, 1 x 0.04 raised to the one before.
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []


def test_a_design_that_cannot_reject_says_so() -> None:
    generator = np.random.default_rng(2)
    nine = {str(index): generator.normal(index, 0.01, (9, 1)) for index in range(14)}
    found = wilcoxon_holm(nine)
    # Every pair differs on all nine tasks, and 91 x 2 / 2^9 is still above 0.05.
    assert min(found.corrected.values()) == pytest.approx(91 * 2 / 2**9)
    assert found.smallest == pytest.approx(91 * 2 / 2**9)
    assert not found.can_reject()
    assert wilcoxon_holm({name: nine[name] for name in "012"}).can_reject()


def test_equal_methods_are_not_told_apart() -> None:
    same = np.random.default_rng(3).normal(size=(9, 3))
    assert wilcoxon_holm({"a": same, "b": same.copy()}).corrected["a", "b"] == 1.0


def test_cliques_are_the_bars_of_a_diagram() -> None:
    ranks = dict(zip("abcde", (1.0, 1.5, 2.4, 3.0, 5.0), strict=True))
    bars = cliques("abcde", lambda one, other: abs(ranks[one] - ranks[other]) > 1.5)
    assert bars == [("a", "b", "c"), ("b", "c", "d")]
    assert cliques("abcde", lambda one, other: True) == []
    assert cliques("abcde", lambda one, other: False) == [tuple("abcde")]
    # Neighbours on either side of one that differs from both are no group.
    assert cliques("abc", lambda one, other: "b" in (one, other)) == []


# Probabilities of baycomp 1.0.3 (SignedRankTest, 200,000 draws): left, within the region, right.
LEFT = [0.534, 0.595, 0.821, 0.733, 0.538, 0.673, 0.692, 0.564, 0.794, 0.545, 0.656, 0.707]
RIGHT = [0.532, 0.586, 0.804, 0.729, 0.552, 0.672, 0.715, 0.564, 0.798, 0.58, 0.671, 0.701]


@pytest.mark.parametrize(
    ("rope", "expected"), [(0.01, (0.000135, 0.932255, 0.06761)), (0.0, (0.329925, 0.0, 0.670075))]
)
def test_the_bayesian_test_agrees_with_the_authors_library(rope: float, expected: tuple[float, ...]) -> None:
    left, right = np.array(LEFT)[:, None], np.array(RIGHT)[:, None]
    found = bayesian_signed_rank(left, right, rope=rope)
    assert (found.better, found.equivalent, found.worse) == pytest.approx(expected, abs=0.01)
    assert found.better + found.equivalent + found.worse == pytest.approx(1.0)
    turned = bayesian_signed_rank(right, left, rope=rope)
    assert (turned.worse, turned.better) == pytest.approx((found.better, found.worse), abs=0.01)


def test_the_bayesian_test_is_sure_where_it_should_be() -> None:
    generator = np.random.default_rng(4)
    base = generator.uniform(0.3, 0.9, (20, 3))
    assert bayesian_signed_rank(base + 0.05, base).better > 0.99
    assert bayesian_signed_rank(base + generator.normal(0, 0.002, (20, 3)), base).equivalent > 0.99
    with pytest.raises(MissingCells):
        bayesian_signed_rank(np.full((3, 1), np.nan), np.zeros((3, 1)))
    with pytest.raises(ValueError, match="0 or more"):
        bayesian_signed_rank(base, base, rope=-1.0)


def _noisy(gain: float, seed: int) -> np.ndarray:
    generator = np.random.default_rng(seed)
    return np.linspace(0.4, 0.8, 9)[:, None] + gain + generator.normal(0, 0.01, (9, 3))


def test_a_front_tells_sure_steps_from_noise() -> None:
    scores = {"probe": _noisy(0.0, 1), "small": _noisy(0.10, 2), "large": _noisy(0.101, 3), "worse": _noisy(0.05, 4)}
    means = {name: float(one.mean()) for name, one in scores.items()}
    costs = {"probe": 0.0, "small": 1e4, "worse": 2e4, "large": 1e5}
    front = pareto_front(scores, costs)
    assert list(front) == ["probe", "small", "worse", "large"]
    assert front["probe"].on_front and front["probe"].share == 1.0
    assert front["small"].step and front["small"].share == 1.0
    # The large one is within the noise of the small one: it may be on the front, and no line goes to it.
    assert front["large"].on_front == (means["large"] > means["small"])
    assert 0.0 < front["large"].share < 1.0
    assert not front["large"].step and not front["large"].beaten_by
    assert front["worse"].beaten_by == ("small",) and front["worse"].share == 0.0


def test_a_front_of_a_metric_where_lower_is_better_and_of_equal_costs() -> None:
    errors = {"a": 1 - _noisy(0.0, 1), "b": 1 - _noisy(0.2, 2), "c": 1 - _noisy(0.3, 3)}
    front = pareto_front(errors, {"a": 1.0, "b": 2.0, "c": 2.0}, higher_is_better=False)
    assert [name for name, place in front.items() if place.step] == ["a", "c"]
    assert front["b"].beaten_by == ("c",)
    same = _noisy(0.0, 1)
    tied = pareto_front({"x": same, "y": same.copy()}, {"x": 1.0, "y": 2.0})
    assert (tied["x"].on_front, tied["y"].on_front) == (True, False)


def test_fronts_refuse_what_is_missing() -> None:
    with pytest.raises(MissingCells):
        pareto_front({"a": np.array([[np.nan]])}, {"a": 1.0})
    with pytest.raises(ValueError, match="no cost is known of a"):
        pareto_front({"a": np.ones((2, 2))}, {})
    assert pareto_front({}, {}) == {}


@pytest.mark.parametrize("test", [friedman, wilcoxon_holm])
def test_tests_refuse_what_is_missing(test) -> None:  # type: ignore[no-untyped-def]
    holes = {name: np.array([[0.5], [np.nan]]) for name in "abc"}
    with pytest.raises(MissingCells, match="some runs are missing"):
        test(holes)
    with pytest.raises(ValueError, match="at least"):
        test({"a": np.ones((2, 1))})
