"""`frozen_prefix`: cache the outputs of the frozen part for all images, and test them against the plain model.

It is not used, with the reason, if cached outputs would become wrong: images change from epoch to epoch, layers before
the cut are random or gather statistics, the method changes the model during training, there is no room, or the outputs
for a sample differ.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from vpeft.acceleration.acceleration import NotApplicable
from vpeft.acceleration.equivalence import TOLERANCE, TOLERANCE_16, PerturbedParameters, two_images
from vpeft.acceleration.frozen_prefix import Prefix, all_modes
from vpeft.acceleration.patches import Patches
from vpeft.acceleration.prefix_cut import Cut, drawing_layer, find_cut
from vpeft.acceleration.prefix_store import Spec, Store, digest_of, mebibytes, room
from vpeft.acceleration.same_images import ImageSource, why_not_the_same
from vpeft.batch import Batch, Sample, stacked
from vpeft.head import raw_outputs
from vpeft.injection.outputs import one_tensor
from vpeft.injection.tuned_model import TunedModel
from vpeft.injection.weights_digest import weights_digest
from vpeft.task import Task

if TYPE_CHECKING:
    from vpeft.acceleration.shared_trunk import BatchStream, SharedRecords

NAME = "frozen_prefix"
SAMPLE = 4


@dataclass(frozen=True)
class Situation:
    """The run that a model is accelerated for.

    Attributes:
        train, val: the data sets.
        epochs: number of epochs.
        batch: batch size while the cache is filled.
        autocast: the context of the forward pass, for its precision.
        precision: the name of the precision.
        mixes: the reason if images are combined before the model receives them (mixup); or None.
        gib: largest size of the cache in memory or in `folder`, in GiB.
        folder: a folder for caches that later runs use; None keeps the cache in memory for this run.
        identity: the facts that identify the images and the preprocessing; without it, no folder is used.
        shared: caches of other runs in this process, to which this run adds its own.
        stream: batches that several runs use at the same time.
        task: the task, which collates samples; None stacks inputs and targets of one shape.
    """

    train: ImageSource
    val: ImageSource | None
    epochs: int
    batch: int
    autocast: Callable[[], AbstractContextManager[Any]]
    precision: str = "fp32"
    mixes: str | None = None
    gib: float = 4.0
    folder: Path | None = None
    identity: Mapping[str, Any] = field(default_factory=dict)
    shared: SharedRecords | None = None
    stream: BatchStream | None = None
    task: Task | None = None


class RowNumbers:
    """A data set whose inputs are row numbers of the cache: item i is (number, target)."""

    def __init__(self, images: ImageSource, first: int, targets: Sequence[Any]) -> None:
        self.images, self.targets = images, list(targets)
        self._numbers = torch.arange(first, first + len(self.targets))
        self._stacked = stacked(self.targets)
        self.labels = getattr(images, "labels", None)

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int, /) -> Sample:
        return Sample(self._numbers[index], self.targets[index])

    def batch_of(self, indices: list[int]) -> Batch:
        """Return several samples as a batch: row numbers (B,) and targets."""
        at = torch.tensor(indices)
        if isinstance(self._stacked, Tensor):
            return Batch(self._numbers[at], self._stacked[at])
        return Batch(self._numbers[at], stacked([self.targets[index] for index in indices]))


class CachedPrefix:
    """The model on cached outputs: row numbers (B,) -> the model's outputs."""

    takes_batch = True

    def __init__(
        self, tuned: TunedModel, prefix: Prefix, store: Store, train: RowNumbers, val: RowNumbers | None
    ) -> None:
        self.tuned, self.prefix, self.store = tuned, prefix, store
        self.train, self.val = train, val

    @property
    def scoring(self) -> CachedPrefix:
        """The model on cached outputs of the validation images."""
        return self

    def __call__(self, numbers: Tensor, batch: Batch | None = None) -> Any:
        device = next(self.tuned.parameters()).device
        rows = [row.to(device, non_blocking=True) for row in self.store.rows(numbers.cpu())]
        return self.prefix.replay(rows, batch)

    def images(self, numbers: Tensor) -> Tensor:
        """Read the images (B, C, H, W) of these rows again."""
        first = len(self.train)
        found = [
            self.train.images[n][0] if n < first or self.val is None else self.val.images[n - first][0]
            for n in numbers.tolist()
        ]
        return torch.stack(found).to(numbers.device)


