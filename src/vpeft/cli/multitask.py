"""`vpeft multitask`: one adapter for several tasks of one data set, compared with a model for each task."""

from __future__ import annotations

from typing import Any

from cyclopts import Group
from rich.text import Text

from vpeft.cli import show
from vpeft.cli.data_flags import data_flags
from vpeft.cli.flags import Flag, Switch, flags_of, nested, with_flags
from vpeft.cli.validated import validated
from vpeft.errors import VpeftError
from vpeft.regimes.compared_tasks import MultiTaskRecipe, compare_tasks
from vpeft.training.optimisation import Optimisation

_FLAGS: tuple[Flag, ...] = (
    *flags_of(MultiTaskRecipe, group=Group("The tasks", sort_key=10), skip=("data", "optimisation")),
    *data_flags(("data",)),
    *flags_of(Optimisation, group=Group("The optimisation", sort_key=30), path=("optimisation",)),
)


class IncompleteTasks(VpeftError):
    """The data, the method or the tasks are missing."""


def _multitask(*, resume: bool = True, json: Switch = False, given: dict[str, Any]) -> None:
    """Learn several tasks of one data set with one adapter, and compare it with a model for each task.

    vpeft multitask --data pocket-dense/scenes --tasks semantic,depth,normals --method lora --out runs/mt

    First each task gets a model of its own (`--single`), then one adapter with a head for each learns all of them.
    Printed are the score of each task beside that of its own model, and delta_m, the mean gain in per cent.

    Parameters
    ----------
    resume:
        Continue from the folder; otherwise start again.
    json:
        Print the record as JSON instead of sentences.
    """
    values = nested(_FLAGS, given)
    missing = [
        f"--{name}{hint}"
        for name, hint, there in (
            ("data", " FOLDER", "source" in values.get("data", {})),
            ("method", " NAME (`vpeft methods`)", "method" in values),
            ("tasks", " NAME,NAME (`vpeft tasks`)", "tasks" in values),
        )
        if not there
    ]
    if missing:
        raise IncompleteTasks(f"The command does not say everything. Add {'; '.join(missing)}.")
    out = show.console()
    recipe = validated(MultiTaskRecipe, values, _FLAGS)
    say = (lambda _: None) if json else lambda line: out.print(Text(line))
    outcome = compare_tasks(recipe, resume=resume, progress=not json, say=say)
    if json:
        show.as_json(outcome.record)
        return
    rows = [
        [row["task"], row["metric"], f"{row['value']:.4g}", *_compared(row["alone"], row["gain"])]
        for row in outcome.record["tasks"]
    ]
    out.print(show.table(["task", "metric", "together", "alone", "gain %"], rows, title=outcome.record["split"]))
    if outcome.delta_m is not None:
        out.print(Text(f"delta_m {outcome.delta_m:+.2f} %"))
    if recipe.out is not None:
        out.print(Text(f"record, picture and models: {recipe.out}; adapter: {outcome.joint.adapter}"))


def _compared(alone: float | None, gain: float | None) -> list[str]:
    return ["" if alone is None else f"{alone:.4g}", "" if gain is None else f"{gain:+.2f}"]


multitask = with_flags(_multitask, _FLAGS)
