"""The results of training and evaluation, as plain data."""

from __future__ import annotations

from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from vpeft.training.optimisation import Optimisation


class Scores(BaseModel):
    """The scores of a model on a data set: values by name, one of which leads.

    `scores.top1` is `scores.values["top1"]`, and `scores.confusion` is `scores.details["confusion"]`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    values: dict[str, float] = Field(description="By the metric's name; shares are fractions of 1.")
    leading: str = Field(description="The metric by which models are compared.")
    higher_is_better: bool = Field(default=True, description="Whether more of the leading metric is better.")
    count: int = Field(description="Samples.")
    details: dict[str, Any] = Field(default_factory=dict, description="More than a number: a confusion matrix.")

    @model_validator(mode="before")
    @classmethod
    def _before_there_were_tasks(cls, given: Any) -> Any:
        """Read results of versions that knew classification only."""
        if not isinstance(given, dict) or "values" in given or "top1" not in given:
            return given
        rest = dict(given)
        values = {name: rest.pop(name) for name in ("top1", "mean_per_class", "loss") if rest.get(name) is not None}
        details = {name: rest.pop(name) for name in ("confusion", "labels") if rest.get(name) is not None}
        return {"values": values, "leading": "top1", "count": rest.get("count"), "details": details}

    @property
    def value(self) -> float:
        """The value of the leading metric."""
        return self.values[self.leading]

    def __getattr__(self, name: str) -> Any:
        if not name.startswith("_"):
            for known in (self.__dict__.get("values", {}), self.__dict__.get("details", {})):
                if name in known:
                    return known[name]
        return super().__getattr__(name)  # type: ignore[misc]

    def sentence(self) -> str:
        """Return the leading metric and the number of samples as text."""
        return f"{self.leading} {shown(self.value)} of {self.count} samples"


def shown(value: float) -> str:
    """Format a metric's value with four significant digits."""
    return f"{value:.4g}" if abs(value) < 1e4 else f"{value:.0f}"


class EpochRecord(BaseModel):
    """One epoch of a run. The training loss is the minimised sum, with augmentation and penalties."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    epoch: int = Field(description="Counted from 1.")
    step: int = Field(description="Optimiser steps taken by its end.")
    lr: float = Field(description="The adapter's rate at its last step (the head's, if only a head is trained).")
    train_loss: float
    train: dict[str, float] = Field(
        default_factory=dict,
        description="Means over its training samples: the task's monitored values and the parts of the loss.",
    )
    gradient_norm: float = Field(description="Mean over its steps of the gradient's norm before clipping.")
    val: dict[str, float] | None = Field(default=None, description="Validation scores by name, if it was validated.")
    seconds: float = Field(description="Wall-clock time, training and validation.")
    images_per_second: float = Field(description="Training samples per second of training, data loading included.")

    @model_validator(mode="before")
    @classmethod
    def _before_there_were_tasks(cls, given: Any) -> Any:
        if not isinstance(given, dict) or "train_accuracy" not in given:
            return given
        rest = dict(given)
        rest["train"] = {"top1": rest.pop("train_accuracy")}
        names = ("top1", "mean_per_class", "loss")
        val = {name: rest.pop(f"val_{name}", None) for name in names}
        rest["val"] = None if val["top1"] is None else {name: value for name, value in val.items() if value is not None}
        return rest


class PeakMemory(BaseModel):
    """The largest memory in use, in bytes."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    process: int | None = Field(description="Resident memory of the whole process since it started.")
    accelerator: int | None = Field(default=None, description="Allocated on the accelerator during this run.")


class Result(BaseModel):
    """The result of one training run."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    state: Literal["done", "stopped", "failed"]
    reason: str | None = Field(default=None, description="The reason why it ended before its last epoch, or none.")
    history: list[EpochRecord]
    steps: int = Field(description="Optimiser steps taken.")
    best_epoch: int | None = Field(default=None, description="The first epoch with the best validation score.")
    kept_epoch: int | None = Field(default=None, description="The epoch whose weights the model has now.")
    val: Scores | None = Field(default=None, description="Validation scores of the final weights.")
    seconds: float = Field(description="Wall-clock time over all sittings.")
    images_per_second: float = Field(description="Training samples per second of training time.")
    peak_memory: PeakMemory
    device: str
    resumed_at: int | None = Field(default=None, description="The step from which this call continued the run.")
    optimisation: Optimisation

    @classmethod
    def of_nothing(
        cls, state: Literal["stopped", "failed"], reason: str, optimisation: Optimisation, device: str
    ) -> Self:
        """Return the result of a run that took no step in this call."""
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
