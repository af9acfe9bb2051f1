"""Protocols: the exact rules by which a number is made, each under an id with a version.

A protocol never changes: whatever alters a number gets a new version (a test keeps the digest of each). Two are told
apart by whether hyper-parameters are searched:

- with a grid: every point of the grid is trained on the training split and scored on the validation split with the
  search seed, once per task and method; the best point is refitted on both splits together for every seed and tested
  once;
- without: the stated point is trained on both splits together for every seed and tested once;
- without, and `validates`: the stated point is trained on the training split alone, scored on the validation split, by
  which methods can be chosen, and tested once. It costs a third of the time, and is for demos.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from pydantic import BaseModel, ConfigDict, SerializerFunctionWrapHandler, model_serializer, model_validator

from vpeft.bench.record import Chosen, RunRecord, State, title_of
from vpeft.errors import VpeftError, nearest
from vpeft.method_spec import MethodSpec


class UnknownProtocol(VpeftError):
    """No protocol has this id."""


class SearchFailed(VpeftError):
    """No point of the grid gave a score, so there is nothing to refit."""


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


class Protocol(BaseModel):
    """The rules of one benchmark. `optimisation` states every setting that numbers depend on, but lr and decay.

    `exceptions` gives methods that move the backbone's own weights a grid (or point) of their own: at the learning
    rates of small new layers they destroy the backbone, and would be compared at their worst.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    version: int
    title: str
    rule: str
    optimisation: dict[str, Any]
    grid: Grid
    exceptions: dict[str, Grid] = {}
    seeds: int = 3
    search_seed: int = 0
    legacy_best_on_test: bool = False
    validates: bool = False

    @model_serializer(mode="wrap")
    def _without_a_later_default(self, plain: SerializerFunctionWrapHandler) -> dict[str, Any]:
        # Protocols that were written down before `validates` existed keep their digests.
        stated: dict[str, Any] = plain(self)
        if not self.validates:
            stated.pop("validates", None)
        return stated

    @model_validator(mode="after")
    def _sound(self) -> Protocol:
        both = {"lr", "weight_decay", "seed"} & set(self.optimisation)
        if both:
            raise ValueError(f"{', '.join(sorted(both))} belongs to the grid or the run, not to the optimisation")
        sizes = {len(grid.points()) > 1 for grid in (self.grid, *self.exceptions.values())}
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

    def grid_for(self, methods: Iterable[MethodSpec]) -> Grid:
        """The grid of these methods: the exception of the first that has one, else the common grid."""
        for method in methods:
            if method.name in self.exceptions:
                return self.exceptions[method.name]
        return self.grid


def choose(candidates: Sequence[tuple[Point, RunRecord | None]]) -> Chosen:
    """The point with the best validation score, by the task's leading metric, and what it was chosen from.

    Ties go to the lower validation loss, then to the smaller learning rate, then to the smaller decay (the order of
    `Grid.points`). Points whose run failed or scored NaN are passed over. Raises SearchFailed when none is left.
    """
    best: tuple[float, float] | None = None
    winner: tuple[Point, RunRecord] | None = None
    for point, record in candidates:
        if record is None or record.state is not State.done or record.scores is None:
            continue
        if record.scores.split != "val":
            raise SearchFailed(
                f"The search run {record.key} has scores on the split {record.scores.split!r}. "
                "Hyper-parameters are chosen on the validation split only."
            )
        if math.isnan(record.scores.value):
            continue
        rank = (record.scores.sign * record.scores.value, -record.scores.values.get("loss", math.inf))
        if best is None or rank > best:
            best, winner = rank, (point, record)
    if winner is None:
        errors = {record.error.message for _, record in candidates if record is not None and record.error is not None}
        said = f" The errors: {'; '.join(sorted(errors))}" if errors else ""
        raise SearchFailed(
            f"None of the {len(candidates)} points of the grid gave a score, so nothing is refitted.{said}"
        )
    point, record = winner
    assert record.scores is not None
    metric = title_of(record.scores.leading)
    return Chosen(
        lr=point.lr,
        weight_decay=point.weight_decay,
        rule=f"best validation {metric} of {len(candidates)} points, seed {record.identity.seed}",
        searched=tuple(found.key for _, found in candidates if found is not None),
        validation=record.scores.value,
    )


_OF_CLASSIFICATION = {"label_smoothing": 0.0, "mixup": 0.0}


