"""Batches that depend on (seed, epoch, position) only, and not on the number of loading processes."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol, runtime_checkable

import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from vpeft.batch import Batch, collate
from vpeft.task import Task
from vpeft.training.randomness import batch_randomness, derived_seed

_Address = tuple[int, int, int, int]  # (epoch, number of the batch, position in the batch, index of the sample)


@runtime_checkable
class Samples(Protocol):
    """A data set for training and evaluation: `len(set)`, and `set[i]` -> (input, target) or a `Sample`."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Any: ...


class Reading(Protocol):
    """The part of a `Task` that collates batches and chooses the samples of an epoch."""

    def collate(self, samples: Sequence[Any], /) -> Batch: ...

    def order(self, train: Any, shuffled: list[int], epoch_seed: int, /) -> list[int]: ...


@runtime_checkable
class InBatches(Protocol):
    """A data set in memory that returns whole batches and uses no random numbers."""

    def batch_of(self, indices: list[int], /) -> Batch:
        """Return the items at `indices` as a batch."""
        ...


class _Seeded(Dataset[Any]):
    """Items addressed by `_Address`; each batch is read under its own seed."""

    def __init__(self, images: Samples, seed: int) -> None:
        self.images = images
        self.seed = seed

    def __getitems__(self, addresses: list[_Address]) -> list[Any]:
        """Return one batch; torch's loader calls this instead of `__getitem__`."""
        epoch, number, first, _ = addresses[0]
        # Per batch and not per image: seeding the three generators takes longer than reading a small image.
        of_share = ("from", first) if first else ()
        with batch_randomness(derived_seed(self.seed, "batch", epoch, number, *of_share)):
            return [self.images[index] for *_, index in addresses]


@dataclass(frozen=True)
class Share:
    """Which part of each batch one of several processes computes."""

    number: int = 0
    of: int = 1

    def __call__(self, count: int) -> range:
        """Return this share of the positions 0 to `count` - 1. Shares differ by one position at most."""
        each, rest = divmod(count, self.of)
        first = self.number * each + min(self.number, rest)
        return range(first, first + each + (self.number < rest))


WHOLE = Share()


class _Order(Sampler[list[_Address]]):
    """The batches of one epoch from a position on; the loader iterates over it once per epoch.

    Attributes:
        read: for each batch that was begun, the number of its samples in this process's share; a share that is empty
            reads one sample all the same.
    """

    def __init__(
        self,
        count: int,
        batch: int,
        *,
        seed: int,
        shuffled: bool,
        drop_last: bool,
        order: Callable[[list[int], int], list[int]] | None = None,
        share: Share = WHOLE,
        parts: Sequence[range] | None = None,
    ) -> None:
        self.parts = parts
        self.count, self.batch, self.seed, self.shuffled, self.order = count, batch, seed, shuffled, order
        self.share = share
        self.read: dict[int, int] = {}
        full, rest = divmod(count, batch)
        # A set smaller than one batch is used all the same: dropping it would leave nothing.
        self.per_epoch = full if (drop_last and full) or not rest else full + 1
        if parts is not None:
            self.per_epoch = len(parts)
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
        self.read = {}
        for number in range(self.first, self.per_epoch):
            cut = slice(number * self.batch, (number + 1) * self.batch)
            batch = indices[cut] if self.parts is None else [*self.parts[number]]
            positions = self.share(len(batch))
            self.read[number] = len(positions)
            yield [(self.epoch, number, at, batch[at]) for at in positions or range(1)]

    def __len__(self) -> int:
        return self.per_epoch - self.first


def _signals_of_a_worker(_: int) -> None:
    # A loading process inherits the training process's handlers: left so, Ctrl-C would end it before the checkpoint is
    # written, and the loader could not end it at all.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


def told_epoch(seed: int, number: int, views: int | None) -> int:
    """Return the number that a data set gets for its random transforms in epoch `number` of a run with this seed."""
    return derived_seed(seed, "epoch", number if views is None else number % views)


class Batches:
    """Batches of samples on the CPU.

    Args:
        images: the data set.
        batch: samples per batch; the last batch may be smaller, unless `drop_last`.
        seed: decides the order and every random transform; None keeps the set's order, for evaluation.
        workers: number of loading processes; 0 loads in this process. The batches do not depend on it.
        views: number of augmented versions of an image, used in turn; None makes a new one in each epoch.
        reading: the task, which collates samples and chooses those of an epoch; None stacks inputs and targets of one
            shape, and an epoch has each sample once.
        share: the part of each batch that is read, where several processes train together. The order and the batches do
            not depend on it; random transforms draw other numbers in other shares.
        parts: the positions of each batch in the set's order; None cuts the whole set.
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
        share: Share = WHOLE,
        parts: Sequence[range] | None = None,
    ) -> None:
        self.images, self.views = images, views
        self.seed = seed or 0
        order = None if reading is None else partial(reading.order, images)
        # whether a set may put a batch together by itself: the task would do no more
        self._whole = reading is None or getattr(type(reading), "collate", None) is Task.collate
        shuffled = seed is not None
        self._order = _Order(
            len(images),
            batch,
            seed=self.seed,
            shuffled=shuffled,
            drop_last=drop_last,
            order=order,
            share=share,
            parts=parts,
        )
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
        """Number of batches in an epoch."""
        return self._order.per_epoch

    @property
    def images_per_epoch(self) -> int:
        """Number of samples in an epoch."""
        return min(len(self.images), self.per_epoch * self._order.batch)

    def samples_read(self, number: int) -> int:
        """Number of samples of batch `number` of the present epoch that are in this share; 0 where it is too small."""
        return self._order.read[number]

    def epoch(self, number: int = 0, first: int = 0) -> Iterator[Batch]:
        """Yield the batches of epoch `number` from batch `first` on, the same as in an uninterrupted epoch."""
        self._order.epoch, self._order.first = number, first
        # Data sets that seed their own transforms are told a number in which this run's seed is mixed.
        tell = getattr(self.images, "set_epoch", None)
        if self._order.shuffled and callable(tell):
            tell(told_epoch(self.seed, number, self.views))
        if self._whole and isinstance(self.images, InBatches):
            for addresses in self._order:
                yield self.images.batch_of([index for *_, index in addresses])
            return
        yield from self._loader
