"""`vpeft continual`: learn a stream of tasks out of one data set, and measure after each task."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cyclopts import Group
from rich.text import Text

from vpeft.cli import show
from vpeft.cli.data_flags import data_flags
from vpeft.cli.flags import Flag, Switch, flags_of, nested, with_flags
from vpeft.cli.stream_record import add_to_ledger
from vpeft.cli.validated import validated
from vpeft.errors import VpeftError
from vpeft.regimes.continual import ContinualRecipe, run_continual
from vpeft.regimes.learner import all_learners
from vpeft.training.optimisation import Optimisation

_STREAM = Group("The stream", sort_key=10)
_FLAGS: tuple[Flag, ...] = (
    *flags_of(ContinualRecipe, group=_STREAM, skip=("data", "optimisation")),
    *data_flags(("data",)),
    *flags_of(Optimisation, group=Group("The optimisation", sort_key=30), path=("optimisation",)),
)


class IncompleteStream(VpeftError):
    """The data or the method is missing."""


def _continual(*, resume: bool = True, json: Switch = False, ledger: Path | None = None, given: dict[str, Any]) -> None:
    """Learn classes by and by, one task after the other, and measure after each task on all so far.

    vpeft continual --data photos/ --increment 10 --method "l2p" --out runs/cl

    The method is a learner (without `--method` the command names them all) or any method of `vpeft methods`, which is
    trained task after task. The folder gets the accuracy matrix with its metrics, pictures, and the state after each
    task, from which the same command goes on. Where one adapter is the whole model, it also gets the adapter file for
    `vpeft predict` and `vpeft extend`.

    Parameters
    ----------
    resume:
        Continue from the folder; otherwise start again.
    json:
        Print the record as JSON instead of sentences.
    ledger:
        Folder of a ledger that also gets a record of the run, for `vpeft report`.
    """
    values = nested(_FLAGS, given)
    missing = [
        f"--{name}{hint}"
        for name, hint, there in (
            ("data", " FOLDER", "source" in values.get("data", {})),
            ("method", f" NAME (learners: {', '.join(all_learners())}; or a method)", "method" in values),
        )
        if not there
    ]
    if missing:
        raise IncompleteStream(f"The command does not say everything. Add {'; '.join(missing)}.")
    out = show.console()
    recipe = validated(ContinualRecipe, values, _FLAGS)
    outcome = run_continual(recipe, resume=resume, say=(lambda _: None) if json else lambda line: out.print(Text(line)))
    if ledger is not None:
        add_to_ledger(ledger, recipe, outcome)
    if json:
        show.as_json(outcome.record)
        return
    columns = ["after task", *(str(task + 1) for task in range(len(outcome.matrix.counts))), "all so far"]
    rows = [
        [
            str(number + 1),
            *("" if value is None else f"{100 * value:.1f}" for value in row),
            f"{100 * outcome.matrix.pooled(number):.1f}",
        ]
        for number, row in enumerate(outcome.matrix.values)
    ]
    out.print(show.table(columns, rows, title="Accuracy on each task, %"))
    metrics = outcome.matrix.metrics()
    said = ", ".join(
        f"{name.replace('_', ' ')} {100 * value:.2f} %" for name, value in metrics.items() if value is not None
    )
    out.print(Text(said))
    if recipe.out is not None:
        out.print(Text(f"record and pictures: {recipe.out}; adapter: {outcome.adapter or 'several, in its state'}"))


continual = with_flags(_continual, _FLAGS)
