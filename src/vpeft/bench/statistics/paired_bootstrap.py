"""The difference of two methods with its interval over tasks and seeds, by a paired bootstrap."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from vpeft.bench.statistics.estimate import DRAWS, SEED, Array, Interval, MissingCells, interval_of


def paired_bootstrap(
    ours: Array, theirs: Array, *, draws: int = DRAWS, level: float = 0.95, seed: int = SEED
) -> Interval:
    """The mean difference `ours - theirs` with its interval over tasks and seeds.

    Both arrays are (tasks, seeds) with the same rows and columns. Each draw resamples the tasks, and within each drawn
    task the seeds, always taking both methods' scores of the same cell. Raises MissingCells for a NaN, ValueError for
    unlike shapes.
    """
    if ours.shape != theirs.shape or ours.ndim != 2:
        raise ValueError(
            f"paired scores are two arrays (tasks, seeds) of one shape, not {ours.shape} and {theirs.shape}"
        )
    difference = ours - theirs
    if np.isnan(difference).any():
        raise MissingCells("A paired comparison needs the same runs of both methods; some are missing.")
    tasks, seeds = difference.shape
    task, cell = resampled(tasks, seeds, draws, seed)
    # Mean over seeds, then over tasks: all tasks weigh the same.
    drawn = difference[task, cell].mean(axis=2).mean(axis=1)
    return interval_of(float(difference.mean()), drawn, level)


def resampled(tasks: int, seeds: int, draws: int, seed: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Indices of tasks (draws, tasks, 1) and of seeds (draws, tasks, seeds), drawn with replacement."""
    generator = np.random.default_rng(seed)
    return generator.integers(0, tasks, (draws, tasks, 1)), generator.integers(0, seeds, (draws, tasks, seeds))
