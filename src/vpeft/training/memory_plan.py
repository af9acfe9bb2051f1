"""Predict the memory of training from one forward pass of fake tensors, without weights."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import nn
from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException

from vpeft.acceleration.acceleration import NotApplicable
from vpeft.acceleration.apply import ACCELERATIONS
from vpeft.acceleration.names import wanted
from vpeft.acceleration.patches import Patches
from vpeft.batch import Batch, run_model
from vpeft.errors import VpeftError
from vpeft.training.fake_tensors import without_numbers
from vpeft.training.memory import saved_bytes, tensors_of
from vpeft.training.optimisation import Precision
from vpeft.training.sizes import readable

if TYPE_CHECKING:
    from vpeft.injection.tuned_model import TunedModel
    from vpeft.task import Task

DTYPES: dict[Precision, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class CannotPlan(VpeftError):
    """The memory of a step depends on the values of a batch, not on shapes alone."""


class MemoryPlan(BaseModel):
    """The bytes of one step. Activations are the tensors saved for the backward pass of the images in one part."""

    model_config = ConfigDict(frozen=True)

    batch: int = Field(description="Images at a time.")
    precision: Precision = "fp32"
    accelerations: list[str] = Field(default_factory=list, description="Those in use.")
    weights: int = Field(description="Of backbone, adapter and head, buffers included.")
    gradients: int = Field(description="Of what is trained.")
    optimiser: int = Field(description="AdamW's two moments of what is trained.")
    activations: int = Field(description="Kept for the backward pass.")
    per_image: int = Field(description="Share of one image in the activations.")

    @property
    def total(self) -> int:
        """The sum. The peak of a process is higher by the temporary memory of a layer and of torch itself."""
        return self.weights + self.gradients + self.optimiser + self.activations

    def largest_batch(self, limit: int) -> int:
        """Return the largest number of images at a time whose total stays within `limit` bytes; 0 if none does."""
        fixed = self.total - self.per_image * self.batch
        return max(0, (limit - fixed) // max(1, self.per_image))

    def with_batch(self, batch: int) -> MemoryPlan:
        """Return the plan for another number of images at a time."""
        more = self.per_image * (batch - self.batch)
        return self.model_copy(update={"batch": batch, "activations": self.activations + more})

    def sentence(self) -> str:
        """Return the numbers in one line."""
        with_them = f", with {', '.join(self.accelerations)}" if self.accelerations else ""
        return (
            f"memory for a batch of {self.batch} in {self.precision}{with_them}: {readable(self.weights)} weights,"
            f" {readable(self.gradients)} gradients, {readable(self.optimiser)} optimiser,"
            f" {readable(self.activations)} kept for the backward pass ({readable(self.per_image)} per image);"
            f" together {readable(self.total)}"
        )


def plan_memory(
    tuned: TunedModel,
    batch: int,
    *,
    precision: Precision = "fp32",
    acceleration: str = "off",
    device: str = "cpu",
    task: Task | None = None,
    sample: Any = None,
) -> MemoryPlan:
    """Predict the memory of one step on `batch` images. `tuned` may be on the meta device and does not change.

    The pass uses this number of images, so tensors that do not grow with the batch (a weight that is computed in each
    step) are counted once. Accelerations are applied without the test that precedes a run, which could reject one.

    Args:
        tuned: the model.
        batch: images at a time.
        precision, acceleration, device: of the step.
        task: of `sample`; that of the model unless stated.
        sample: (input, target) of the task. With it the batch has its size and targets, and the loss is counted too:
            for maps of many classes that is a large part. Without it inputs are blank, of the backbone's own size.

    Raises:
        UnknownAcceleration: a name does not exist.
        CannotPlan: the head chooses by values, as detectors do in training.
    """
    modes = [(module, module.training) for module in tuned.modules()]
    inputs, learnt = tuned.description.inputs, task or tuned.task

    def made(images: int) -> Batch:
        if sample is None or learnt is None:
            return Batch(inputs.blank(images, device))
        return learnt.collate([sample] * images).mapped(lambda tensor: mode.from_tensor(tensor).to(device))

    counted = {}
    try:
        tuned.train()
        with warnings.catch_warnings(), without_numbers(tuned, device) as mode:
            warnings.simplefilter("ignore")
            autocast = torch.autocast(device, DTYPES[precision], enabled=precision != "fp32")
            with autocast, _installed(tuned, wanted(acceleration)) as used:
                casts = _casts(tuned)
                for images in (batch, batch + 1):
                    with mode:
                        run = run_model if sample is None or learnt is None else _with_loss(learnt, device)
                        counted[images] = saved_bytes(tuned, made(images), run)
    except (DataDependentOutputException, DynamicOutputShapeException) as error:
        raise CannotPlan(
            "The memory of a step depends on the values of the batch here, so shapes alone do not tell it. Set"
            ' fit_memory (for example "8GB"), which measures on samples of the training data.'
        ) from error
    finally:
        for module, training in modes:
            module.training = training
    return _plan(tuned, batch, precision, used, casts, counted[batch], counted[batch + 1] - counted[batch])


def measure_memory(
    tuned: TunedModel, sample: Any, batch: int, *, task: Task, precision: Precision, accelerations: list[str]
) -> MemoryPlan:
    """Measure with two and three copies of a sample and extrapolate to `batch`; exact if memory grows linearly.

    The loss is counted too. `tuned` is in training mode, with its accelerations and under autocast.
    """
    device = next(tuned.parameters()).device
    run = _with_loss(task, device.type)
    two, three = (saved_bytes(tuned, task.collate([sample] * count).to(device), run) for count in (2, 3))
    each = max(0, three - two)
    return _plan(tuned, batch, precision, accelerations, _casts(tuned), two + each * (batch - 2), each)


def largest(samples: list[Any]) -> Any:
    """The sample whose input has most numbers."""
    return max(samples, key=lambda sample: sum(tensor.numel() for tensor in tensors_of(sample[0])))


def _with_loss(task: Task, device: str) -> Callable[[nn.Module, Batch], Any]:
    """A forward pass and the loss, which is computed outside autocast, as in training."""

    def run(model: nn.Module, batch: Batch) -> Any:
        outputs = task.run(model, batch)
        with torch.autocast(device, enabled=False):
            return task.loss(outputs, batch)

    return run


def _casts(tuned: TunedModel) -> int:
    """Return the bytes of copies of weights in the precision of the forward pass."""
    return sum(t.numel() * t.element_size() for one in tuned.modules() for t in one.__dict__.get("vpeft_cast", ()))


def _plan(
    tuned: TunedModel, batch: int, precision: Precision, used: list[str], casts: int, activations: int, each: int
) -> MemoryPlan:
    trained = sum(p.numel() * p.element_size() for _, p in tuned.trainable())
    weights = sum(t.numel() * t.element_size() for t in (*tuned.parameters(), *tuned.buffers()))
    return MemoryPlan(
        batch=batch,
        precision=precision,
        accelerations=used,
        weights=weights + casts,
        gradients=trained,
        optimiser=2 * trained,
        activations=activations,
        per_image=each,
    )


@contextmanager
def _installed(tuned: TunedModel, names: list[str]) -> Iterator[list[str]]:
    changes, used = Patches(tuned), list[str]()
    try:
        for idea in ACCELERATIONS:
            before = len(changes)
            if idea.name not in names:
                continue
            try:
                idea.install(tuned, changes)
            except NotApplicable:
                changes.undo(before)
            else:
                used.append(idea.name)
        yield used
    finally:
        changes.undo()
