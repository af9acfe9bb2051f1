"""The state of a training run: counters and sums from which a resumed run continues, exact through JSON."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Self

from vpeft.training.result import EpochRecord, Scores


@dataclass
class TrainState:
    """Counters of the run (from 0) and sums over the present epoch."""

    step: int = 0
    epoch: int = 0
    batch: int = 0  # batches of the present epoch that are done
    # Sums over the present epoch.
    loss_sum: float = 0.0
    norm_sum: float = 0.0
    monitored: dict[str, float] = field(default_factory=dict)
    shown: dict[str, int] = field(default_factory=dict)  # images of the batches that had each monitored value
    images: int = 0
    epoch_seconds: float = 0.0
    epoch_train_seconds: float = 0.0
    # Over the run.
    all_images: int = 0
    seconds: float = 0.0
    train_seconds: float = 0.0
    history: list[EpochRecord] = field(default_factory=list)
    best_epoch: int | None = None
    best_value: float | None = None
    validated_epoch: int | None = None
    without_gain: int = 0
    kept_epoch: int | None = None
    reason: str | None = None
    finished: bool = False
    mark: float = field(default_factory=time.perf_counter)  # when the clock was last read; not stored

    def as_dict(self) -> dict[str, Any]:
        """Return JSON values; floats keep their bits."""
        values = asdict(self)
        values.pop("mark")
        values["history"] = [record.model_dump(mode="json") for record in self.history]
        return values

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """Restore the result of `as_dict`."""
        known = {f.name for f in fields(cls)}
        standing = cls(**{name: value for name, value in values.items() if name in known})
        standing.history = [EpochRecord.model_validate(record) for record in values["history"]]
        # Of a time when every batch had every value.
        standing.shown = {name: standing.shown.get(name, standing.images) for name in standing.monitored}
        return standing

    @property
    def mean_loss(self) -> float:
        """Mean loss over the epoch so far."""
        return self.loss_sum / max(1, self.images)

    @property
    def means(self) -> dict[str, float]:
        """Means of the monitored values over the epoch so far, each over the batches that had it."""
        return {name: value / max(1, self.shown[name]) for name, value in self.monitored.items()}

    @property
    def images_per_second(self) -> float:
        """Images per second of training time, over the run."""
        return self.all_images / self.train_seconds if self.train_seconds else 0.0

    def count(self, loss: float, monitored: Mapping[str, float], images: int, norm: float) -> None:
        """Count a step; `monitored` holds sums over its samples."""
        self.step += 1
        self.batch += 1
        self.loss_sum += loss * images
        self.norm_sum += norm
        for name, value in monitored.items():
            self.monitored[name] = self.monitored.get(name, 0.0) + value
            self.shown[name] = self.shown.get(name, 0) + images
        self.images += images
        self.all_images += images

    def count_time(self, training: bool = True) -> None:
        """Add the time since the last call."""
        now = time.perf_counter()
        passed, self.mark = now - self.mark, now
        self.seconds += passed
        self.epoch_seconds += passed
        if training:
            self.train_seconds += passed
            self.epoch_train_seconds += passed

    def is_best(self, epoch: int, value: float, better: Callable[[float, float | None], bool]) -> bool:
        """Count a validation; return whether it is the best so far, by `better(value, than)`."""
        self.validated_epoch = epoch
        if better(value, self.best_value):
            self.best_epoch, self.best_value, self.without_gain = epoch, value, 0
            return True
        self.without_gain += 1
        return False

    def record(self, epoch: int, lr: float, scores: Scores | None) -> EpochRecord:
        """Return the record of the finished epoch."""
        return EpochRecord(
            epoch=epoch,
            step=self.step,
            lr=lr,
            train_loss=self.mean_loss,
            train=self.means,
            gradient_norm=self.norm_sum / max(1, self.batch),
            val=None if scores is None else scores.values,
            seconds=self.epoch_seconds,
            images_per_second=self.images / self.epoch_train_seconds if self.epoch_train_seconds else 0.0,
        )

    def next_epoch(self, record: EpochRecord) -> None:
        """Store the record and reset the sums for the next epoch."""
        self.history.append(record)
        self.epoch += 1
        self.batch = self.images = 0
        self.monitored, self.shown = {}, {}
        self.loss_sum = self.norm_sum = self.epoch_seconds = self.epoch_train_seconds = 0.0
