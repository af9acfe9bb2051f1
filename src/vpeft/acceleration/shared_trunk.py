"""Several runs over one trunk: compute the frozen part that they share once.

There are two forms. If images are the same in every epoch, the cache of one run serves the others, whatever their
order, seed and length: `SharedRecords`. If images change, runs with the same seed and batch size use the same batches:
they step side by side, and the first one at a batch computes the frozen part for all: `BatchStream`.

Runs have the same frozen part if its outputs for fixed images have the same digest.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor

from vpeft.acceleration.acceleration import NotApplicable
from vpeft.acceleration.equivalence import PerturbedParameters, two_images
from vpeft.acceleration.frozen_prefix import Prefix, all_modes
from vpeft.acceleration.patches import Patches
from vpeft.acceleration.prefix_cache import CachedPrefix, Situation, build, prove, recorded, useful_cut
from vpeft.acceleration.prefix_cut import Cut
from vpeft.acceleration.prefix_store import Store, digest_of
from vpeft.acceleration.same_images import ImageSource, why_not_the_same
from vpeft.batch import Batch
from vpeft.injection.tuned_model import TunedModel

Rows = list[Tensor]


# -- the same images in every epoch ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class SharedEntry:
    """The cache of some data sets, one after the other, with the targets.

    It keeps references to the data sets, so that their identity stays valid.
    """

    sets: tuple[ImageSource, ...]
    facts: tuple[Any, ...]
    store: Store
    targets: list[Any]


class SharedRecords:
    """Caches in memory for several runs of one process; pass it to each call of `fit`.

    Runs share a cache if the data set objects, the outputs of the frozen part, the batch size and the precision are the
    same; then it holds the bits that each run would compute itself. Otherwise a run makes its own. If memory is short,
    the least recently used cache is dropped.
    """

    def __init__(self) -> None:
        self._shelved: list[SharedEntry] = []

    @property
    def bytes(self) -> int:
        """Size of all caches in bytes."""
        return sum(one.store.bytes for one in self._shelved)

    def find(self, sets: Sequence[ImageSource], facts: tuple[Any, ...]) -> SharedEntry | None:
        """Return the cache of these data sets with these facts, or None."""
        for one in self._shelved:
            same = len(one.sets) == len(sets) and all(a is b for a, b in zip(one.sets, sets, strict=True))
            if same and one.facts == facts:
                self._shelved.remove(one)
                self._shelved.append(one)
                return one
        return None

    def make_room(self, needed: float, room: float) -> None:
        """Drop the least recently used caches until `needed` more bytes fit into `room`."""
        while self._shelved and self.bytes + needed > room:
            self._shelved.pop(0)

    def forget(self, images: ImageSource) -> None:
        """Drop all caches of this data set."""
        self._shelved = [one for one in self._shelved if all(other is not images for other in one.sets)]

    def put(self, sets: Sequence[ImageSource], facts: tuple[Any, ...], store: Store, targets: list[Any]) -> None:
        """Add a cache for other runs."""
        self._shelved.append(SharedEntry(tuple(sets), facts, store, targets))


# -- the same batches, whose images change --------------------------------------------------------------------------


class Source(Protocol):
    """Batches as a function of (epoch, number)."""

    @property
    def per_epoch(self) -> int: ...

    @property
    def images_per_epoch(self) -> int: ...

    def epoch(self, number: int = 0, first: int = 0) -> Iterator[Batch]: ...


class BatchStream:
    """Batches for runs that step side by side: each batch is loaded once and goes through the frozen part once.

    Batches can be requested in any order; it is cheap if all runs use the same one.
    """

    def __init__(self, source: Source) -> None:
        self.source = source
        self.batch = Batch(torch.empty(0))
        self._at: tuple[int, int] | None = None
        self._open: Iterator[Batch] = iter(())
        self._next: tuple[int, int] | None = None
        self._rows: dict[tuple[str, int, int], Rows] = {}

    def go_to(self, epoch: int, number: int) -> None:
        """Load this batch and make it the present one."""
        if self._at == (epoch, number):
            return
        if self._next != (epoch, number):
            self._open = self.source.epoch(epoch, number)
        self._rows.clear()
        self.batch = next(self._open)
        self._at, self._next = (epoch, number), (epoch, number + 1)
        if number + 1 == self.source.per_epoch:
            next(self._open, None)  # tells the loader's processes that the epoch has ended

    def read_from(self, source: Source) -> None:
        """Use another source with the same batches from now on."""
        self.source, self._open = source, iter(())
        self._at = self._next = None

    def rows(self, mark: str, prefix: Prefix, numbers: Tensor) -> Rows:
        """Return the outputs of the frozen part with the digest `mark` for a range of the present batch."""
        first, count = int(numbers[0]), len(numbers)
        if (mark, first, count) not in self._rows:
            images = self.batch[first : first + count].inputs
            self._rows[mark, first, count] = prefix.record(images.to(numbers.device, non_blocking=True))
        return self._rows[mark, first, count]


class StreamedBatches:
    """The batches of a stream for one run, unchanged or with positions in the batch as inputs."""

    def __init__(self, stream: BatchStream, positions: bool = False) -> None:
        self.stream, self.positions = stream, positions

    @property
    def per_epoch(self) -> int:
        """Number of batches in an epoch."""
        return self.stream.source.per_epoch

    @property
    def images_per_epoch(self) -> int:
        """Number of images in an epoch."""
        return self.stream.source.images_per_epoch

    def epoch(self, number: int = 0, first: int = 0) -> Iterator[Batch]:
        """Yield the batches of epoch `number`, beginning at batch `first`."""
        for at in range(first, self.per_epoch):
            self.stream.go_to(number, at)
            batch = self.stream.batch
            yield batch.with_(inputs=torch.arange(len(batch))) if self.positions else batch


class StreamedPrefix:
    """The model on a stream: positions (B,) in the present batch -> the model's outputs.

    Attributes:
        scoring: the model on cached outputs of the validation images, or None.
    """

    takes_batch = True

    def __init__(self, prefix: Prefix, stream: BatchStream, mark: str, scoring: CachedPrefix | None) -> None:
        self.prefix, self.stream, self.mark, self.scoring = prefix, stream, mark, scoring

    @property
    def val(self) -> ImageSource | None:
        """The validation images as row numbers of their cache, or None."""
        return None if self.scoring is None else self.scoring.train

    def batches(self) -> StreamedBatches:
        """Return the training batches."""
        return StreamedBatches(self.stream, positions=True)

    def __call__(self, numbers: Tensor, batch: Batch | None = None) -> Any:
        return self.prefix.replay(self.stream.rows(self.mark, self.prefix, numbers), batch)

    def images(self, numbers: Tensor) -> Tensor:
        """Return the images (B, C, H, W) at these positions of the present batch."""
        images: Tensor = self.stream.batch.inputs[numbers.cpu()].to(numbers.device)
        return images


def join(tuned: TunedModel, patches: Patches, situation: Situation, cut: Cut) -> tuple[StreamedPrefix, str]:
    """Let the model train on the stream of its situation; return the model on the stream and a line of text.

    Raises:
        NotApplicable: with the reason; the caller undoes the patches.
    """
    stream = situation.stream
    assert stream is not None
    if situation.mixes is not None:
        raise NotApplicable(situation.mixes)
    if situation.task is not None and not situation.task.stacks_inputs:
        raise NotApplicable("the task collates its samples in its own way")
    prefix, images = Prefix(tuned, cut, patches), two_images(tuned)
    with PerturbedParameters(tuned), torch.random.fork_rng(devices=[]), situation.autocast():
        mark = digest_of(prefix.record(images))
        if digest_of(prefix.record(images)) != mark:
            raise NotApplicable("the frozen part gives different numbers each time it runs")
    worst = prove(tuned, situation, images, lambda given: prefix.replay(prefix.record(given)), images)
    scoring = None
    if situation.val is not None and why_not_the_same(situation.val) is None:
        try:
            scoring, _ = recorded(tuned, prefix, replace(situation, train=situation.val, val=None), cut)
        except NotApplicable:  # no room: validation computes everything
            scoring = None
    equal = "the same bits on a sample" if worst == 0 else f"equal on a sample to {worst:.0e}"
    text = f"{cut.words} is computed once a batch for all runs of this seed and frozen part, {equal}"
    return StreamedPrefix(prefix, stream, f"{mark} {situation.precision}", scoring), text


@contextmanager
def cached_for_evaluation(tuned: TunedModel, situation: Situation) -> Iterator[CachedPrefix | None]:
    """A context with the model, in evaluation mode, on cached outputs of the situation's training images; or None.

    It is for evaluating several models with the same frozen part on the same images at the same batch size. The model
    must have no other acceleration.
    """
    patches, made = Patches(tuned), None
    try:
        with all_modes(tuned):
            tuned.eval()
            try:
                made, _ = build(tuned, patches, situation, useful_cut(tuned, situation))
            except NotApplicable:
                patches.undo()
            yield made
    finally:
        patches.undo()
