"""A race of candidates on validation images within a budget of seconds, by successive halving.

The rule. If all candidates can be trained in full within the budget, they are, and the best validation score wins.
Otherwise all that fit are trained for a ninth of the epochs, the best third of these for a third of the epochs, and the
best one in full (Jamieson and Talwalkar, 2016, with eta = 3). Each rung is a whole run with its own schedule, since a
run that is cut off in the middle of a schedule says less than a short one that came to its end. If not even two
candidates fit, the epochs are halved, down to `LEAST_EPOCHS`; then the first candidate runs while there is time.

The planned costs are corrected by what the runs take: before each run the rest of the budget must cover it and the full
run of the best candidate so far, else the candidate is passed over. Of equal scores the earlier candidate wins. Every
decision depends on the entries alone, so a race that was interrupted takes the same turns again from its notes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

ETA = 3
LEAST_EPOCHS = 3


@dataclass(frozen=True)
class Rung:
    """So many candidates are trained for so many epochs."""

    epochs: int
    count: int


@dataclass(frozen=True)
class RaceEntry:
    """One run of a race.

    Attributes:
        candidate: its number, in the order of the proposals.
        epochs: of the run.
        score: on the validation images, higher is better; None if it failed.
        seconds: that it took.
        note: why it has no score.
    """

    candidate: int
    epochs: int
    score: float | None
    seconds: float
    note: str = ""


@dataclass(frozen=True)
class Race:
    """The outcome: all runs, in their order; and the winner, None if nothing gave a score."""

    entries: tuple[RaceEntry, ...]
    rungs: tuple[Rung, ...]
    winner: RaceEntry | None
    rule: Literal["in full", "halving", "one"]


def plan_race(per_epoch: Sequence[float], budget: float, epochs: int) -> tuple[Rung, ...]:
    """The rungs that fit into a budget.

    Args:
        per_epoch: estimated seconds of an epoch of each candidate, in the order in which they are to be tried.
        budget: seconds.
        epochs: of a full run.
    """
    if not per_epoch:
        return ()
    if epochs * sum(per_epoch) <= budget:
        return (Rung(epochs, len(per_epoch)),)
    full = epochs
    while full >= LEAST_EPOCHS:
        lengths = sorted({max(1, round(full / ETA**power)) for power in (2, 1, 0)})
        for count in range(len(per_epoch), 1, -1):
            counts = [max(1, math.ceil(count / ETA**place)) for place in range(len(lengths))]
            counts[-1] = 1
            # Who survives is not known yet: the dearest ones might.
            dearest = sorted(per_epoch[:count], reverse=True)
            needed = sum(
                length * (sum(per_epoch[:count]) if place == 0 else sum(dearest[:many]))
                for place, (length, many) in enumerate(zip(lengths, counts, strict=True))
            )
            if needed <= budget:
                return tuple(Rung(length, many) for length, many in zip(lengths, counts, strict=True))
        full //= 2
    return (Rung(max(1, min(epochs, int(budget / per_epoch[0]))), 1),)


def race(
    per_epoch: Sequence[float],
    budget: float,
    epochs: int,
    run: Callable[[int, int, float], RaceEntry],
    *,
    known: Sequence[RaceEntry] = (),
) -> Race:
    """Carry a race out.

    Args:
        per_epoch, budget, epochs: as for `plan_race`.
        run: (candidate, epochs, seconds that it may take) -> its entry.
        known: entries of an interrupted race; they are not run again.
    """
    rungs = plan_race(per_epoch, budget, epochs)
    waiting = {(one.candidate, one.epochs): one for one in known}
    entries: list[RaceEntry] = []
    measured = dict(enumerate(per_epoch))
    here = list(range(len(per_epoch)))

    def left() -> float:
        return budget - sum(one.seconds for one in entries)

    last: list[RaceEntry] = []
    for place, rung in enumerate(rungs):
        final = place == len(rungs) - 1
        scored: list[RaceEntry] = []
        for candidate in here[: rung.count]:
            if scored or (place == 0 and entries):
                # What the full run of the best so far still needs: none if this rung is the full one.
                ahead = 0.0
                if not final:
                    best = _best(scored) if scored else None
                    ahead = rungs[-1].epochs * measured[candidate if best is None else best.candidate]
                if rung.epochs * measured[candidate] + ahead > left():
                    continue
            entry = waiting.get((candidate, rung.epochs)) or run(candidate, rung.epochs, max(0.0, left()))
            entries.append(entry)
            if entry.score is not None:
                measured[candidate] = entry.seconds / entry.epochs
                scored.append(entry)
        if not scored and last:  # the survivors of the rung before failed in this one
            break
        last = scored
        here = [one.candidate for one in sorted(scored, key=lambda one: -(one.score or 0.0))]
        if not here:
            break
    winner = _best(last) if last else None
    several = len(rungs) > 1
    rule: Literal["in full", "halving", "one"] = (
        "halving" if several else "one" if rungs and rungs[0].count == 1 and len(per_epoch) > 1 else "in full"
    )
    return Race(tuple(entries), rungs, winner, rule)


def _best(entries: Sequence[RaceEntry]) -> RaceEntry:
    """The best score; of equal ones the earlier."""
    return max(entries, key=lambda one: one.score if one.score is not None else -math.inf)
