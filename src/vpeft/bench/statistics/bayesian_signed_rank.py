"""The Bayesian signed-rank test with a region of practical equivalence (Benavoli et al., JMLR 18, 2017).

It answers what a p-value does not: how probable it is that one method is better on a further task, worse, or that the
difference does not matter. The differences z_1 .. z_n of two methods over n tasks, and one imagined task with the
difference 0 that carries the prior's weight, get weights w from a Dirichlet distribution. One draw gives the share of
pairs whose mean difference (z_i + z_j) / 2 lies below, within and above the region; the probabilities are how often
each of the three shares is the largest.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from vpeft.bench.statistics.estimate import SEED, Array, MissingCells

# The third digit of a probability stands still from draw to draw.
BAYESIAN_DRAWS = 20_000
# Draws that are computed at a time.
_CHUNK = 2_000


@dataclass(frozen=True)
class Probabilities:
    """Probabilities that sum to 1: the first method is better, they are practically equivalent, it is worse."""

    better: float
    equivalent: float
    worse: float


def bayesian_signed_rank(
    ours: Array,
    theirs: Array,
    *,
    rope: float = 0.01,
    prior: float = 0.5,
    draws: int = BAYESIAN_DRAWS,
    seed: int = SEED,
) -> Probabilities:
    """Compare two methods by their means over seeds.

    Args:
        ours, theirs: scores (tasks, seeds), higher is better.
        rope: half width of the region of practical equivalence; by default one point of a share.
        prior: weight of the imagined task without a difference.
        draws, seed: of the Dirichlet distribution.

    Raises:
        MissingCells: a run is missing.
        ValueError: other tasks, a region below 0, or a prior that is not positive.
    """
    if ours.shape[0] != theirs.shape[0]:
        raise ValueError(f"paired scores need the same tasks, and there are {ours.shape[0]} and {theirs.shape[0]}")
    if rope < 0 or prior <= 0:
        raise ValueError(f"the region {rope} is 0 or more, and the prior {prior} is positive")
    differences = np.concatenate([[0.0], ours.mean(axis=1) - theirs.mean(axis=1)])
    if np.isnan(differences).any():
        raise MissingCells("A paired comparison needs the same runs of both methods; some are missing.")
    sums = np.round(differences[:, None] + differences[None, :], 12)
    edge = round(2 * rope, 12)
    # A pair on the edge of the region counts half on both sides.
    above = (sums > edge) + 0.5 * (sums == edge)
    below = (sums < -edge) + 0.5 * (sums == -edge)
    generator = np.random.default_rng(seed)
    weights = generator.dirichlet([prior, *[1.0] * (len(differences) - 1)], draws)
    wins = np.zeros(3)
    for start in range(0, draws, _CHUNK):
        drawn = weights[start : start + _CHUNK]
        better, worse = (np.einsum("di,ij,dj->d", drawn, part, drawn, optimize=True) for part in (above, below))
        shares = np.stack([better, 1.0 - better - worse, worse], axis=1)
        if rope == 0:
            shares[:, 1] = -1.0  # nothing is equivalent; ties are halved between the sides
        top = shares.max(axis=1, keepdims=True)
        won = np.isclose(shares, top, rtol=0.0, atol=1e-12)
        wins += (won / won.sum(axis=1, keepdims=True)).sum(axis=0)
    better, equivalent, worse = (float(share) for share in wins / draws)
    return Probabilities(better, equivalent, worse)
