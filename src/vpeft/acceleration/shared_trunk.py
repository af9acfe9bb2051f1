"""Several runs over one trunk: what is frozen in all of them is computed once for all.

Two forms. Where images are the same in every epoch, the records that one run made serve the others, whatever their
order, seed and length: `SharedRecords`. Where they are not, runs of the same seed and batch still see the same batches:
they are stepped side by side, and the one that comes to a batch first computes its frozen part for all: `Stream`.

Which runs have the same frozen part is read off no name: it is the digest of what that part gives for fixed images.
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
    """Records of some data sets, one after the other, with the labels. The sets are held, so that they stay who they
    are."""

    sets: tuple[ImageSource, ...]
    facts: tuple[Any, ...]
    store: Store
    targets: list[Any]


class SharedRecords:
    """Records in memory for several runs of one process; give it to each call of `fit`.

    Runs share what was recorded of the very same data set objects by the same frozen part, at the same batch size and
    in the same precision: then the records are the bits that each run would have made for itself. Anything else is
    recorded anew. What was not used for the longest time makes room.
    """

    def __init__(self) -> None:
        self._shelved: list[SharedEntry] = []

    @property
    def bytes(self) -> int:
        """Of all records."""
        return sum(one.store.bytes for one in self._shelved)

    def find(self, sets: Sequence[ImageSource], facts: tuple[Any, ...]) -> SharedEntry | None:
        """The records of these sets under these facts, or None."""
        for one in self._shelved:
            same = len(one.sets) == len(sets) and all(a is b for a, b in zip(one.sets, sets, strict=True))
            if same and one.facts == facts:
                self._shelved.remove(one)
                self._shelved.append(one)
                return one
        return None

    def make_room(self, needed: float, room: float) -> None:
        """Forget the longest unused until `needed` more bytes stay within `room`."""
        while self._shelved and self.bytes + needed > room:
            self._shelved.pop(0)

    def forget(self, images: ImageSource) -> None:
        """Drop all records of this data set."""
        self._shelved = [one for one in self._shelved if all(other is not images for other in one.sets)]

    def put(self, sets: Sequence[ImageSource], facts: tuple[Any, ...], store: Store, targets: list[Any]) -> None:
        """Keep records for other runs."""
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
    """Batches for runs that go side by side: each is loaded once, and what is frozen is computed once for it.

    Any order of asking gives the same batches; it is cheap where all runs are at the same one.
    """

    def __init__(self, source: Source) -> None:
        self.source = source
        self.batch = Batch(torch.empty(0))
        self._at: tuple[int, int] | None = None
        self._open: Iterator[Batch] = iter(())
        self._next: tuple[int, int] | None = None
        self._rows: dict[tuple[str, int, int], Rows] = {}

    def go_to(self, epoch: int, number: int) -> None:
        """Make this batch the present one."""
        if self._at == (epoch, number):
            return
        if self._next != (epoch, number):
            self._open = self.source.epoch(epoch, number)
        self._rows.clear()
        self.batch = next(self._open)
        self._at, self._next = (epoch, number), (epoch, number + 1)
        if number + 1 == self.source.per_epoch:
            next(self._open, None)  # so that loading processes know that the epoch is over

    def read_from(self, source: Source) -> None:
        """Take the batches from another source from now on, which gives the same."""
        self.source, self._open = source, iter(())
        self._at = self._next = None

    def rows(self, mark: str, prefix: Prefix, numbers: Tensor) -> Rows:
        """What the frozen part of this mark gives for a stretch of the present batch."""
        first, count = int(numbers[0]), len(numbers)
        if (mark, first, count) not in self._rows:
            images = self.batch[first : first + count].inputs
            self._rows[mark, first, count] = prefix.record(images.to(numbers.device, non_blocking=True))
        return self._rows[mark, first, count]


class StreamedBatches:
    """The batches of one run out of a stream: as they are, or with the positions in the batch as inputs."""

    def __init__(self, stream: BatchStream, positions: bool = False) -> None:
        self.stream, self.positions = stream, positions

    @property
    def per_epoch(self) -> int:
        """Batches in a whole epoch."""
        return self.stream.source.per_epoch

    @property
    def images_per_epoch(self) -> int:
        """Images in a whole epoch."""
        return self.stream.source.images_per_epoch

    def epoch(self, number: int = 0, first: int = 0) -> Iterator[Batch]:
        """The batches of epoch `number` from batch `first` on."""
        for at in range(first, self.per_epoch):
            self.stream.go_to(number, at)
            batch = self.stream.batch
            yield batch.with_(inputs=torch.arange(len(batch))) if self.positions else batch


class StreamedPrefix:
    """The model on a stream: calling it with positions in the present batch (B,) gives the model's outputs.

    Attributes:
        scoring: the model on records of the validation images, where there are some.
    """

    takes_batch = True

    def __init__(self, prefix: Prefix, stream: BatchStream, mark: str, scoring: CachedPrefix | None) -> None:
        self.prefix, self.stream, self.mark, self.scoring = prefix, stream, mark, scoring

    @property
    def val(self) -> ImageSource | None:
        """The validation images as numbers of their records, where there are some."""
        return None if self.scoring is None else self.scoring.train

    def batches(self) -> StreamedBatches:
        """What to train on."""
        return StreamedBatches(self.stream, positions=True)

    def __call__(self, numbers: Tensor, batch: Batch | None = None) -> Any:
        return self.prefix.replay(self.stream.rows(self.mark, self.prefix, numbers), batch)

    def images(self, numbers: Tensor) -> Tensor:
        """The images (B, 3, H, W) at these positions of the present batch."""
        images: Tensor = self.stream.batch.inputs[numbers.cpu()].to(numbers.device)
        return images


def join(tuned: TunedModel, patches: Patches, situation: Situation, cut: Cut) -> tuple[StreamedPrefix, str]:
    """Let the model train on the stream of its situation; returns the model on it and what is to be said.

    Raises:
        NotApplicable: with the reason; the caller undoes the changes.
    """
    stream = situation.stream
    assert stream is not None
    if situation.mixes is not None:
        raise NotApplicable(situation.mixes)
    if situation.task is not None and not situation.task.stacks_inputs:
        raise NotApplicable("the task puts its samples together in a way of its own")
    prefix, images = Prefix(tuned, cut, patches), two_images(tuned)
    with PerturbedParameters(tuned), torch.random.fork_rng(devices=[]), situation.autocast():
        mark = digest_of(prefix.record(images))
        if digest_of(prefix.record(images)) != mark:
            raise NotApplicable("what is frozen gives other numbers each time it is run")
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
    """Inside: the model, in evaluation mode, on records of the situation's training images; None where there are none.

    For scoring several models with the same frozen part on the same images, at the same batch size. On the model there
    must be no other acceleration.
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
