"""One optimiser step: forward and backward in parts, in a precision, with a check for finite numbers."""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Iterable
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from vpeft.batch import Batch
from vpeft.errors import VpeftError
from vpeft.task import Task
from vpeft.training.average import MovingAverage
from vpeft.training.failures import (
    NonFinite,
    OutOfMemory,
    first_not_finite,
    is_out_of_memory,
    memory_message,
    not_finite_gradients,
)
from vpeft.training.gradient_sum import GradientSum
from vpeft.training.groups import make_optimiser
from vpeft.training.optimisation import Optimisation
from vpeft.training.processes import ALONE, Processes
from vpeft.training.randomness import derived_seed, seed_everything
from vpeft.training.schedule import rate_at
from vpeft.training.train_state import TrainState

if TYPE_CHECKING:
    from vpeft.injection.tuned_model import TunedModel

# fp16 skips a step whose gradient overflows and halves its loss scale, which starts at 2^16: after 32 in a row nothing
# is left of it.
_SKIPS_IN_A_ROW = 32


# Gives inputs, is sent outputs; gives their loss, is sent whatever when that has been passed backward.
Asking = Generator[Tensor, Any, None]


class LoneImage(VpeftError):
    """A batch, or a part of one, has a single image, but BatchNorm needs two."""


class OnRecords(Protocol):
    """A model on cached outputs: it takes row numbers (B,), and can read their images (B, C, H, W) again."""

    def __call__(self, numbers: Tensor, /, *, batch: Batch | None = None) -> Any: ...

    def images(self, numbers: Tensor, /) -> Tensor: ...


class NothingToLearn(VpeftError):
    """Neither the task nor a method gives a loss."""


def total(parts: Iterable[Tensor]) -> Tensor:
    """Return the sum of a loss's parts; a single part is returned unchanged.

    Raises:
        NothingToLearn: there is no part.
    """
    found = [*parts]
    if not found:
        raise NothingToLearn(
            "Nothing is learnt: the task adds no loss, and none of the methods does. Choose a loss of the task."
        )
    summed = found[0]
    for part in found[1:]:
        summed = summed + part
    return summed


