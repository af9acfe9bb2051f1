"""One adapter for several tasks against a model for each: both are trained and measured, and delta_m compares them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from vpeft.atomic import write_json
from vpeft.data.config import DataConfig
from vpeft.data.several import read_listing
from vpeft.data.sources.registry import find_source
from vpeft.method_spec import parse_one
from vpeft.regimes.multi_task import NotSeveral
from vpeft.task import get_task
from vpeft.tasks.multi_task import MultiTask
from vpeft.training.optimisation import Optimisation
from vpeft.training.recipe import Recipe
from vpeft.training.result import Scores
from vpeft.training.run import RunOutcome, run_recipe
from vpeft.version import __version__

if TYPE_CHECKING:
    from matplotlib.figure import Figure

RECORD, PICTURE = "multi_task.json", "gains.png"
NONE = "none"


class MultiTaskRecipe(BaseModel):
    """Several tasks of one data set, a method for all of them, and a method for a model of each task's own."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    backbone: str = Field(default="pocket_vit", description="Pre-trained model: a name from `vpeft backbones`.")
    pretrained: bool = Field(default=True, description="Load the backbone's weights; false: random weights.")
    method: str = Field(description="What learns all tasks at once: a method, with settings, several with +.")
    tasks: tuple[str, ...] = Field(
        description="The tasks, with options in brackets: semantic,depth(loss=l1),normals; `vpeft tasks` lists them."
    )
    single: str = Field(
        default="full_finetuning",
        description="The method of each task's own model, against which delta_m compares; none leaves them out.",
    )
    single_lr: float | None = Field(
        default=None, gt=0, description="Learning rate of these models; by default that of the optimisation."
    )
    balance: Literal["fixed", "uncertainty", "gradient_norm"] = Field(
        default="fixed", description="What weighs the tasks' losses against each other, beside `weights`."
    )
    weights: tuple[str, ...] = Field(
        default=(), description="Factors of the losses, such as depth=2,normals=10; 1 by default."
    )
    size: int | None = Field(default=None, ge=1, description="Side of the square that images are fitted to.")
    changes: str = Field(
        default="none", description="Changes of training images and all their maps, joined by +: flip, turn, zoom."
    )
    data: DataConfig
    out: Path | None = Field(default=None, description="Folder for the adapter, the models, the record, the picture.")
    optimisation: Optimisation = Field(default_factory=Optimisation)

    @field_validator("tasks")
    @classmethod
    def _known(cls, tasks: tuple[str, ...]) -> tuple[str, ...]:
        named = [get_task(parse_one(one, "task").name).name for one in tasks]
        if len(set(named)) < 2 or len(set(named)) < len(named):
            raise ValueError(f"give two tasks or more, each once, and not {', '.join(tasks) or 'none'}")
        return tasks

    def task(self) -> MultiTask:
        """The tasks, not yet bound to data."""
        return MultiTask(
            parts=list(self.tasks),
            balance=self.balance,
            weights=dict(map(_factor, self.weights)),
            size=self.size,
            image_changes=self.changes,
        )

    def joint(self, singles: Mapping[str, float], measured: Mapping[str, Mapping[str, float]]) -> Recipe:
        """The run that learns all tasks.

        Args:
            singles: the single-task scores of validation, where they are known.
            measured: those of validation and test by the digest of the images.
        """
        task = self.task().with_singles(singles, measured) if singles else self.task()
        return self._run(self.method, task, "joint", None)

    def alone(self, name: str) -> Recipe:
        """The run of one task's own model: the same data, changes and optimisation, the method `single`."""
        whole = self.task()
        task = whole.model_copy(update={"parts": {name: whole.parts[name]}, "weights": {}, "balance": "fixed"})
        return self._run(self.single, task, f"single/{name}", self.single_lr)

    def _run(self, method: str, task: MultiTask, folder: str, lr: float | None) -> Recipe:
        stated = task.model_dump(mode="json", exclude_defaults=True, by_alias=True)
        settings = self.optimisation.model_dump(exclude_unset=True)
        return Recipe.model_validate(
            {
                "backbone": self.backbone,
                "pretrained": self.pretrained,
                "method": method,
                "task": {"name": task.name, **stated},
                "data": self.data.model_dump(exclude_unset=True),
                "optimisation": settings if lr is None else {**settings, "lr": lr},
                "out": None if self.out is None else self.out / folder,
            }
        )


def _factor(text: str) -> tuple[str, float]:
    """The name and the number in `depth=2`."""
    name, _, number = text.partition("=")
    try:
        return name.strip(), float(number)
    except ValueError:
        raise NotSeveral(f"{text!r} is no factor of a loss. Write the name of a task and a number: depth=2.") from None


@dataclass(frozen=True)
class ComparedTasks:
    """What came of all runs.

    Attributes:
        joint: the run of the adapter for all tasks.
        scores: its scores on the test split, or on validation where there is none.
        singles: the leading metric of each task's own model on the same split; empty where none was trained.
        delta_m: the mean gain in per cent; None without single-task models.
        record: all figures, JSON.
    """

    joint: RunOutcome
    scores: Scores | None
    singles: dict[str, float]
    delta_m: float | None
    record: dict[str, Any]


