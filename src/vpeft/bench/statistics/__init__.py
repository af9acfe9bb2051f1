"""Means, intervals, ranks and tests of benchmark scores.

The design is paired: every method sees the same tasks, splits and seeds, so that differences are taken cell by cell
before anything is averaged. Scores are arrays (tasks, seeds); a missing cell is NaN, and nothing is computed from it.
"""

from vpeft.bench.statistics.bayesian_signed_rank import Probabilities, bayesian_signed_rank
from vpeft.bench.statistics.estimate import DRAWS, SEED, Array, Interval, MissingCells
from vpeft.bench.statistics.friedman import Friedman, critical_difference, friedman, studentised_range
from vpeft.bench.statistics.paired_bootstrap import paired_bootstrap
from vpeft.bench.statistics.pareto import ParetoPlace, pareto_front
from vpeft.bench.statistics.ranks import Correlation, mean_ranks, rank_correlation
from vpeft.bench.statistics.tie_groups import cliques, tie_groups
from vpeft.bench.statistics.totals import mean_and_std, missing, std_of_total, total, total_interval
from vpeft.bench.statistics.wilcoxon_holm import Pairwise, holm, wilcoxon_holm

__all__ = [
    "DRAWS",
    "SEED",
    "Array",
    "Correlation",
    "Friedman",
    "Interval",
    "MissingCells",
    "Pairwise",
    "ParetoPlace",
    "Probabilities",
    "bayesian_signed_rank",
    "cliques",
    "critical_difference",
    "friedman",
    "holm",
    "mean_and_std",
    "mean_ranks",
    "missing",
    "paired_bootstrap",
    "pareto_front",
    "rank_correlation",
    "std_of_total",
    "studentised_range",
    "tie_groups",
    "total",
    "total_interval",
    "wilcoxon_holm",
]
