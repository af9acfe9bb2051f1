"""Search a space of recipe keys on the validation split, and evaluate the best trial once on the test split.

    search.json         the whole search: space, strategy, and every trial with its values, its validation curve, how
                        it ended and why; it is replaced after every epoch, and the same call continues from it
    trials/<number>/    the runs of the trials, as `vpeft train` writes them; `run.json` of the best holds the search
    recipe.toml         the best trial as a recipe

Trials run one after the other. They open the images once, and what is frozen in several of them is computed once. A
trial with the values of an earlier one takes over its outcome.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from vpeft.acceleration.shared_trunk import SharedRecords
from vpeft.atomic import CannotWrite, write_json, write_text
from vpeft.errors import VpeftError
from vpeft.guarded import read_json
from vpeft.injection.tuned_model import TunedModel
from vpeft.safe_text import visible
from vpeft.training.failures import TrainingFailed
from vpeft.training.fit import fit
from vpeft.training.grouping import Opened
from vpeft.training.progress import display
from vpeft.training.recipe import Recipe
from vpeft.training.result import EpochRecord, Result, shown
from vpeft.training.run import RECIPE, ReadyRun, RunOutcome, ready_run
from vpeft.training.run_folder import own_folders, refuse_several_processes
from vpeft.training.search_space import Space
from vpeft.training.search_strategies import SearchPlan, Strategy, TrialState, rank_of, strategy

RECORD, TRIALS = "search.json", "trials"
_FORMAT = 1


class CannotSearchSpace(VpeftError):
    """A search lacks a folder or validation images, its folder holds another search, or no trial gave a score."""


class BadSearchRecord(VpeftError):
    """The record of a search cannot be read."""


class Trial(BaseModel):
    """One setting that was tried.

    Attributes:
        number: from 0, in the order of the search.
        values: by dotted key of the recipe.
        state: done, pruned (ended early), failed; running until then.
        curve: (epoch, validation score) for each validated epoch.
        score: the validation score of the weights that were kept; None unless done.
        why: why it was pruned or failed.
        same_as: the earlier trial with the same values, whose outcome stands here.
        seconds: of training and validation.
    """

    model_config = ConfigDict(extra="forbid")

    number: int
    values: dict[str, Any]
    state: TrialState = "running"
    curve: list[tuple[int, float]] = []
    score: float | None = None
    why: str = ""
    same_as: int | None = None
    seconds: float = 0.0

    def sentence(self) -> str:
        """Return its values as text."""
        return ", ".join(f"{key}={_written(value)}" for key, value in self.values.items())


@dataclass(frozen=True)
class SpaceSearchOutcome:
    """The outcome of a search.

    Attributes:
        trials: all of them, in their order.
        best: the trial with the best validation score; None if the search was stopped before its end.
        run: the run of the best trial, with the test scores.
        record: the file with the search.
        recipe: the file with the best trial's recipe.
    """

    trials: tuple[Trial, ...]
    best: Trial | None
    run: RunOutcome | None
    record: Path
    recipe: Path

    @property
    def stopped(self) -> bool:
        """Whether a signal ended it early; the same call continues it."""
        return self.run is None


class _Pruned(Exception):
    """The present trial is to end."""


class _Stopped(Exception):
    """A signal asked to stop."""


def search_space(
    recipe: Recipe,
    space: Space,
    plan: SearchPlan | None = None,
    *,
    resume: bool = True,
    progress: bool = True,
    trust_code: bool = False,
    allow_download: bool = False,
) -> SpaceSearchOutcome:
    """Try settings of a recipe on its validation split, keep the best, and evaluate it once on the test split.

    Args:
        recipe: everything that is not searched; `optimisation.seed` is the seed of the search, too.
        space: the keys to search.
        plan: who proposes values, how many, and whether trials are ended early; random search by default.
        resume: continue from the record and the runs in the folder; more trials may be asked for than before.
        progress: print a line for each trial on standard error.
        trust_code, allow_download: as for `run_recipe`.

    Raises:
        CannotSearchSpace: see there.
        BadSpace, MissingExtra: as `strategy` does.
        VpeftError: an error of the recipe before the first trial. Errors of single trials are in the record.
    """
    plan = plan or SearchPlan()
    out = recipe.out
    if out is None:
        raise CannotSearchSpace("A search writes runs and a record. Name a folder for them (`out`).")
    count = plan.count(space)
    refuse_several_processes()
    with own_folders(out):
        search = _Search(recipe, out, space, plan, resume, progress, (trust_code, allow_download))
        try:
            for _ in range(count):
                search.next_trial()
            best = search.best()
            run = search.concluded(best)
        except _Stopped:
            return SpaceSearchOutcome(tuple(search.trials), None, None, out / RECORD, out / RECIPE)
    return SpaceSearchOutcome(tuple(search.trials), best, run, out / RECORD, out / RECIPE)


class _Search:
    """A search under way."""

    def __init__(
        self,
        recipe: Recipe,
        out: Path,
        space: Space,
        plan: SearchPlan,
        resume: bool,
        progress: bool,
        trusted: tuple[bool, bool],
    ) -> None:
        self._recipe, self._out, self._space, self._plan = recipe, out, space, plan
        self._trust = recipe.trust(code=trusted[0], download=trusted[1])
        self._images, self._shared = Opened(), SharedRecords()
        self._say: Callable[[str], None] = display(progress).say if progress else lambda line: None
        # The recipe as it stands must be able to begin; what is wrong with it is wrong with every trial.
        base = self._ready(recipe.model_copy(update={"out": None}))
        if base.val is None:
            raise CannotSearchSpace(
                "A search compares trials on validation images, and there are none: data.val_fraction."
            )
        self.leading = base.task.leading
        self._data = base.data.manifest.digest
        self._facts = {
            "format": _FORMAT,
            "kind": "space",
            "identity": self._identity(base),
            "space": space.stated(),
            "by": plan.by,
            "seed": recipe.seed,
            "pruning": {"keep_one_in": plan.keep_one_in, "first_epochs": plan.first_epochs} if plan.prune else None,
            "metric": self.leading.name,
            "higher_is_better": self.leading.higher_is_better,
        }
        del base
        self.trials: list[Trial] = []
        self._stored = self._read() if resume else []
        self.strategy: Strategy = strategy(plan, space, recipe.seed, self.leading.higher_is_better)

    def _ready(self, recipe: Recipe) -> ReadyRun:
        return ready_run(recipe, progress=False, show=False, images=self._images, trust=self._trust)

    def _identity(self, base: ReadyRun) -> str:
        """What the scores of trials depend on. The number of trials is no part of it: more may follow."""
        parts = {
            "recipe": self._recipe.model_dump(mode="json", exclude={"out"}),
            "run": base.identity,
            "space": self._space.stated(),
            "plan": self._plan.model_dump(exclude={"trials"}),
        }
        return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:20]

    # -- the record -------------------------------------------------------------------------------------------------

    def _read(self) -> list[Trial]:
        path = self._out / RECORD
        if not path.exists():
            return []
        stored = read_json(path, f"The record of the search, {path},", BadSearchRecord)
        if not isinstance(stored, dict) or stored.get("identity") != self._facts["identity"]:
            raise CannotSearchSpace(
                f"{path} is of a search with another recipe, other data or another space. Name another folder (--out),"
                " or start again with --no-resume."
            )
        try:
            trials = [Trial.model_validate(one) for one in stored["trials"]]
            if [trial.number for trial in trials] != list(range(len(trials))):
                raise ValueError("trials are numbered from 0")
            return trials
        except (KeyError, TypeError, ValueError):
            raise BadSearchRecord(f"The record {path} is damaged. Start again with --no-resume.") from None

    def stated(self) -> dict[str, Any]:
        """The whole search as plain data."""
        done = [trial for trial in self.trials if trial.score is not None]
        best = _best(done, self.leading.higher_is_better).number if done else None
        return {**self._facts, "best": best, "trials": [trial.model_dump(mode="json") for trial in self._all()]}

    def _all(self) -> list[Trial]:
        # Trials that stand in the record and were not yet asked for again must not be lost meanwhile.
        return [*self.trials, *self._stored[len(self.trials) :]]

    def write(self) -> None:
        write_json(self._out / RECORD, self.stated())

    # -- trials -----------------------------------------------------------------------------------------------------

    def next_trial(self) -> None:
        """Make the next trial, or take its outcome from the record."""
        number = len(self.trials)
        values = self.strategy.ask()
        trial = Trial(number=number, values=values)
        stored = self._stored[number] if number < len(self._stored) else None
        if stored is not None:
            if stored.values != values:
                raise CannotSearchSpace(
                    f"Trial {number} of {self._out / RECORD} has {stored.sentence()}, and this search proposes"
                    f" {trial.sentence()}: it was made with another version of Optuna. Start again with --no-resume."
                )
            trial = stored
        self.trials.append(trial)
        earlier = next((one for one in self.trials[:-1] if one.values == values), None)
        if trial.state == "running" and earlier is not None:
            trial.state, trial.curve, trial.score = earlier.state, list(earlier.curve), earlier.score
            trial.why, trial.same_as = earlier.why, earlier.number
        elif trial.state == "running":
            if stored is None:
                self.write()
            self._run(trial, resume=stored is not None)
            self.write()
            self.strategy.tell(trial.state, trial.score)
            self._say(f"trial {number}: {trial.sentence()}: {self._ended(trial)}")
            return
        for epoch, value in trial.curve:
            self.strategy.hopeless(epoch, value)
        if stored is None:
            self.write()
        self.strategy.tell(trial.state, trial.score)

    def _run(self, trial: Trial, *, resume: bool) -> None:
        """Train a trial to its end, or until it is hopeless. Raises _Stopped."""
        began, before = time.perf_counter(), trial.seconds
        curve = _Curve(self, trial)
        try:
            recipe = self._recipe_of(trial)
            ready = self._ready(recipe)
            if ready.data.manifest.digest != self._data:
                raise CannotSearchSpace("Its data are others than those of the search.")
            result = self._fit(ready, curve.follow, resume=resume)
            if result.state == "stopped":
                trial.seconds = before + time.perf_counter() - began
                self.write()
                raise _Stopped
            ready.outcome(result, test=False)
            curve.complete(result)
            assert result.val is not None
            trial.score, trial.state = result.val.value, "done"
            if trial.score != trial.score:
                trial.score, trial.state, trial.why = None, "failed", f"its {self.leading.name} is not a number"
        except _Pruned:
            trial.state = "pruned"
            trial.why = self._why_pruned(trial)
            # Nothing continues it.
            shutil.rmtree(self._folder(trial), ignore_errors=True)
        except CannotWrite:
            # A full disk is no fault of the trial.
            raise
        except VpeftError as error:
            trial.state, trial.why = "failed", " ".join(str(error).split())[:500]
        trial.seconds = before + time.perf_counter() - began

    def _recipe_of(self, trial: Trial) -> Recipe:
        return self._recipe.changed({**trial.values, "out": str(self._folder(trial))})

    def epochs(self, trial: Trial) -> int:
        """How many epochs a trial has in full."""
        return int(trial.values.get("optimisation.epochs", self._recipe.optimisation.epochs))

    def _folder(self, trial: Trial) -> Path:
        return self._out / TRIALS / f"{trial.number:04d}"

    def _fit(
        self, ready: ReadyRun, after_epoch: Callable[[TunedModel, EpochRecord], None] | None, *, resume: bool
    ) -> Result:
        recipe = ready.recipe
        ready.write_recipe()
        try:
            return fit(
                ready.tuned,
                ready.train,
                ready.val,
                optimisation=recipe.optimisation,
                out=recipe.out,
                resume=resume,
                progress=False,
                workers=recipe.data.workers,
                after_epoch=after_epoch,
                identity=ready.identity,
                task=ready.task,
                shared=self._shared,
            )
        except TrainingFailed as failure:
            ready.record(failure.result, error=str(failure))
            raise

    def _why_pruned(self, trial: Trial) -> str:
        epoch, value = trial.curve[-1]
        others = [dict(one.curve)[epoch] for one in self.trials[:-1] if epoch in dict(one.curve)]
        place = rank_of(value, others, self.leading.higher_is_better)
        return (
            f"after epoch {epoch} its validation {self.leading.name} of {shown(value)} was number {place} of"
            f" {len(others) + 1} trials; one in {self._plan.keep_one_in} goes on (ASHA)"
        )

    def _ended(self, trial: Trial) -> str:
        name = self.leading.name
        if trial.score is not None:
            return f"{name} {shown(trial.score)} in {trial.seconds:.1f} s"
        return f"{trial.state}: {visible(trial.why)}"

    # -- the end ----------------------------------------------------------------------------------------------------

    def best(self) -> Trial:
        """The trial with the best score; of equal ones the earliest. Raises `CannotSearchSpace` if none has one."""
        done = [trial for trial in self.trials if trial.score is not None]
        if not done:
            said = "; ".join(dict.fromkeys(trial.why for trial in self.trials if trial.why))
            raise CannotSearchSpace(f"None of the {len(self.trials)} trials gave a score. {said}")
        return _best(done, self.leading.higher_is_better)

    def concluded(self, best: Trial) -> RunOutcome:
        """Evaluate the best trial on the test split, and write what was found. Raises _Stopped."""
        ready = self._ready(self._recipe_of(best))
        ready.facts["search"] = self.stated()
        result = self._fit(ready, None, resume=True)
        if result.state == "stopped":
            raise _Stopped
        write_text(self._out / RECIPE, self._recipe.changed({**best.values, "out": str(self._out / "again")}).to_toml())
        self.write()
        return ready.outcome(result)


class _Curve:
    """The validation curve of a trial under way: written down after each epoch, by which the trial may be ended.

    A trial that goes on from its checkpoint begins after epochs that an earlier call has followed. They are reported
    again, since the strategy is another one.
    """

    def __init__(self, search: _Search, trial: Trial) -> None:
        self._search, self._trial = search, trial
        self._begun = False

    def _begin(self, first: int) -> None:
        """Report the epochs before the first one that is followed."""
        if self._begun:
            return
        known, self._trial.curve, self._begun = self._trial.curve, [], True
        for epoch, value in known:
            if epoch < first:
                self._report(epoch, value)

    def follow(self, _: TunedModel, record: EpochRecord) -> None:
        """Take the record of an epoch. Raises _Pruned."""
        self._begin(record.epoch)
        value = self._of(record)
        if value is None:
            return
        hopeless = self._report(record.epoch, value)
        self._search.write()
        # The last epoch is paid for.
        if hopeless and record.epoch < self._search.epochs(self._trial):
            raise _Pruned

    def complete(self, result: Result) -> None:
        """Report the epochs of a trial that an earlier call has finished."""
        self._begin(1)
        followed = {epoch for epoch, _ in self._trial.curve}
        for record in result.history:
            value = self._of(record)
            if value is not None and record.epoch not in followed:
                self._report(record.epoch, value)

    def _report(self, epoch: int, value: float) -> bool:
        self._trial.curve.append((epoch, value))
        return self._search.strategy.hopeless(epoch, value)

    def _of(self, record: EpochRecord) -> float | None:
        """The leading validation score of an epoch; None if it was not validated, or not a number."""
        value = None if record.val is None else record.val[self._search.leading.name]
        return None if value is None or value != value else value


def _best(done: list[Trial], higher_is_better: bool) -> Trial:
    sign = 1.0 if higher_is_better else -1.0
    return max(done, key=lambda trial: (sign * (trial.score or 0.0), -trial.number))


def _written(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
