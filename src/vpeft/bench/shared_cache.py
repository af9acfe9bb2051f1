"""What runs of one process share: images as tensors, and outputs of what is frozen in several of them.

The points of a grid, and the seeds of a method, differ in what is trained and not in the trunk below. Sharing leaves
computations out and changes none: scores are those of runs that share nothing, bit by bit.
"""

from __future__ import annotations

import hashlib
from contextlib import ExitStack
from functools import partial

import torch
from torch import Tensor

from vpeft.acceleration.prefix_cache import CachedPrefix, Situation
from vpeft.acceleration.shared_trunk import SharedRecords, cached_for_evaluation
from vpeft.bench.splits import Split
from vpeft.data.image_set import ImageSet
from vpeft.data.preprocessing import Preprocessing
from vpeft.injection.tuned_model import TunedModel
from vpeft.task import Task
from vpeft.training.evaluate import evaluate
from vpeft.training.machine import accelerator
from vpeft.training.optimisation import Precision
from vpeft.training.randomness import untouched_randomness
from vpeft.training.result import Scores

# Tensors of images that are the same in every epoch are kept up to this size; beyond it they are made anew each time.
KEPT_BYTES = 2**30
# Of all sets together: a task's training images, with and without those for validation, these, and those of the test.
ALL_BYTES = 2 * KEPT_BYTES


class KeptTensors:
    """Images (3, H, W) that are the same in every epoch, made once: decoding costs more than a small model does."""

    def __init__(self, images: ImageSet) -> None:
        self.labels = images.labels
        self._images = torch.stack([images[index][0] for index in range(len(images))])
        self.targets = images.targets

    @property
    def bytes(self) -> int:
        return self._images.numel() * self._images.element_size()

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int, /) -> tuple[Tensor, int]:
        return self._images[index], self.targets[index]


class SharedCache:
    """Image sets by their content, and records of them.

    What is recorded of the images that models are scored on is kept apart from what training is given.
    """

    def __init__(self) -> None:
        self.training, self._scoring = SharedRecords(), SharedRecords()
        self._sets: dict[str, KeptTensors] = {}

    def images(
        self, split: Split, task: Task, prepared: Preprocessing, augmentation: str | None, seed: int
    ) -> ImageSet | KeptTensors:
        """A split as training and evaluation read it; the same object for the same images, where they are kept.

        `augmentation` is the policy in training, and None in evaluation.
        """
        transform = task.transforms(prepared, augmentation or "none", augmentation is not None)
        made = partial(split.dataset, task.labels, transform, seed)
        height, width = prepared.size
        plain = augmentation in (None, "none") and not task.own_transforms
        content = split.content if plain and split.size * 3 * height * width * 4 <= KEPT_BYTES else None
        if content is None:
            return made()
        key = hashlib.sha256(f"{task.labels} {prepared.model_dump_json()}".encode() + content).hexdigest()
        found = self._sets.pop(key, None)
        if found is None:
            found = KeptTensors(made())
        self._sets[key] = found
        while len(self._sets) > 1 and sum(one.bytes for one in self._sets.values()) > ALL_BYTES:
            oldest = self._sets.pop(next(iter(self._sets)))
            self.training.forget(oldest)
            self._scoring.forget(oldest)
        return found

    def scores(
        self, tuned: TunedModel, dataset: ImageSet | KeptTensors, task: Task, batch: int, precision: Precision
    ) -> Scores:
        """`evaluate`, with what is frozen computed once for all models that are scored on the same images."""
        records: CachedPrefix | None = None
        with ExitStack() as stack:
            if isinstance(dataset, KeptTensors):
                kind = "cpu" if next(tuned.parameters()).device.type == "cpu" else "auto"
                autocast = accelerator(precision, kind).autocast
                situation = Situation(dataset, None, 1, batch, autocast, precision, shared=self._scoring)
                with untouched_randomness():
                    records = stack.enter_context(cached_for_evaluation(tuned, situation))
            if records is None:
                return evaluate(tuned, dataset, task=task, batch=batch, precision=precision)
            return evaluate(tuned, records.train, task=task, batch=batch, precision=precision, records=records)
