"""One optimiser step: in parts, under a precision, checked to be finite before it moves a weight."""

from __future__ import annotations

import math
from collections.abc import Callable, Generator
from typing import TYPE_CHECKING, Protocol

import torch
from accelerate import Accelerator
from torch import Tensor
from torch.nn import functional
from torchvision.transforms import v2

from vpeft.errors import VpeftError
from vpeft.training.batches import Batch
from vpeft.training.evaluate import check_labels
from vpeft.training.failures import (
    NonFinite,
    OutOfMemory,
    first_not_finite,
    is_out_of_memory,
    memory_message,
    not_finite_gradients,
)
from vpeft.training.groups import adamw
from vpeft.training.modes import evaluation_mode
from vpeft.training.optimisation import Optimisation
from vpeft.training.randomness import untouched_randomness
from vpeft.training.schedule import rate_at
from vpeft.training.train_state import TrainState

if TYPE_CHECKING:
    from vpeft.injection.tuned_model import TunedModel

# fp16 skips a step whose gradient overflows and halves its loss scale, which starts at 2^16: after 32 in a row nothing
# is left of it.
_SKIPS_IN_A_ROW = 32


# Gives images, is sent logits; gives their loss, is sent whatever when that has been passed backward.
Asking = Generator[Tensor, Tensor | None, None]


class LoneImage(VpeftError):
    """A batch, or a part of one, of a single image where BatchNorm needs two."""


class HasLoss(Protocol):
    """The part of a `Task` that training needs."""

    def loss(self, outputs: Tensor, target: Tensor, *, label_smoothing: float = 0.0) -> Tensor:
        """The mean loss of a batch: outputs (B, K), class indices (B,) or shares (B, K) -> a scalar."""
        ...


class OnRecords(Protocol):
    """A model that runs on numbers of records (B,), and finds the images (B, 3, H, W) that they are of."""

    def __call__(self, numbers: Tensor, /) -> Tensor: ...

    def images(self, numbers: Tensor, /) -> Tensor: ...


def cross_entropy(outputs: Tensor, target: Tensor, *, label_smoothing: float = 0.0) -> Tensor:
    """The loss without a task: logits (B, K), in single precision, with class indices (B,) or shares (B, K)."""
    return functional.cross_entropy(outputs.float(), target, label_smoothing=label_smoothing)


