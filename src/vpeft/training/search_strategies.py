"""Which values a search tries next, and which trials it ends early: grid, random, or Optuna.

A strategy is asked for the values of each trial in turn and told how each ended. The same seed and the same answers
give the same questions, so an interrupted search is continued by asking and telling again what is in its record.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, Protocol

from pydantic import BaseModel, ConfigDict, Field, model_validator

from vpeft.errors import need_extra
from vpeft.training.search_space import BadSpace, Choice, Number, Range, Space

TrialState = Literal["running", "done", "pruned", "failed"]

# Trials that TPE draws at random before it proposes. Optuna's own number is 10, which is half of a short search.
STARTUP = 5
TRIALS = 20


class SearchPlan(BaseModel):
    """How a space is searched."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    by: Literal["grid", "random", "optuna"] = Field(
        default="random", description="Who proposes values: grid (all of them), random, or optuna (its TPE sampler)."
    )
    trials: int | None = Field(
        default=None, ge=1, le=10_000, description=f"How many settings are tried; by default {TRIALS}, of a grid all."
    )
    prune: bool | None = Field(
        default=None,
        description="End unpromising trials early by their validation scores (ASHA); by default with optuna only.",
    )
    keep_one_in: int = Field(
        default=3, ge=2, le=100, description="Of the trials that come so far, the share that goes on: one in so many."
    )
    first_epochs: int = Field(default=1, ge=1, description="Epochs before a trial is ended early at the soonest.")

    @model_validator(mode="after")
    def _complete(self) -> SearchPlan:
        if self.prune is None:
            object.__setattr__(self, "prune", self.by == "optuna")
        if self.trials is None and self.by != "grid":
            object.__setattr__(self, "trials", TRIALS)
        return self

    def count(self, space: Space) -> int:
        """Return the number of trials. Raises `BadSpace` for a grid of another number than is asked for."""
        if self.by != "grid":
            assert self.trials is not None
            return self.trials
        points = len(space.grid())
        if self.trials not in (None, points):
            raise BadSpace(
                f"The grid has {points} points, and {self.trials} trials are asked for. Leave the number out."
            )
        return points


class Strategy(Protocol):
    """Proposes the values of trials, one after the other."""

    def ask(self) -> dict[str, Any]:
        """Return the values of the next trial by dotted key."""
        ...

    def hopeless(self, epoch: int, value: float) -> bool:
        """Take the validation score of the present trial after an epoch; return whether the trial is to end."""
        ...

    def tell(self, state: TrialState, value: float | None) -> None:
        """Say how the present trial ended, and its score where it has one."""
        ...


def strategy(plan: SearchPlan, space: Space, seed: int, higher_is_better: bool) -> Strategy:
    """Return the strategy of a plan.

    Raises:
        BadSpace: a grid of a range without a number of points.
        MissingExtra: Optuna is needed, for its sampler or its pruning, and not installed.
    """
    listed: Iterator[dict[str, Any]] | None = None
    if plan.by == "grid":
        listed = iter(space.grid())
    elif plan.by == "random":
        listed = (space.draw(seed, number) for number in range(plan.trials or TRIALS))
    if listed is not None and not plan.prune:
        return Listed(listed)
    return OptunaStudy(plan, space, seed, higher_is_better, listed)


class Listed:
    """Values that are known beforehand; every trial runs to its end."""

    def __init__(self, values: Iterator[dict[str, Any]]) -> None:
        self._values = values

    def ask(self) -> dict[str, Any]:
        return next(self._values)

    def hopeless(self, epoch: int, value: float) -> bool:
        return False

    def tell(self, state: TrialState, value: float | None) -> None:
        return None


class OptunaStudy:
    """A study of Optuna in memory: TPE proposes, or the values are `listed`; successive halving (ASHA) prunes.

    Bergstra et al., 2011 (TPE); Li et al., 2020 (ASHA).
    """

    def __init__(
        self,
        plan: SearchPlan,
        space: Space,
        seed: int,
        higher_is_better: bool,
        listed: Iterator[dict[str, Any]] | None,
    ) -> None:
        # Any: Optuna is not there for a type checker, either, where the extra is not installed.
        self._optuna: Any = need_extra("optuna", "search")
        self._space, self._listed = space, listed
        samplers, pruners = self._optuna.samplers, self._optuna.pruners
        pruner = pruners.NopPruner()
        if plan.prune:
            pruner = pruners.SuccessiveHalvingPruner(
                min_resource=plan.first_epochs, reduction_factor=plan.keep_one_in, min_early_stopping_rate=0
            )
        with self._quiet():
            self._study: Any = self._optuna.create_study(
                sampler=samplers.TPESampler(seed=seed, n_startup_trials=STARTUP),
                pruner=pruner,
                direction="maximize" if higher_is_better else "minimize",
            )
        self._known = {key: self._distribution(values) for key, values in space.ranges}
        self._trial: Any = None

    @contextlib.contextmanager
    def _quiet(self) -> Iterator[None]:
        """Without the lines that Optuna prints about its own doings."""
        before = self._optuna.logging.get_verbosity()
        self._optuna.logging.set_verbosity(self._optuna.logging.ERROR)
        try:
            yield
        finally:
            self._optuna.logging.set_verbosity(before)

    def _distribution(self, values: Range) -> Any:
        kinds = self._optuna.distributions
        if isinstance(values, Choice):
            # By their numbers: Optuna keeps plain values alone, and a choice may be a list.
            return kinds.CategoricalDistribution(tuple(range(len(values.options))))
        assert isinstance(values, Number)
        if values.whole:
            return kinds.IntDistribution(int(values.low), int(values.high))
        return kinds.FloatDistribution(float(values.low), float(values.high), log=values.log)

    def ask(self) -> dict[str, Any]:
        if self._listed is not None:
            self._study.enqueue_trial(self._numbered(next(self._listed)))
        with self._quiet():
            self._trial = self._study.ask(self._known)
        return self._plain(self._trial.params)

    def _numbered(self, values: Mapping[str, Any]) -> dict[str, Any]:
        ranges = dict(self._space.ranges)
        return {
            key: _place(ranges[key], value) if isinstance(ranges[key], Choice) else value
            for key, value in values.items()
        }

    def _plain(self, found: Mapping[str, Any]) -> dict[str, Any]:
        """The values as the recipe takes them, in the order of the space."""
        return {
            key: values.options[found[key]] if isinstance(values, Choice) else found[key]
            for key, values in self._space.ranges
        }

    def hopeless(self, epoch: int, value: float) -> bool:
        self._trial.report(value, epoch)
        return bool(self._trial.should_prune())

    def tell(self, state: TrialState, value: float | None) -> None:
        states = self._optuna.trial.TrialState
        with self._quiet():
            if state == "pruned":
                self._study.tell(self._trial, state=states.PRUNED)
            elif state == "done" and value is not None and value == value:
                self._study.tell(self._trial, value)
            else:
                self._study.tell(self._trial, state=states.FAIL)


def _place(values: Range, value: Any) -> int:
    assert isinstance(values, Choice)
    return values.options.index(value)


def rank_of(value: float, others: Sequence[float], higher_is_better: bool) -> int:
    """Return the place of a value among itself and others, 1 for the best."""
    return 1 + sum(other > value if higher_is_better else other < value for other in others)