def frozen_part(tuned: TunedModel) -> Cut:
    """Return where the frozen part ends.

    Raises:
        NotApplicable: it gives different numbers for the same images.
    """
    with PerturbedParameters(tuned):  # in training mode the pass would move the statistics of norms behind the cut
        cut = find_cut(tuned, two_images(tuned))
    drawing = drawing_layer(tuned, cut)
    if drawing is not None:
        raise NotApplicable(f"{drawing} is random or gathers statistics, and it is before the trained places")
    return cut


def useful_cut(tuned: TunedModel, situation: Situation) -> Cut:
    """Return where the frozen part ends, if a cache of its outputs is useful and stays valid.

    Raises:
        NotApplicable: with the reason.
    """
    if situation.epochs < 2 and situation.shared is None:
        raise NotApplicable("in a single epoch nothing is computed twice")
    if situation.mixes is not None:
        raise NotApplicable(situation.mixes)
    if len(situation.train) < 2:
        raise NotApplicable("there is only one image")
    if situation.task is not None and not situation.task.stacks_inputs:
        raise NotApplicable("the task collates its samples in its own way")
    cut = frozen_part(tuned)
    changing = why_not_the_same(situation.train)
    if changing is not None:
        raise NotApplicable(changing)
    return cut


def build(tuned: TunedModel, patches: Patches, situation: Situation, cut: Cut) -> tuple[CachedPrefix, str]:
    """Fill or find the cache and test it on a sample; return the model on cached outputs and a line of text.

    Raises:
        NotApplicable: with the reason; the caller undoes the patches.
    """
    return recorded(tuned, Prefix(tuned, cut, patches), situation, cut)


def recorded(tuned: TunedModel, prefix: Prefix, situation: Situation, cut: Cut) -> tuple[CachedPrefix, str]:
    """Do the work of `build` with a given prefix."""
    sets = [situation.train]
    if situation.val is not None and why_not_the_same(situation.val) is None:
        sets.append(situation.val)
    with PerturbedParameters(tuned):
        specs, mark = _specs(tuned, prefix, situation)
    each = sum(spec.bytes for spec in specs)
    facts = (mark, situation.batch, situation.precision, next(tuned.parameters()).device.type)
    shelf = None if situation.folder is not None and _keeps(situation) else situation.shared
    shelved = None if shelf is None else shelf.find(sets, facts)
    if shelved is None:
        if shelf is not None:
            shelf.make_room(each * sum(map(len, sets)), situation.gib * 2**30)
        allowed, where = room(situation.gib, situation.folder if _keeps(situation) else None)
        if each * sum(map(len, sets)) > allowed and each * len(situation.train) <= allowed:
            sets = sets[:1]
            shelved = None if shelf is None else shelf.find(sets, facts)
        count = sum(map(len, sets))
        if shelved is None and each * count > allowed:
            raise NotApplicable(
                f"cached outputs of {cut.words} take {mebibytes(each * count)} ({each / 2**20:.2f} MiB an image), and"
                f" {mebibytes(allowed)} {where}; raise prefix_gib, or give prefix_folder"
            )
    count, first = sum(map(len, sets)), len(situation.train)
    if shelved is not None:
        store, found, labels = shelved.store, True, shelved.targets
    else:
        store, found = _store(tuned, cut, situation, specs, count)
        labels = [_target(images, i) for images in sets for i in range(len(images))] if found else []
    try:
        if not found:
            with PerturbedParameters(tuned):
                labels = _fill(tuned, prefix, store, sets, situation)
        train = RowNumbers(situation.train, 0, labels[:first])
        val = RowNumbers(sets[1], first, labels[first:]) if len(sets) > 1 else None
        cached = CachedPrefix(tuned, prefix, store, train, val)
        worst = _prove(cached, situation)
        store.finish()
    except BaseException:
        store.discard()
        raise
    if shelf is not None and not found:
        shelf.put(sets, facts, store, labels)
    equal = "the same bits on a sample" if worst == 0 else f"equal on a sample to {worst:.0e}"
    how = "found in" if found else "kept in"
    place = f"{how} {situation.folder}" if situation.folder is not None and _keeps(situation) else f"{how} memory"
    return cached, f"{cut.words} of {count} images, {mebibytes(store.bytes)} {place}, {equal}"


def _target(images: ImageSource, index: int) -> Any:
    targets = getattr(images, "targets", None)
    return targets[index] if isinstance(targets, list) else images[index][1]