class Stepper:
    """Takes optimiser steps on `tuned` and counts them in a `TrainState`.

    Args:
        tuned: the model, on the accelerator's device; its trainable parameters are taken now.
        settings: of the run.
        machine: device, autocast and, for fp16, the loss scale.
        steps_per_epoch: for the schedule.
        task: states the loss; None is cross-entropy.
        records: runs the model on records of its frozen part; a batch's images are then the numbers of its records.
    """

    def __init__(
        self,
        tuned: TunedModel,
        settings: Optimisation,
        machine: Accelerator,
        steps_per_epoch: int,
        task: HasLoss | None = None,
        records: OnRecords | None = None,
    ) -> None:
        self.model: Callable[[Tensor], Tensor] = tuned if records is None else records
        self.records = records
        self.tuned, self.settings, self.machine, self.steps_per_epoch = tuned, settings, machine, steps_per_epoch
        self.loss = cross_entropy if task is None else task.loss
        self.named = list(tuned.trainable())
        self.optimiser = adamw(self.named, settings)
        # accelerate's optimiser is needed for the loss scale alone; it searches the installed packages at every step.
        self._scaled = machine.prepare_optimizer(self.optimiser) if machine.scaler is not None else None
        self._skipped = 0

    def rate(self, step: int) -> float:
        """The rate of the adapter's groups at `step`, or of the head's where there are no others."""
        groups = self.optimiser.param_groups
        peak = next((group["peak_lr"] for group in groups if group["part"] == "adapter"), groups[0]["peak_lr"])
        return rate_at(step, peak, self.settings, self.steps_per_epoch)

    def asking(self, images: Tensor, labels: Tensor, at: TrainState, *, alone: bool) -> Asking:
        """One step on one batch, images (B, 3, H, W) and labels (B,) on the processor; others may run the model in it.

        Gives the images and is sent their logits, then gives the loss and goes on when its gradient is there. Where
        logits are answered by None, and with `alone`, the model is run here, and nothing more is asked for.

        Raises:
            NonFinite: loss or gradient is not finite; the weights are those from before the step.
            OutOfMemory: with the measured need.
            LoneImage: BatchNorm was given one image.
        """
        said: str | None = None
        try:
            loss, right = yield from self._gradients(images, labels, at, alone)
            self._apply(images, loss, right, at)
        except ValueError as error:
            if "more than 1 value per channel" not in str(error):
                raise
            raise LoneImage(
                f"BatchNorm cannot be trained on a single image, and step {at.step + 1} has {len(images)} in "
                f"{self.settings.accumulate} part(s). Set drop_last = true, another batch, or a smaller accumulate."
            ) from error
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            said = str(error)
        if said is not None:
            # Outside the handler, whose traceback would keep the failed step's tensors alive while memory is measured.
            self.optimiser.zero_grad()
            device: torch.device = self.machine.device
            if device.type == "cuda":
                torch.cuda.empty_cache()
            raise OutOfMemory(memory_message(self.tuned, self._images(images[:1]).to(device), self.settings, said))

    def _gradients(
        self, images: Tensor, labels: Tensor, at: TrainState, alone: bool
    ) -> Generator[Tensor, Tensor | None, tuple[float, int]]:
        """Forward and backward in parts; the loss and how many images were right."""
        settings, device = self.settings, self.machine.device
        for group in self.optimiser.param_groups:
            group["lr"] = rate_at(at.step, group["peak_lr"], settings, self.steps_per_epoch)
        self.tuned.advance(at.step / (settings.epochs * self.steps_per_epoch))
        images, targets = self._mixed(images, labels, at)
        loss = torch.zeros((), device=device)
        right = torch.zeros((), device=device, dtype=torch.int64)
        parts = min(settings.accumulate, len(images))
        for some, wanted in zip(images.tensor_split(parts), targets.tensor_split(parts), strict=True):
            some, wanted = some.to(device, non_blocking=True), wanted.to(device, non_blocking=True)
            given = None if alone else (yield some)
            with self.machine.autocast():
                logits = self.model(some) if given is None else given
            if at.classes is None:
                at.classes = int(logits.shape[1])
            check_labels(labels, at.classes)
            part = self.loss(logits, wanted, label_smoothing=settings.label_smoothing)
            penalty = self.tuned.penalty()
            if penalty is not None:
                part = part + penalty
            # Parts may differ by one image: weighted so, their sum is the mean over the batch.
            part = part * (len(some) / len(images))
            if given is not None:
                yield part
            else:
                torch.autograd.backward(part) if self._scaled is None else self.machine.backward(part)
            loss += part.detach()
            hardest = wanted if wanted.ndim == 1 else wanted.argmax(1)
            right += (logits.detach().argmax(1) == hardest).sum()
        return float(loss), int(right)

    def _mixed(self, images: Tensor, labels: Tensor, at: TrainState) -> Batch:
        """Mixup over the whole batch if it is on: targets become shares (B, K)."""
        if not self.settings.mixup:
            return images, labels
        if at.classes is None:
            with torch.no_grad(), untouched_randomness(), evaluation_mode(self.tuned):
                at.classes = int(self.tuned(images[:1].to(self.machine.device)).shape[1])
        check_labels(labels, at.classes)
        mixed: Batch = v2.MixUp(alpha=self.settings.mixup, num_classes=at.classes)(images, labels)
        return mixed

    def _apply(self, images: Tensor, loss: float, right: int, at: TrainState) -> None:
        """Move the weights if loss and gradient are finite; otherwise keep them, they are good, and raise."""
        parameters = [parameter for _, parameter in self.named]
        scaled = self._scaled is not None
        if self.settings.clip is not None or scaled:
            limit = self.settings.clip if self.settings.clip is not None else math.inf
            if self._scaled is not None:
                self.machine.unscale_gradients()
            norm = float(torch.nn.utils.clip_grad_norm_(parameters, limit))
        else:
            gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
            norm = float(torch.nn.utils.get_total_norm(gradients))
        # With a loss scale an overflowing gradient is ordinary: the step is skipped and the scale lowered.
        if not math.isfinite(loss) or not (math.isfinite(norm) or scaled):
            raise self._not_finite(images, loss, at)
        if self._scaled is None:
            self.optimiser.step()
        else:
            self._scaled.step()
            self._skipped = self._skipped + 1 if self._scaled.step_was_skipped else 0
            if self._skipped >= _SKIPS_IN_A_ROW:
                raise self._not_finite(images, loss, at)
        self.optimiser.zero_grad()
        at.count(loss, right, len(images), norm if math.isfinite(norm) else 0.0)

    def _images(self, images: Tensor) -> Tensor:
        """The images themselves, where a batch holds the numbers of their records."""
        return images if self.records is None else self.records.images(images)

    def _not_finite(self, images: Tensor, loss: float, at: TrainState) -> NonFinite:
        gradients = not_finite_gradients(self.named)
        self.optimiser.zero_grad()
        with self.machine.autocast():
            where = first_not_finite(self.tuned, self._images(images).to(self.machine.device))
        if where is None and gradients:
            more = f" and {len(gradients) - 1} more" if len(gradients) > 1 else ""
            where = f"the gradient of {gradients[0]!r}{more}"
        if where is None:
            where = f"the loss ({loss}): the logits are finite, so it is the loss itself, or a method's penalty"
        return NonFinite(
            f"Step {at.step + 1} (epoch {at.epoch + 1}) met numbers that are not finite. "
            f"The first such tensor is {where}. Lower lr (now {self.settings.lr:g}), clip the gradient "
            "(clip = 1.0), or use more precision."
        )
