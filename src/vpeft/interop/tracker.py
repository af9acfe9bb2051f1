"""Where a training's numbers go beside its record: a small protocol that fits every tracker."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from ..arguments import PATH, TEXT, require
from ..errors import VpeftError, nearest

if TYPE_CHECKING:
    from ..injection.tuned_model import TunedModel
    from ..training.result import EpochRecord


class Tracker(Protocol):
    """Anything that takes named numbers with the epoch that they belong to."""

    def start(self, facts: Mapping[str, Any]) -> None:
        """Begin a run with its settings, plain data."""

    def numbers(self, values: Mapping[str, float], step: int) -> None:
        """Take numbers of one step."""

    def finish(self) -> None:
        """End the run, so that everything is written."""


class UnknownTracker(VpeftError):
    """There is no such tracker."""


@cache
def all_trackers() -> dict[str, Callable[[Path, str], Tracker]]:
    """The trackers by name, sorted: each file NAME_tracker.py of this folder holds one class NameTracker."""
    package = importlib.import_module(__package__ or "vpeft.interop")
    names = sorted(found.name for found in pkgutil.iter_modules(package.__path__) if found.name.endswith("_tracker"))
    return {
        name.removesuffix("_tracker"): getattr(
            importlib.import_module(f"{package.__name__}.{name}"), "".join(map(str.capitalize, name.split("_")))
        )
        for name in names
    }


def tracker(kind: str, folder: str | Path, name: str = "vpeft") -> Tracker:
    """Make the tracker `kind` that writes into a folder; nothing is sent anywhere unless its own settings say so.

    Args:
        kind: tensorboard, wandb, mlflow or trackio.
        folder: where it writes; trackio has a place of its own.
        name: of the run.

    Raises:
        UnknownTracker: with the nearest name.
        MissingExtra: its package is not installed.
    """
    require("tracker(kind, folder)", kind=(kind, TEXT), folder=(folder, PATH))
    if kind not in all_trackers():
        raise UnknownTracker(f"There is no tracker {kind!r}. {nearest(kind, all_trackers())}")
    return all_trackers()[kind](Path(folder), name)


class Tracked:
    """Hands each epoch of a training to a tracker: pass it to `fit` as `after_epoch`, and call `finish` at the end.

    with Tracked(tracker("tensorboard", "runs/a"), {"method": "lora"}) as tracked:
        vpeft.fit(tuned, train, val, after_epoch=tracked)
    """

    def __init__(self, to: Tracker, facts: Mapping[str, Any] | None = None) -> None:
        self.to = to
        to.start(facts or {})

    def __call__(self, tuned: TunedModel, record: EpochRecord) -> None:
        self.to.numbers(numbers_of(record), record.epoch)

    def finish(self, scores: Mapping[str, float] | None = None, step: int = 0) -> None:
        """End the run, with the scores of the test split if there are some."""
        if scores:
            self.to.numbers({f"test/{name}": float(value) for name, value in scores.items()}, step)
        self.to.finish()

    def __enter__(self) -> Tracked:
        return self

    def __exit__(self, *error: object) -> None:
        self.to.finish()


def numbers_of(record: EpochRecord) -> dict[str, float]:
    """The numbers of an epoch by the names that trackers group: `train/loss`, `val/accuracy`, `time/seconds`."""
    found = {"train/loss": record.train_loss, "train/lr": record.lr}
    found |= {f"train/{name}": value for name, value in record.train.items()}
    found |= {f"val/{name}": value for name, value in (record.val or {}).items()}
    found |= {"time/seconds": record.seconds, "time/images_per_second": record.images_per_second}
    return {name: float(value) for name, value in found.items()}