def _specs(tuned: TunedModel, prefix: Prefix, situation: Situation) -> tuple[list[Spec], str]:
    """Return the specs of an image's rows, and a digest of the frozen part's outputs for the first and last image."""
    device = next(tuned.parameters()).device
    images = _of_one_size([situation.train[i][0] for i in (0, len(situation.train) - 1)]).to(device)
    found = []
    for seed in (0, 1):
        with torch.random.fork_rng(devices=[]), situation.autocast():
            torch.manual_seed(seed)
            found.append(prefix.record(images))
    if not all(torch.equal(one, other) for one, other in zip(*found, strict=True)):
        raise NotApplicable("the frozen part gives different numbers each time it runs")
    return [Spec(tuple(value.shape[1:]), value.dtype) for value in found[0]], digest_of(found[0])


def _of_one_size(images: Sequence[Tensor], like: Tensor | None = None) -> Tensor:
    """The images as rows; raises `NotApplicable` where they differ in size from each other or from `like`."""
    sizes = {tuple(image.shape) for image in (*images, *(() if like is None else (like,)))}
    if len(sizes) > 1:
        found = " and ".join(" x ".join(map(str, size[-2:])) for size in sorted(sizes)[:2])
        raise NotApplicable(f"images have several sizes ({found}), and cached outputs are of one size")
    return torch.stack(list(images))


def _keeps(situation: Situation) -> bool:
    """Whether the cache may be stored for other runs, which needs the identity of the images."""
    return bool(situation.identity)


def _store(tuned: TunedModel, cut: Cut, situation: Situation, specs: Sequence[Spec], count: int) -> tuple[Store, bool]:
    if situation.folder is None or not _keeps(situation):
        return Store.in_memory(count, specs), False
    facts = {
        "weights": weights_digest(tuned.description, tuned),
        **({} if tuned.quantised is None else {"quantised": tuned.quantised}),
        "cut": [cut.blocks, cut.trunk, [type(op).__name__ for op in cut.needed]],
        "precision": situation.precision,
        "device": next(tuned.parameters()).device.type,
        "torch": str(torch.__version__),
        "images": dict(situation.identity),
    }
    found = Store.find(situation.folder, count, specs, facts)
    if found is not None:
        return found, True
    return Store.on_disk(situation.folder, count, specs, facts), False


def _fill(
    tuned: TunedModel, prefix: Prefix, store: Store, sets: Sequence[ImageSource], situation: Situation
) -> list[int]:
    device = next(tuned.parameters()).device
    labels: list[Any] = []
    first = situation.train[0][0]
    for images in sets:
        for start in range(0, len(images), situation.batch):
            some = [images[i] for i in range(start, min(start + situation.batch, len(images)))]
            with situation.autocast():
                rows = prefix.record(_of_one_size([image for image, _ in some], first).to(device))
            store.put(len(labels), rows)
            labels += [target for _, target in some]
    return labels


def _prove(cached: CachedPrefix, situation: Situation) -> float:
    """Compare the model on cached outputs with the plain model on some of the images."""
    count = len(cached.train) + (0 if cached.val is None else len(cached.val))
    numbers = torch.tensor(sorted({round(i * (count - 1) / (SAMPLE - 1)) for i in range(SAMPLE)}))
    images = cached.images(numbers).to(next(cached.tuned.parameters()).device)
    return prove(cached.tuned, situation, images, cached, numbers)


def prove(
    tuned: TunedModel, situation: Situation, images: Tensor, other: Callable[[Tensor], Any], given: Tensor
) -> float:
    """Return the largest relative difference of tuned(images) and other(given), in training and evaluation mode.

    Raises:
        NotApplicable: the difference is too large.
    """
    worst, tolerance = 0.0, TOLERANCE if situation.precision == "fp32" else TOLERANCE_16
    with PerturbedParameters(tuned), all_modes(tuned), torch.no_grad(), situation.autocast(), raw_outputs():
        for training in (True, False):
            if not training:
                tuned.eval()
            out = []
            for model, batch in ((tuned, images), (other, given)):
                with torch.random.fork_rng(devices=[]):
                    torch.manual_seed(0)
                    out.append(one_tensor(model(batch)).float())
            found = float((out[0] - out[1]).abs().max() / out[0].abs().max().clamp(min=1e-12))
            if not found <= tolerance:
                raise NotApplicable(f"from the cache, the outputs for a sample differ by {found:.0e} of their size")
            worst = max(worst, found)
    return worst