def compare_tasks(
    recipe: MultiTaskRecipe, *, resume: bool = True, progress: bool = False, say: Callable[[str], None] = print
) -> ComparedTasks:
    """Train a model for each task, then one adapter for all, and compare them on the test split.

    Validation scores of the single models choose the epoch of the joint one by delta_m; their test scores are read
    once, for the comparison. With a folder each run goes on after an interruption, and finished runs are not repeated.

    Raises:
        NotSeveral: a run was interrupted.
        VpeftError: an error that the user can correct.
    """
    task = recipe.task()
    # A task without data is named before the first model is trained.
    config = recipe.data.model_copy(update={"target": task.target_kind})
    read_listing(find_source(config), config)
    seen: dict[str, dict[str, float]] = {"val": {}, "test": {}}
    measured: dict[str, dict[str, float]] = {}
    parameters: dict[str, int] = {}
    for name, one in task.parts.items() if recipe.single != NONE else ():
        outcome = run_recipe(recipe.alone(name), resume=resume, progress=progress, show=False)
        _require_done(outcome)
        parameters[name] = outcome.tuned.plan().trainable_with_head
        for split, scores, images in (
            ("val", outcome.result.val, outcome.data.val),
            ("test", outcome.test, outcome.data.test),
        ):
            if scores is not None and images is not None:
                value = scores.values[f"{name}/{one.leading.name}"]
                seen[split][name] = value
                measured.setdefault(images.contents_digest(), {})[name] = value
        last = outcome.test or outcome.result.val
        shown = "" if last is None else f" {one.leading.name} {last.values[f'{name}/{one.leading.name}']:.4g}"
        say(f"{name} alone, {recipe.single}:{shown}")
    # a source may have more images of one kind; then the scores are of other images than those of all tasks
    complete = {digest: scores for digest, scores in measured.items() if set(scores) == set(task.parts)}
    joint = run_recipe(recipe.joint(seen["val"], complete), resume=resume, progress=progress, show=False)
    _require_done(joint)
    scores = joint.test or joint.result.val
    singles = seen["test"] if joint.test is not None else seen["val"]
    learnt = joint.task
    assert isinstance(learnt, MultiTask)
    rows = _rows(learnt, scores, singles)
    delta = learnt.with_singles(singles).delta({row["task"]: row["value"] for row in rows}) if singles else None
    plan = joint.tuned.plan()
    record = {
        "format": 1,
        "vpeft": __version__,
        "recipe": recipe.model_dump(mode="json"),
        "split": "test" if joint.test is not None else "val",
        "tasks": rows,
        "delta_m": delta,
        "passes": plan.passes,
        "trainable": plan.trainable,
        "trainable_with_heads": plan.trainable_with_head,
        "single_parameters": parameters,
        "seconds": round(joint.result.seconds, 3),
    }
    if recipe.out is not None:
        write_json(recipe.out / RECORD, record)
        gains({recipe.method: rows}, delta).savefig(recipe.out / PICTURE, dpi=150)
    return ComparedTasks(joint, scores, singles, delta, record)


def _require_done(outcome: RunOutcome) -> None:
    if outcome.state != "done":
        raise NotSeveral(f"{outcome.result.reason or outcome.state}. Give the same command again to go on.")


def _rows(task: MultiTask, scores: Scores | None, singles: Mapping[str, float]) -> list[dict[str, Any]]:
    rows = []
    for name, one in task.parts.items():
        leading = one.leading
        value = math.nan if scores is None else scores.values[f"{name}/{leading.name}"]
        alone = singles.get(name)
        gain = None
        if alone:
            gain = 100.0 * (value - alone) / alone * (1.0 if leading.higher_is_better else -1.0)
        rows.append({"task": name, "metric": leading.name, "value": value, "alone": alone, "gain": gain})
    return rows


def gains(runs: Mapping[str, Sequence[Mapping[str, Any]]], delta_m: float | None = None) -> Figure:
    """Bars of how much better each task is than its own model, in per cent, for one run or several side by side.

    Args:
        runs: for each name the rows with `task`, `metric` and `gain` (None for no bar).
        delta_m: the mean, for the title.
    """
    from matplotlib.figure import Figure

    tasks = list(dict.fromkeys((row["task"], row["metric"]) for rows in runs.values() for row in rows))
    figure = Figure(figsize=(2.0 + 1.1 * len(tasks), 3.2), layout="constrained")
    axes = figure.subplots()
    wide = 0.8 / max(1, len(runs))
    for number, (name, rows) in enumerate(runs.items()):
        by_task = {row["task"]: row["gain"] for row in rows}
        heights = [by_task.get(task) or 0.0 for task, _ in tasks]
        places = [place + (number - (len(runs) - 1) / 2) * wide for place in range(len(tasks))]
        axes.bar(places, heights, wide, label=name)
    axes.axhline(0.0, color="black", linewidth=0.8)
    axes.set_xticks(range(len(tasks)), [f"{task}\n{metric}" for task, metric in tasks], fontsize=8)
    axes.set_ylabel("gain over its own model, %")
    axes.set_title("" if delta_m is None else f"delta_m {delta_m:+.2f} %", fontsize=10)
    if any(runs):
        axes.legend(fontsize=8)
    return figure
