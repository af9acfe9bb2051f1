"""Batches whose content is a function of (seed, epoch, position), whatever the number of loading processes."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, Protocol, runtime_checkable

import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from vpeft.batch import Batch, collate
from vpeft.task import Task
from vpeft.training.randomness import batch_randomness, derived_seed

_Address = tuple[int, int, int]  # (epoch, number of the batch, index of the image)


@runtime_checkable
class Samples(Protocol):
    """What training and evaluation read: `len(set)` and `set[i]` -> (input, target), or a `Sample`."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Any: ...


class Reading(Protocol):
    """The part of a `Task` that decides what a batch is and which samples an epoch sees."""

    def collate(self, samples: Sequence[Any], /) -> Batch: ...

    def order(self, train: Any, shuffled: list[int], epoch_seed: int, /) -> list[int]: ...


@runtime_checkable
class InBatches(Protocol):
    """A data set in memory that gives whole batches, and draws nothing at random."""

    def batch_of(self, indices: list[int], /) -> Batch:
        """The items at `indices`."""
        ...


class _Seeded(Dataset[Any]):
    """Items addressed by `_Address`, each batch drawn under a seed of its own."""

    def __init__(self, images: Samples, seed: int) -> None:
        self.images = images
        self.seed = seed

    def __getitems__(self, addresses: list[_Address]) -> list[Any]:
        """One batch; the loader prefers this to item by item."""
        epoch, number, _ = addresses[0]
        # Per batch and not per image: seeding the three generators takes longer than reading a small image.
        with batch_randomness(derived_seed(self.seed, "batch", epoch, number)):
            return [self.images[index] for _, _, index in addresses]


class _Order(Sampler[list[_Address]]):
    """The batches of one epoch from a position on; the loader asks anew at the start of each epoch."""

    def __init__(
        self,
        count: int,
        batch: int,
        *,
        seed: int,
        shuffled: bool,
        drop_last: bool,
        order: Callable[[list[int], int], list[int]] | None = None,
    ) -> None:
        self.count, self.batch, self.seed, self.shuffled, self.order = count, batch, seed, shuffled, order
        full, rest = divmod(count, batch)
        # A set smaller than one batch is used all the same: dropping it would leave nothing.
        self.per_epoch = full if (drop_last and full) or not rest else full + 1
        self.epoch = 0
        self.first = 0

    def __iter__(self) -> Iterator[list[_Address]]:
        order = range(self.count)
        indices: list[int] = list(order)
        if self.shuffled:
            generator = torch.Generator().manual_seed(derived_seed(self.seed, "order", self.epoch))
            indices = torch.randperm(self.count, generator=generator).tolist()
            if self.order is not None:
                indices = self.order(indices, derived_seed(self.seed, "sampling", self.epoch))
        for number in range(self.first, self.per_epoch):
            yield [(self.epoch, number, index) for index in indices[number * self.batch : (number + 1) * self.batch]]

    def __len__(self) -> int:
        return self.per_epoch - self.first


def _signals_of_a_worker(_: int) -> None:
    # A loading process inherits the training process's handlers: left so, Ctrl-C would end it before the checkpoint is
    # written, and the loader could not end it at all.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


def told_epoch(seed: int, number: int, views: int | None) -> int:
    """The number by which a data set draws its transforms for epoch `number` of a run with this seed."""
    return derived_seed(seed, "epoch", number if views is None else number % views)


class Batches:
    """Batches of samples, on the processor.

    Args:
        images: the data set.
        batch: samples per batch; the last may be smaller unless `drop_last`.
        seed: decides the order and every random transform; None: in the set's own order, for evaluation.
        workers: loading processes; 0 loads in this one. The content is the same for any number.
        views: how many augmented versions of an image there are, taken in turn; None: a new one in each epoch.
        reading: the task, which puts samples together and says which an epoch sees; None: inputs and targets of one
            shape are stacked, and an epoch sees each sample once.
    """

    def __init__(
        self,
        images: Samples,
        batch: int,
        *,
        seed: int | None = None,
        drop_last: bool = False,
        workers: int = 0,
        pin: bool = False,
        views: int | None = None,
        reading: Reading | None = None,
    ) -> None:
        self.images, self.views = images, views
        self.seed = seed or 0
        order = None if reading is None else partial(reading.order, images)
        # whether a set may put a batch together by itself: the task would do no more
        self._whole = reading is None or getattr(type(reading), "collate", None) is Task.collate
        shuffled = seed is not None
        self._order = _Order(len(images), batch, seed=self.seed, shuffled=shuffled, drop_last=drop_last, order=order)
        # A generator of its own: a loader otherwise takes a number from torch's at the start of each epoch.
        own = torch.Generator().manual_seed(derived_seed(self.seed, "loader"))
        self._loader: DataLoader[Any] = DataLoader(
            _Seeded(images, self.seed),
            batch_sampler=self._order,
            num_workers=workers,
            persistent_workers=workers > 0,
            pin_memory=pin,
            generator=own,
            worker_init_fn=_signals_of_a_worker,
            collate_fn=collate if reading is None else reading.collate,
        )

    @property
    def per_epoch(self) -> int:
        """Batches in a whole epoch."""
        return self._order.per_epoch

    @property
    def images_per_epoch(self) -> int:
        """Samples in a whole epoch."""
        return min(len(self.images), self.per_epoch * self._order.batch)

    def epoch(self, number: int = 0, first: int = 0) -> Iterator[Batch]:
        """The batches of epoch `number` from batch `first` on; the same ones that an uninterrupted epoch has there."""
        self._order.epoch, self._order.first = number, first
        # Data sets that seed their own transforms are told a number in which this run's seed is mixed.
        tell = getattr(self.images, "set_epoch", None)
        if self._order.shuffled and callable(tell):
            tell(told_epoch(self.seed, number, self.views))
        if self._whole and isinstance(self.images, InBatches):
            for addresses in self._order:
                yield self.images.batch_of([index for _, _, index in addresses])
            return
        yield from self._loader
