"""What training and evaluation leave behind, as plain data."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field

from vpeft.training.optimisation import Optimisation


class Scores(BaseModel):
    """How a model does on a labelled set. Shares are fractions of 1, exact counts divided once."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    top1: float = Field(description="Share of images whose best class is right.")
    mean_per_class: float = Field(description="Mean of the per-class shares, over the classes that have images here.")
    loss: float = Field(description="Mean cross-entropy in nats, without label smoothing.")
    count: int = Field(description="Images.")
    confusion: list[list[int]] = Field(description="Images by true class (row) and predicted class (column).")
    labels: list[str] | None = Field(default=None, description="Names of the classes, where the data set has them.")

    @property
    def per_class(self) -> list[float | None]:
        """The share of right answers for each class; None for a class without images."""
        return [row[i] / sum(row) if sum(row) else None for i, row in enumerate(self.confusion)]


class EpochRecord(BaseModel):
    """One epoch of a run. Its training loss is what is minimised: with label smoothing, mixup and penalties."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    epoch: int = Field(description="Counted from 1.")
    step: int = Field(description="Optimiser steps taken by its end.")
    lr: float = Field(description="The adapter's rate at its last step (the head's, if only a head is trained).")
    train_loss: float
    train_accuracy: float = Field(description="Share right in training mode, while the weights moved.")
    gradient_norm: float = Field(description="Mean over its steps of the gradient's norm before clipping.")
    val_top1: float | None = None
    val_mean_per_class: float | None = None
    val_loss: float | None = None
    seconds: float = Field(description="Wall-clock time, training and validation.")
    images_per_second: float = Field(description="Training only, data loading included.")


class PeakMemory(BaseModel):
    """The most memory that was in use, in bytes."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    process: int | None = Field(description="Resident memory of the whole process since it started.")
    accelerator: int | None = Field(default=None, description="Allocated on the accelerator during this run.")


class Result(BaseModel):
    """One training run."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    state: Literal["done", "stopped", "failed"]
    reason: str | None = Field(default=None, description="Why it ended before its last epoch, if it did.")
    history: list[EpochRecord]
    steps: int = Field(description="Optimiser steps taken.")
    best_epoch: int | None = Field(default=None, description="The first epoch with the best validation top-1.")
    kept_epoch: int | None = Field(default=None, description="The epoch whose weights the model has now.")
    val: Scores | None = Field(default=None, description="On the validation images, of the weights that were kept.")
    seconds: float = Field(description="Wall-clock time over all sittings.")
    images_per_second: float = Field(description="Training images per second of training time.")
    peak_memory: PeakMemory
    device: str
    resumed_at: int | None = Field(default=None, description="The step at which this sitting took the run up.")
    optimisation: Optimisation

    @classmethod
    def of_nothing(
        cls, state: Literal["stopped", "failed"], reason: str, optimisation: Optimisation, device: str
    ) -> Self:
        """Of a run that this sitting took no step of."""
        return cls(
            state=state,
            reason=reason,
            history=[],
            steps=0,
            seconds=0.0,
            images_per_second=0.0,
            peak_memory=PeakMemory(process=None),
            device=device,
            optimisation=optimisation,
        )