class Stepper:
    """Takes optimiser steps on `tuned` and counts them in a `TrainState`.

    Args:
        tuned: the model, on the accelerator's device; its trainable parameters are collected now.
        settings: the settings of the run.
        machine: device, autocast and, for fp16, the loss scale.
        steps_per_epoch: for the schedule.
        task: defines the loss.
        records: the model on cached outputs of its frozen part; the inputs of a batch are then row numbers of the
            cache.
        processes: the processes that compute a share of each batch.

    Attributes:
        sum: adds up the gradients of all processes; None for one process.
        asked_to_stop: whether some process was asked to stop by the end of the last step.
    """

    def __init__(
        self,
        tuned: TunedModel,
        settings: Optimisation,
        machine: Accelerator,
        steps_per_epoch: int,
        task: Task,
        records: OnRecords | None = None,
        processes: Processes = ALONE,
    ) -> None:
        self.model: Callable[..., Any] = tuned if records is None else records
        self.records = records
        self.tuned, self.settings, self.machine, self.steps_per_epoch = tuned, settings, machine, steps_per_epoch
        self.task = task
        self.named = list(tuned.trainable())
        self.optimiser = make_optimiser(self.named, settings, tuned.rate_factors())
        self.average = None if settings.ema is None else MovingAverage(self.named, settings.ema)
        # accelerate's optimiser is needed for the loss scale alone; it searches the installed packages at every step.
        self._scaled = machine.prepare_optimizer(self.optimiser) if machine.scaler is not None else None
        self._skipped = 0
        self.processes = processes
        self.sum = GradientSum(self.named, processes, machine.device) if processes.several else None
        self.asked_to_stop = False

    def rate(self, step: int) -> float:
        """Return the rate of the adapter's groups at `step`, or of the head's if there are no others."""
        groups = self.optimiser.param_groups
        peak = next((group["peak_lr"] for group in groups if group["part"] == "adapter"), groups[0]["peak_lr"])
        return rate_at(step, peak, self.settings, self.steps_per_epoch)

    def asking(
        self, batch: Batch, at: TrainState, *, alone: bool, images: int | None = None, stop: bool = False
    ) -> Asking:
        """Take one step on one batch (on the CPU) as a generator, so that a caller can run the model for several runs.

        It yields the inputs and receives the model's outputs; then it yields the loss and continues when the gradients
        exist. If it receives None for outputs, or with `alone`, it runs the model itself and yields nothing more.

        Args:
            batch: the batch, or this process's share of it.
            at: the counters.
            alone: see above.
            images: number of samples in the share; None for all of the batch. With 0, its one sample has no weight.
            stop: whether this process was asked to stop; `asked_to_stop` then says so in all processes.

        Raises:
            NonFinite: loss or gradient is not finite; the weights are those from before the step.
            OutOfMemory: with the measured need.
            LoneImage: BatchNorm was given one image.
        """
        said: str | None = None
        try:
            if self.sum is not None:
                # The same after a resumption, and other numbers in each process.
                seed_everything(derived_seed(self.settings.seed, "step", at.step, self.processes.number))
            loss, monitored = yield from self._gradients(batch, at, alone)
            count = len(batch)
            if self.sum is not None:
                here = count if images is None else images
                whole = self.sum(here, loss, monitored, stop)
                count, loss, monitored, self.asked_to_stop = whole.images, whole.loss, whole.monitored, whole.stop
                self.sum.average(_moving_statistics(self.tuned), here / count)
            self._apply(batch, loss, monitored, at, count)
        except ValueError as error:
            if "more than 1 value per channel" not in str(error):
                raise
            raise LoneImage(
                f"BatchNorm cannot be trained on a single image, and step {at.step + 1} has {len(batch)} in "
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
            sample = self._inputs(batch[:1])
            if not isinstance(sample, Tensor):
                raise OutOfMemory(f"A step on a batch of {len(batch)} needs more memory than there is: {said}")
            raise OutOfMemory(memory_message(self.tuned, sample.to(device), self.settings, said))

    def _gradients(
        self, batch: Batch, at: TrainState, alone: bool
    ) -> Generator[Tensor, Any, tuple[float, dict[str, float]]]:
        """Run forward and backward in parts; return the loss and the sums of monitored values and loss parts."""
        settings, device = self.settings, self.machine.device
        for group in self.optimiser.param_groups:
            group["lr"] = rate_at(at.step, group["peak_lr"], settings, self.steps_per_epoch)
        self.tuned.advance(at.step / (settings.epochs * self.steps_per_epoch))
        batch = self.task.augment(batch)
        loss = torch.zeros((), device=device)
        sums: dict[str, Tensor] = {}
        for there in batch.split(settings.accumulate):
            part = there.to(device, non_blocking=True)
            given = None if alone else (yield part.inputs)
            with self.machine.autocast():
                outputs = self.task.run(self.model, part) if given is None else given
            self.task.check_batch(outputs, there)
            losses = self.task.loss(outputs, part)
            added = (
                self.tuned.penalty(),
                self.tuned.extra_loss(outputs, partial(self._task_loss, part)),
                self._batch_loss(outputs, part),
            )
            whole = total([*losses.values(), *(one for one in added if one is not None)])
            # Parts may differ by one sample: weighted so, their sum is the mean over the batch.
            whole = whole * (len(part) / len(batch))
            if given is not None:
                yield whole
            else:
                torch.autograd.backward(whole) if self._scaled is None else self.machine.backward(whole)
            loss += whole.detach()
            with torch.no_grad():
                seen = dict(self.task.monitor(outputs, part))
                if len(losses) > 1:
                    seen |= {name: value.detach() * len(part) for name, value in losses.items()}
            for name, value in seen.items():
                sums[name] = sums[name] + value if name in sums else value
        return float(loss), {name: float(value) for name, value in sums.items()}

    def _batch_loss(self, outputs: Any, part: Batch) -> Tensor | None:
        """Return what methods add that run the model again, in the precision of the forward pass."""
        device = self.machine.device
        with self.machine.autocast():
            return self.tuned.batch_loss(outputs, lambda: part.with_(inputs=self._inputs(part)).to(device))

    def _task_loss(self, part: Batch, outputs: Any) -> Tensor:
        """Return the task's loss of other outputs for the same part of a batch."""
        return total(self.task.loss(outputs, part).values())

    def _apply(self, batch: Batch, loss: float, monitored: dict[str, float], at: TrainState, count: int) -> None:
        """Update the weights if loss and gradient are finite; otherwise leave them and raise.

        `count` is the number of samples over all processes.
        """
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
            raise self._not_finite(batch, loss, at)
        if math.isfinite(norm):  # a step whose gradient overflowed is skipped
            self.tuned.after_backward()
        if self._scaled is None:
            self.optimiser.step()
        else:
            self._scaled.step()
            self._skipped = self._skipped + 1 if self._scaled.step_was_skipped else 0
            if self._skipped >= _SKIPS_IN_A_ROW:
                raise self._not_finite(batch, loss, at)
        if self.average is not None:
            self.average.update()
        self.optimiser.zero_grad()
        at.count(loss, monitored, count, norm if math.isfinite(norm) else 0.0)

    def _inputs(self, batch: Batch) -> Any:
        """Return the inputs; read them again if the batch holds row numbers of the cache."""
        return batch.inputs if self.records is None else self.records.images(batch.inputs)

    def _not_finite(self, batch: Batch, loss: float, at: TrainState) -> NonFinite:
        gradients = not_finite_gradients(self.named)
        self.optimiser.zero_grad()
        with self.machine.autocast():
            given = batch.with_(inputs=self._inputs(batch)).to(self.machine.device)
            where = first_not_finite(self.tuned, given)
        if where is None and gradients:
            more = f" and {len(gradients) - 1} more" if len(gradients) > 1 else ""
            where = f"the gradient of {gradients[0]!r}{more}"
        if where is None:
            where = f"the loss ({loss}): the outputs are finite, so it is the loss itself, or a method's penalty"
        return NonFinite(
            f"Step {at.step + 1} (epoch {at.epoch + 1}) found numbers that are not finite. "
            f"The first such tensor is {where}. Lower lr (now {self.settings.lr:g}), clip the gradient "
            "(clip = 1.0), or use more precision."
        )


def _moving_statistics(tuned: nn.Module) -> list[Tensor]:
    """Return the running statistics that a training step has changed."""
    kinds = nn.modules.batchnorm._BatchNorm
    layers = [one for one in tuned.modules() if isinstance(one, kinds) and one.training]
    found = (statistic for one in layers for statistic in (one.running_mean, one.running_var))
    return [statistic for statistic in found if statistic is not None]
