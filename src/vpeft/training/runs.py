"""Run several recipes: those that read the same images share passes, with the results of single runs."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from vpeft.arguments import list_of, require
from vpeft.backbones.trust import Trust
from vpeft.errors import VpeftError
from vpeft.safe_text import visible
from vpeft.training.concurrent_run import Run
from vpeft.training.fit import checked_settings, refuse_foreign_checkpoint
from vpeft.training.grouping import DataReading, Opened, passes, said
from vpeft.training.recipe import Recipe
from vpeft.training.result import Result
from vpeft.training.run import ReadyRun, RunOutcome, ready_run
from vpeft.training.run_folder import own_folders, refuse_several_processes
from vpeft.training.together import fit_together


class UnsuitableRuns(VpeftError):
    """These recipes cannot run in one call."""


class CannotBegin(VpeftError):
    """One of several recipes cannot start; the message begins with its name."""


def run_recipes(
    recipes: Sequence[Recipe],
    *,
    names: Sequence[str] | None = None,
    resume: bool = True,
    progress: bool = True,
    show: bool = True,
    test: bool = True,
    trust_code: bool = False,
    allow_download: bool = False,
) -> list[RunOutcome]:
    """Run all `recipes` as `run_recipe` does, with the same numbers and files; return the outcomes in order.

    Recipes that read the same images with the same preprocessing train in one pass over them, by `fit_together`: frozen
    parts that they share are computed once. Other recipes form further passes, one after the other. Before the first
    step all models are created and all data sets opened, so an error in any recipe is raised before anything is trained
    or written; then the passes are printed.

    If a run fails, the others go on; its outcome has the state "failed", and `result.reason` holds the reason. If a
    whole pass cannot be trained (its checkpoints belong to other runs, an image cannot be read any more), this holds
    for all its runs. After SIGTERM or Ctrl-C all runs are "stopped", and passes that have not begun do not begin.

    Args:
        recipes: at least one; either each has its own folder in `out`, or none has one.
        names: names of the runs for messages; by default those of their folders.
        resume, progress, show, test: as for `run_recipe`, for all runs.
        trust_code, allow_download: as for `run_recipe`.

    Raises:
        UnsuitableRuns: no recipes, two with the same folder, or folders for some of them only.
        CannotBegin: a recipe cannot start; the message names it and holds the error of `run_recipe`.
    """
    require("run_recipes(recipes)", recipes=(recipes, list_of(Recipe, says="a list of recipes")))
    called = list(names) if names is not None else [str(one.out or f"run {n + 1}") for n, one in enumerate(recipes)]
    _refuse(recipes, called)
    refuse_several_processes()
    with own_folders(*(recipe.out for recipe in recipes)):
        return _run(recipes, called, resume, progress, show, test, trust_code, allow_download)


def _run(
    recipes: Sequence[Recipe],
    called: Sequence[str],
    resume: bool,
    progress: bool,
    show: bool,
    test: bool,
    trust_code: bool,
    allow_download: bool,
) -> list[RunOutcome]:
    """Run all recipes, whose folders no other training writes into."""
    trusts = [recipe.trust(code=trust_code, download=allow_download) for recipe in recipes]
    several = list(_ready(recipes, called, trusts, resume, progress, show))
    readings = [
        DataReading(name, one.recipe.data, one.preprocessing, one.task)
        for name, one in zip(called, several, strict=True)
    ]
    grouped = passes(readings)
    if progress and len(recipes) > 1:
        for line in said(readings, grouped):
            print(visible(line), file=sys.stderr)
    outcomes: dict[int, RunOutcome] = {}
    stopped = False
    for number, group in enumerate(grouped):
        members = _Pass([several[place] for place in group], [called[place] for place in group])
        if number:  # its time begins now, not with that of the first
            members.begin_now()
        if stopped:
            made = members.without_steps(
                "stopped", "not started, because earlier runs were stopped; the same call starts it"
            )
        else:
            made = members.trained(resume=resume, progress=progress, test=test)
        stopped = stopped or any(one.state == "stopped" for one in made)
        outcomes.update(zip(group, made, strict=True))
    return [outcomes[place] for place in range(len(recipes))]


@dataclass(frozen=True)
class _Pass:
    """Runs that read the same images."""

    runs: list[ReadyRun]
    names: list[str]

    def begin_now(self) -> None:
        for run in self.runs:
            run.facts["started"] = datetime.now(UTC).isoformat(timespec="seconds")

    def trained(self, *, resume: bool, progress: bool, test: bool) -> list[RunOutcome]:
        """Train, evaluate and save all."""
        first = self.runs[0]
        for run in self.runs:
            run.write_recipe()
        try:
            results = fit_together(
                [
                    Run(
                        run.tuned,
                        run.recipe.optimisation,
                        run.recipe.out,
                        identity=run.identity,
                        task=run.task,
                        name=name,
                    )
                    for run, name in zip(self.runs, self.names, strict=True)
                ],
                first.train,
                first.val,
                resume=resume,
                progress=progress,
                workers=max(run.recipe.data.workers for run in self.runs),
            )
        except VpeftError as error:
            return self.without_steps("failed", f"This pass could not be trained to its end: {error}")
        return [_concluded(run, result, test) for run, result in zip(self.runs, results, strict=True)]

    def without_steps(self, state: Literal["stopped", "failed"], reason: str) -> list[RunOutcome]:
        """Return the outcomes without training; files of earlier calls do not change."""
        made = []
        for run in self.runs:
            device = str(next(run.tuned.parameters()).device)
            made.append(run.without_adapter(Result.of_nothing(state, reason, run.recipe.optimisation, device)))
        return made


def _concluded(run: ReadyRun, result: Result, test: bool) -> RunOutcome:
    try:
        return run.outcome(result, test=test)
    except VpeftError as error:  # in scoring or saving: the training is on the disk, the same call goes on from there
        failed = result.model_copy(update={"state": "failed", "reason": str(error)})
        return run.without_adapter(failed, run.record(failed, error=str(error)))


def _ready(
    recipes: Sequence[Recipe],
    names: Sequence[str],
    trusts: Sequence[Trust],
    resume: bool,
    progress: bool,
    show: bool,
) -> Iterator[ReadyRun]:
    images = Opened()
    for recipe, name, trust in zip(recipes, names, trusts, strict=True):
        if show and len(recipes) > 1:
            print(visible(f"{name}:"))
        try:
            run = ready_run(recipe, progress=progress, show=show, images=images, trust=trust)
            settings = checked_settings(recipe.optimisation, run.train, run.val)
            if resume and recipe.out is not None:
                refuse_foreign_checkpoint(run.tuned, recipe.out, run.identity, settings)
        except VpeftError as error:
            raise CannotBegin(f"{name}: {error}") from error
        yield run


def _refuse(recipes: Sequence[Recipe], names: Sequence[str]) -> None:
    if not recipes:
        raise UnsuitableRuns("There are no recipes to run.")
    if len(names) != len(recipes):
        raise UnsuitableRuns(f"There are {len(recipes)} recipes and {len(names)} names. Give one for each.")
    without = [name for recipe, name in zip(recipes, names, strict=True) if recipe.out is None]
    if without and len(without) < len(recipes):
        raise UnsuitableRuns(
            f"Some recipes have a folder (`out`), and {', '.join(without)} have none. Name one for each."
        )
    taken: dict[Path, str] = {}
    for recipe, name in zip(recipes, names, strict=True):
        folder = None if recipe.out is None else recipe.out.resolve()
        if folder in taken:
            raise UnsuitableRuns(
                f"{taken[folder]} and {name} both write into {recipe.out}. Give each its own folder (`out`)."
            )
        if folder is not None:
            taken[folder] = name
