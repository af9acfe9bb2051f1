"""Keep a training step within a memory limit: choose the cheapest change that fits.

The order is: as asked; recompute norms and activations; a batch in parts; run blocks again. The batch of an optimiser
step does not change, so the recipe and its result stay the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from accelerate import Accelerator
from torch.nn.modules.batchnorm import _BatchNorm

from vpeft.acceleration.apply import accelerate
from vpeft.errors import VpeftError
from vpeft.training.batches import Samples
from vpeft.training.failures import buffers_as_they_were
from vpeft.training.memory_plan import MemoryPlan, largest, measure_memory
from vpeft.training.modes import to_training_mode
from vpeft.training.optimisation import Optimisation
from vpeft.training.randomness import untouched_randomness
from vpeft.training.sizes import bytes_of, readable

if TYPE_CHECKING:
    from vpeft.injection.tuned_model import TunedModel
    from vpeft.task import Task

# Measured on a processor: parts of eight images take no longer than a whole batch. Smaller ones are the last resort.
SMALL_PART = 8
# Images of a data set may differ in size; the largest of so many is measured.
LOOKED_AT = 8
LOW_MEMORY, AGAIN = "low_memory", "recompute_blocks"

Planning = Callable[[str], MemoryPlan]


class CannotFit(VpeftError):
    """No way of training stays within the memory limit."""


@dataclass(frozen=True)
class Way:
    """One way of training and the memory that it needs.

    Attributes:
        acceleration: the value of the setting.
        parts: number of parts in which a batch is computed.
        plan: the need of one part.
    """

    acceleration: str
    parts: int
    plan: MemoryPlan

    def words(self, asked: Way) -> str:
        """Say what is changed."""
        more = [f"acceleration {self.acceleration}"] if self.acceleration != asked.acceleration else []
        more += [f"accumulate {self.parts}"] if self.parts != asked.parts else []
        return f"{' and '.join(more) or 'as asked'}: {readable(self.plan.total)}"


@dataclass(frozen=True)
class Choice:
    """The chosen way, the way that was asked for, and all ways that were tried."""

    way: Way
    asked: Way
    looked_at: tuple[Way, ...]

    def lines(self, limit: int) -> list[str]:
        """Return the lines to print before training."""
        images = self.way.plan.batch
        by = "" if self.way == self.asked else "by "
        first = f"memory: within {readable(limit)} {by}{self.way.words(self.asked)} for {images} images at a time"
        others = [f"  {way.words(self.asked)}" for way in self.looked_at if way != self.way]
        return [first, *others]


def within(
    tuned: TunedModel, images: Samples, settings: Optimisation, machine: Accelerator, task: Task
) -> tuple[Optimisation, list[str]]:
    """Return `settings` changed so that a step stays within `fit_memory`, and lines to print; measured on one sample.

    The cache of a frozen part is not counted: it has its own limit.

    Raises:
        CannotFit: with the need of each way.
    """
    if settings.fit_memory is None:
        return settings, []
    limit = bytes_of(settings.fit_memory)
    with untouched_randomness():
        sample = largest([images[index] for index in range(min(LOOKED_AT, len(images)))])

    def plan(acceleration: str) -> MemoryPlan:
        made = accelerate(tuned, acceleration, autocast=machine.autocast, precision=settings.precision)
        used = [outcome.name for outcome in made.outcomes if outcome.applied]
        try:
            with machine.autocast(), buffers_as_they_were(tuned):
                precision = settings.precision
                return measure_memory(tuned, sample, settings.batch, task=task, precision=precision, accelerations=used)
        finally:
            made.close()

    with untouched_randomness():
        to_training_mode(tuned)
        chosen = fitting(
            limit,
            settings.batch,
            settings.acceleration,
            settings.accumulate,
            plan,
            least=1 if divisible(tuned) else None,
            patient=machine.device.type == "cpu",
        )
    way = chosen.way
    changed = {"acceleration": way.acceleration, "accumulate": way.parts}
    return settings.model_copy(update=changed), chosen.lines(limit)


def divisible(tuned: TunedModel) -> bool:
    """Whether a batch can be computed in parts: no norm uses batch statistics, and no layer compares images.

    `tuned` is in training mode.
    """
    gathers = any(isinstance(module, _BatchNorm) and module.training for module in tuned.modules())
    return not gathers and not any("ignores_neighbours" in method.exceptions for method in tuned.methods())


def fitting(
    limit: int,
    batch: int,
    acceleration: str,
    parts: int,
    plan: Planning,
    *,
    least: int | None = 1,
    patient: bool = True,
) -> Choice:
    """Return the first way that fits into `limit` bytes.

    Args:
        limit: bytes for weights, gradients, optimiser and the tensors saved for the backward pass.
        batch: images of an optimiser step.
        acceleration, parts: as asked.
        plan: (value of the acceleration setting) -> its need, for any number of images at a time.
        least: smallest number of images in a part; None if the batch must not be divided further.
        patient: whether parts of `SMALL_PART` images cost less time than running blocks again, as on a CPU.

    Raises:
        CannotFit: nothing fits; the message lists the need of each way.
    """
    ways: list[Way] = []
    asked: Way | None = None
    for setting, at_least in _settings(acceleration, least, patient):
        whole = plan(setting)
        if at_least is None:
            way = Way(setting, parts, whole.with_batch(-(-batch // parts)))
        else:
            way = Way(setting, *_parted(whole, limit, batch, parts, at_least))
        asked = way if asked is None else asked
        if way in ways:
            continue
        ways.append(way)
        if way.plan.total <= limit:
            return Choice(way, asked, tuple(ways))
    assert asked is not None
    needs = "\n".join(f"  {way.words(asked)} for {way.plan.batch} images at a time" for way in ways)
    raise CannotFit(
        f"Nothing stays within {readable(limit)}:\n{needs}\n"
        f"Allow at least {readable(min(way.plan.total for way in ways))}, take a smaller backbone or image size, or a"
        " method that trains fewer of the first blocks."
    )


def _settings(acceleration: str, least: int | None, patient: bool) -> Iterator[tuple[str, int | None]]:
    """Return the settings of the accelerations, each with the smallest part; None does not change the parts."""
    low, again = _and(acceleration, LOW_MEMORY), _and(_and(acceleration, LOW_MEMORY), AGAIN)
    yield acceleration, None
    yield low, None
    if patient and least is not None:
        yield low, max(least, SMALL_PART)
    yield again, None
    if least is not None:
        yield again, max(least, SMALL_PART)
        yield again, least


def _and(acceleration: str, name: str) -> str:
    if acceleration == "off":
        return name
    return acceleration if name in acceleration.split(",") else f"{acceleration},{name}"


def _parted(whole: MemoryPlan, limit: int, batch: int, parts: int, least: int) -> tuple[int, MemoryPlan]:
    """Return the smallest number of parts, at least `parts`, that fits; parts of `least` images if none does."""
    most = max(min(least, batch), whole.largest_batch(limit))
    needed = max(parts, -(-batch // max(1, most)))
    # Parts differ by one image at most, and none may be smaller than the least.
    needed = max(parts, min(needed, max(1, batch // min(least, batch))))
    return needed, whole.with_batch(-(-batch // needed))