def _protocol(
    name: str,
    title: str,
    *,
    epochs: int,
    grid: Grid,
    own_weights: Grid,
    seeds: int,
    batch: int = 32,
    measure: str = "top-1",
    of_task: Mapping[str, Any] = _OF_CLASSIFICATION,
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


_SEARCHED = Grid(lr=(5e-4, 2e-3, 8e-3), weight_decay=(1e-4,))
_SEARCHED_OWN = Grid(lr=(5e-5, 2e-4, 8e-4), weight_decay=(1e-4,))
# In 250 to 320 steps probes and prompts want higher rates. One weight decay: over a whole run at the middle rate even
# 1e-2 shrinks a weight by 0.6 % only.
_WIDE = Grid(lr=(1e-3, 4e-3, 1.6e-2), weight_decay=(1e-4,))
_WIDE_OWN = Grid(lr=(1e-4, 4e-4, 1.6e-3), weight_decay=(1e-4,))
_BRIEF = Grid(lr=(2e-3, 1e-2), weight_decay=(1e-4,))
_BRIEF_OWN = Grid(lr=(2e-4, 1e-3), weight_decay=(1e-4,))
_STATED = Grid(lr=(2e-3,), weight_decay=(1e-4,))
_STATED_OWN = Grid(lr=(2e-4,), weight_decay=(1e-4,))
# Of dense prediction: 50 to 75 steps an epoch, since heads are learnt from nothing.
_DENSE: dict[str, Any] = {"batch": 8, "measure": "leading metric", "of_task": {}}

# Of clips: 30 steps an epoch of 480 clips.
_CLIPS: dict[str, Any] = {"batch": 16}

PROTOCOLS: dict[str, Protocol] = {
    rules.id: rules
    for rules in (
        _protocol("digits", "Digits", epochs=20, grid=_SEARCHED, own_weights=_SEARCHED_OWN, seeds=3),
        _protocol("digits-quick", "Digits, no search", epochs=15, grid=_STATED, own_weights=_STATED_OWN, seeds=3),
        _protocol("digits-smoke", "Digits, one look", epochs=3, grid=_STATED, own_weights=_STATED_OWN, seeds=1),
        _protocol("digits-demo", "Digits, the demo", epochs=8, grid=_BRIEF, own_weights=_BRIEF_OWN, seeds=1),
        _protocol("pocket", "pocket", epochs=10, grid=_WIDE, own_weights=_WIDE_OWN, seeds=3),
        _protocol("pocket-quick", "pocket, no search", epochs=6, grid=_STATED, own_weights=_STATED_OWN, seeds=1),
        _protocol("pocket-demo", "pocket, the demo", epochs=8, grid=_STATED, own_weights=_STATED_OWN, seeds=1),
        _protocol("pocket-smoke", "pocket, one look", epochs=3, grid=_STATED, own_weights=_STATED_OWN, seeds=1),
        _protocol("pocket-dense", "pocket-dense", epochs=8, grid=_WIDE, own_weights=_WIDE_OWN, seeds=3, **_DENSE),
        _protocol(
            "pocket-dense-quick",
            "pocket-dense, no search",
            epochs=8,
            grid=_STATED,
            own_weights=_STATED_OWN,
            seeds=1,
            **_DENSE,
        ),
        _protocol(
            "pocket-dense-demo",
            "pocket-dense, the demo",
            epochs=8,
            grid=_STATED,
            own_weights=_STATED_OWN,
            seeds=1,
            validates=True,
            **_DENSE,
        ),
        _protocol(
            "pocket-dense-smoke",
            "pocket-dense, one look",
            epochs=2,
            grid=_STATED,
            own_weights=_STATED_OWN,
            seeds=1,
            **_DENSE,
        ),
        _protocol("pocket-multi", "pocket-multi", epochs=8, grid=_WIDE, own_weights=_WIDE_OWN, seeds=3, **_DENSE),
        _protocol(
            "pocket-multi-quick",
            "pocket-multi, no search",
            epochs=8,
            grid=_STATED,
            own_weights=_STATED_OWN,
            seeds=1,
            **_DENSE,
        ),
        _protocol(
            "pocket-multi-smoke",
            "pocket-multi, one look",
            epochs=2,
            grid=_STATED,
            own_weights=_STATED_OWN,
            seeds=1,
            **_DENSE,
        ),
        _protocol("pocket-video", "pocket-video", epochs=15, grid=_WIDE, own_weights=_WIDE_OWN, seeds=3, **_CLIPS),
        _protocol(
            "pocket-video-quick",
            "pocket-video, no search",
            epochs=15,
            grid=_STATED,
            own_weights=_STATED_OWN,
            seeds=1,
            **_CLIPS,
        ),
        _protocol(
            "pocket-video-smoke",
            "pocket-video, one look",
            epochs=2,
            grid=_STATED,
            own_weights=_STATED_OWN,
            seeds=1,
            **_CLIPS,
        ),
    )
}


def protocol(name: str) -> Protocol:
    """The protocol with this id (`pocket@1`). Raises UnknownProtocol."""
    try:
        return PROTOCOLS[name]
    except KeyError:
        raise UnknownProtocol(f"There is no protocol {name!r}. {nearest(name, PROTOCOLS)}") from None
