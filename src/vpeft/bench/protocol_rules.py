"""What a protocol is made of: points, grids, settings of single tasks, and the rule in words."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, SerializerFunctionWrapHandler, model_serializer, model_validator

from vpeft.method_spec import MethodSpec


class Point(BaseModel):
    """One learning rate with one weight decay."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    lr: float
    weight_decay: float


class Grid(BaseModel):
    """The learning rates and weight decays that are tried, all with all."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    lr: tuple[float, ...]
    weight_decay: tuple[float, ...]

    def points(self) -> tuple[Point, ...]:
        """The points, smallest learning rate first; with ties in the score the earlier point wins."""
        return tuple(Point(lr=lr, weight_decay=decay) for lr in sorted(self.lr) for decay in sorted(self.weight_decay))


class TaskRules(BaseModel):
    """What a protocol states of one task alone: a grid (or point), and settings that differ from the common ones."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    grid: Grid | None = None
    optimisation: dict[str, Any] = {}


class Protocol(BaseModel):
    """The rules of one benchmark. `optimisation` states every setting that numbers depend on, but lr and decay.

    `exceptions` gives methods that move the backbone's own weights a grid (or point) of their own: at the learning
    rates of small new layers they destroy the backbone, and would be compared at their worst. `tasks` does so for
    single tasks. The version is a number, or names whose published protocol is followed; `differs` then says what is
    done otherwise here.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    version: int | str
    title: str
    rule: str
    optimisation: dict[str, Any]
    grid: Grid
    exceptions: dict[str, Grid] = {}
    tasks: dict[str, TaskRules] = {}
    differs: tuple[str, ...] = ()
    seeds: int = 3
    search_seed: int = 0
    legacy_best_on_test: bool = False
    validates: bool = False

    @model_serializer(mode="wrap")
    def _without_a_later_default(self, plain: SerializerFunctionWrapHandler) -> dict[str, Any]:
        # Protocols that were written down before these existed keep their digests.
        stated: dict[str, Any] = plain(self)
        for name in ("validates", "tasks", "differs"):
            if not getattr(self, name):
                stated.pop(name, None)
        return stated

    @model_validator(mode="after")
    def _sound(self) -> Protocol:
        both = {"lr", "weight_decay", "seed"} & set(self.optimisation)
        if both:
            raise ValueError(f"{', '.join(sorted(both))} belongs to the grid or the run, not to the optimisation")
        unknown = {name for rules in self.tasks.values() for name in rules.optimisation} - set(self.optimisation)
        if unknown:
            raise ValueError(f"a task has the settings {', '.join(sorted(unknown))}, which the protocol does not state")
        of_tasks = [rules.grid for rules in self.tasks.values() if rules.grid is not None]
        sizes = {len(grid.points()) > 1 for grid in (self.grid, *self.exceptions.values(), *of_tasks)}
        if len(sizes) > 1:
            raise ValueError(
                "either every grid has one point (no search) or none has: anything else is no fair comparison"
            )
        if self.validates and self.searches:
            raise ValueError("a protocol that searches scores its search runs on the validation split already")
        return self

    @property
    def id(self) -> str:
        return f"{self.name}@{self.version}"

    @property
    def searches(self) -> bool:
        """Whether hyper-parameters are chosen on the validation split."""
        return len(self.grid.points()) > 1

    def grid_for(self, methods: Iterable[MethodSpec], task: str = "") -> Grid:
        """The grid of these methods on a task: the exception of the first method that has one, else the task's own.

        Where neither is stated, it is the common grid.
        """
        for method in methods:
            if method.name in self.exceptions:
                return self.exceptions[method.name]
        own = self.tasks.get(task, TaskRules()).grid
        return self.grid if own is None else own

    def settings_for(self, task: str) -> dict[str, Any]:
        """The settings of a task: the common ones with its own."""
        return {**self.optimisation, **self.tasks.get(task, TaskRules()).optimisation}


OF_CLASSIFICATION = {"label_smoothing": 0.0, "mixup": 0.0}


def adamw_protocol(
    name: str,
    title: str,
    *,
    epochs: int,
    grid: Grid,
    own_weights: Grid,
    seeds: int,
    batch: int = 32,
    measure: str = "top-1",
    of_task: Mapping[str, Any] = OF_CLASSIFICATION,
    augmentation: str = "none",
    legacy_best_on_test: bool = False,
    validates: bool = False,
) -> Protocol:
    """A protocol of the family used by the suites here: AdamW, warm-up and cosine, the last epoch counts.

    Args:
        name, title, seeds, legacy_best_on_test, validates: see `Protocol`.
        epochs, batch: of the optimisation. With few epochs the number of steps is what small batches buy: 25 to 32 an
            epoch by default.
        grid, own_weights: of the methods, and of those that move the backbone's own weights.
        measure: the leading metric in words.
        of_task: settings that are options of the task.
        augmentation: of the training images.
    """
    searches = len(grid.points()) > 1
    rule = (
        f"Learning rate and weight decay chosen by the {measure} on the validation split after training on the "
        f"training split (seed 0, {len(grid.points())} points), refitted on both, tested once; the last epoch counts."
        if searches
        else "Learning rate and weight decay as stated, no search; trained on the training split, scored on the "
        "validation split, by which methods are chosen, tested once; the last epoch counts."
        if validates
        else "Learning rate and weight decay as stated, no search; trained on the training and validation splits "
        "together, tested once; the last epoch counts."
    )
    return Protocol(
        name=name,
        version=1,
        title=title,
        rule=rule,
        optimisation={
            "epochs": epochs,
            "batch": batch,
            "accumulate": 1,
            "head_lr": None,
            "warmup": 0.1,
            "schedule": "cosine",
            "min_lr": 1e-5,
            **of_task,
            "clip": 1.0,
            "early_stopping": None,
            "keep": "last",
            "drop_last": False,
            "batch_norm": "frozen",
            "augmentation": augmentation,
        },
        grid=grid,
        # The rates at which AdamW fine-tunes whole weights of a pre-trained backbone are a tenth of an adapter's.
        exceptions={"full_finetuning": own_weights, "partial_k": own_weights},
        seeds=seeds,
        legacy_best_on_test=legacy_best_on_test,
        validates=validates,
    )
