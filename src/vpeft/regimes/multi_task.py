"""Multi-task tuning: one adapter learns several tasks at once, from common or from separate samples."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from torch import nn

from vpeft.arguments import one_of, require
from vpeft.data.task_mixture import Mixing, TaskMixture
from vpeft.errors import VpeftError
from vpeft.injection.heads import Heads
from vpeft.injection.tuned_model import TunedModel
from vpeft.task import Task
from vpeft.tasks.multi_task import MultiTask
from vpeft.tasks.task_balance import BalancedHeads, balances, make_balance
from vpeft.training.batches import Samples
from vpeft.training.fit import fit
from vpeft.training.optimisation import Optimisation
from vpeft.training.result import Result

Weights = Literal["fixed", "uncertainty", "gradient_norm", "gradient-norm"]


class NotSeveral(VpeftError):
    """A model or data for one task, where several are to be learnt."""


def fit_tasks(
    tuned: TunedModel,
    train: Samples | Mapping[str, Samples],
    val: Samples | Mapping[str, Samples] | None = None,
    *,
    tasks: Mapping[str, Task] | None = None,
    mixing: Mixing | Literal["round-robin"] = "proportional",
    temperature: float = 10.0,
    weights: Weights | Mapping[str, float] = "fixed",
    singles: Mapping[str, float] | None = None,
    optimisation: Optimisation | None = None,
    epochs: int | None = None,
    out: Path | str | None = None,
    resume: bool = True,
    progress: bool = True,
    workers: int = 0,
    identity: dict[str, Any] | None = None,
) -> Result:
    """Train one adapter for several tasks with `fit`.

    Args:
        tuned: a model whose adapter has a head for each task.
        train: samples whose targets are `{task: target}`; or a data set for each task, by its name. Then each batch is
            of one task, and `mixing` chooses it.
        val: validation samples in either form.
        tasks: the tasks by name; None uses those of the model's adapter.
        mixing: "proportional" to the samples of each task, by "temperature", or "round_robin".
        temperature: of that.
        weights: numbers by task; or "fixed" (all 1), "uncertainty" or "gradient_norm", which weigh as they train.
        singles: the leading metric of a model of each task's own, so that delta_m is told.
        optimisation, epochs, out, resume, progress, workers, identity: see `fit`.

    Returns:
        The result of `fit`, whose history and scores name each task: `depth/silog`, `depth/abs_rel`.

    Raises:
        NotSeveral: the adapter has one head, or other tasks.
        NoSamples: a task has no data.
        VpeftError: as `fit`.
    """
    require("fit_tasks(tuned, train)", tuned=(tuned, one_of(TunedModel, says="a TunedModel, such as `tune` returns")))
    settings = optimisation or Optimisation()
    task = _task_of(tuned, tasks)
    numbers = dict(weights) if isinstance(weights, Mapping) else {}
    balance = "fixed" if isinstance(weights, Mapping) else weights.replace("-", "_")
    chosen = {name: getattr(task, name) for name in type(task).model_fields}
    chosen |= {
        "weights": numbers or task.weights,
        "balance": balance,
        "mixing": mixing.replace("-", "_"),
        "temperature": temperature,
        "in_a_row": settings.batch,
        "singles": dict(task.singles if singles is None else singles),
    }
    task = MultiTask(**chosen)
    _weigh_by(tuned, task)
    for part in (train, val):
        if isinstance(part, Mapping) and (missing := [name for name in task.parts if name not in part]):
            raise NotSeveral(f"There is no data for the task {missing[0]!r}; there is some for {', '.join(part)}.")
    return fit(
        tuned,
        TaskMixture({name: train[name] for name in task.parts}) if isinstance(train, Mapping) else train,
        TaskMixture({name: val[name] for name in task.parts}) if isinstance(val, Mapping) else val,
        optimisation=settings,
        epochs=epochs,
        out=out,
        resume=resume,
        progress=progress,
        workers=workers,
        identity=identity,
        task=task,
    )


def _task_of(tuned: TunedModel, tasks: Mapping[str, Task] | None) -> MultiTask:
    """The tasks to learn, which the adapter has heads for."""
    found = tuned.task if tasks is None else MultiTask(parts=dict(tasks))
    if not isinstance(found, MultiTask):
        raise NotSeveral("The adapter has one task. Give several: fit_tasks(tuned, train, tasks={'a': ..., 'b': ...}).")
    if set(found.parts) != set(tuned.tasks()):
        raise NotSeveral(
            f"The adapter has heads for {', '.join(tuned.tasks())}, and the tasks are {', '.join(found.parts)}. Attach"
            " the method with these tasks: tune(model, method, task=MultiTask(parts={...}))."
        )
    return found


def _weigh_by(tuned: TunedModel, task: MultiTask) -> None:
    """Let what weighs the losses stand beside the heads, which stay as they are."""
    heads = tuned.head
    if not isinstance(heads, Heads):
        raise NotSeveral("The adapter has one head, and several tasks need several.")
    now = heads.balance.name if isinstance(heads, BalancedHeads) else "fixed"
    if now == task.balance:
        return
    each: dict[str, nn.Module] = {name: heads.get_submodule(name) for name in heads.tasks}
    balance = make_balance(task.balance, heads.tasks)
    made = Heads(each) if balance is None else BalancedHeads(each, balance)
    where = next(heads.parameters(), None)
    tuned.adapter().head = made if where is None else made.to(where.device)


__all__ = ["NotSeveral", "Weights", "balances", "fit_tasks"]
