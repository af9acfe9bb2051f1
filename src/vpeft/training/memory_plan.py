"""Predict the memory of training from one forward pass of fake tensors, without weights."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from vpeft.acceleration.acceleration import NotApplicable
from vpeft.acceleration.apply import ACCELERATIONS
from vpeft.acceleration.names import wanted
from vpeft.acceleration.patches import Patches
from vpeft.training.fake_tensors import without_numbers
from vpeft.training.memory import saved_bytes
from vpeft.training.optimisation import Precision
from vpeft.training.sizes import readable

if TYPE_CHECKING:
    from vpeft.injection.tuned_model import TunedModel

DTYPES: dict[Precision, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


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
    tuned: TunedModel, batch: int, *, precision: Precision = "fp32", acceleration: str = "off", device: str = "cpu"
) -> MemoryPlan:
    """Predict the memory of one step on `batch` images. `tuned` may be on the meta device and does not change.

    The pass uses this number of images, so tensors that do not grow with the batch (a weight that is computed in each
    step) are counted once. Accelerations are applied without the test that precedes a run, which could reject one.

    Raises:
        UnknownAcceleration: a name does not exist.
    """
    modes = [(module, module.training) for module in tuned.modules()]
    inputs = tuned.description.inputs
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
                        counted[images] = saved_bytes(tuned, inputs.blank(images, device))
    finally:
        for module, training in modes:
            module.training = training
    return _plan(tuned, batch, precision, used, casts, counted[batch], counted[batch + 1] - counted[batch])


def measure_memory(
    tuned: TunedModel, images: Tensor, batch: int, *, precision: Precision, accelerations: list[str]
) -> MemoryPlan:
    """Measure with two and three of `images` and extrapolate to `batch`; exact if memory grows linearly.

    `tuned` is in training mode, with its accelerations and under autocast.
    """
    two, three = (saved_bytes(tuned, images[:count]) for count in (2, 3))
    each = max(0, three - two)
    return _plan(tuned, batch, precision, accelerations, _casts(tuned), two + each * (batch - 2), each)


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
