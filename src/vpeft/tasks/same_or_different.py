"""Two images: do they show the same class or different ones? Pairs are made out of images with one label each."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional
from torchmetrics import Metric, MetricCollection
from torchmetrics.classification import BinaryAccuracy, BinaryAUROC

from ..batch import Batch, Sample, collate
from ..head import get_head
from ..task import Leading, Prediction, Task, UnsuitableTargets, register_task

if TYPE_CHECKING:
    from ..backbones.backbone import Backbone


@register_task("same_or_different")
class SameOrDifferent(Task):
    """Whether two images show the same class: one logit a pair, learnt by binary cross-entropy.

    Each image of the data is the first of one pair; half of the second images are of the same class. A trained model
    also answers for classes that it has never seen.
    """

    target_kind: ClassVar[Literal["label"]] = "label"
    images_per_sample: ClassVar[int] = 2
    stacks_inputs: ClassVar[bool] = False

    labels: tuple[str, ...] = ("different", "same")
    """names of the two answers"""

    @property
    def leading(self) -> Leading:
        return Leading("accuracy")

    @property
    def data_labels(self) -> None:
        return None  # classes that training has never seen are compared too

    def head(self, backbone: Backbone, width: int) -> nn.Module:
        return get_head("pair").on(backbone, width, 1)

    def dataset(self, images: Any, training: bool) -> Pairs:
        return Pairs(images)

    def check(self, train: Any) -> None:
        if not isinstance(train, Pairs):
            raise UnsuitableTargets(
                "Pairs are learnt, and single images are given. Wrap them: task.dataset(images, True)."
            )

    def collate(self, samples: Sequence[Any]) -> Batch:
        """Pairs (2, C, H, W) as a batch of 2 B images (2 B, C, H, W), the two of a pair one behind the other."""
        batch = collate(samples)
        return batch.with_(inputs=batch.inputs.flatten(0, 1), size=len(samples))

    def loss(self, outputs: Tensor, batch: Batch) -> dict[str, Tensor]:
        logits = outputs.float().squeeze(1)
        return {"cross_entropy": functional.binary_cross_entropy_with_logits(logits, batch.targets.float())}

    def monitor(self, outputs: Tensor, batch: Batch) -> dict[str, Tensor]:
        return {"accuracy": ((outputs.squeeze(1) > 0).long() == batch.targets).sum()}

    def metric(self) -> Metric:
        return PairMetric()

    def predictions(self, outputs: Tensor, batch: Batch) -> list[Prediction]:
        ids = batch.ids or tuple(str(number) for number in range(len(batch)))
        found = []
        for name, same in zip(ids, outputs.float().sigmoid().flatten().tolist(), strict=True):
            ranked = sorted(zip(self.labels, (1 - same, same), strict=True), key=lambda one: -one[1])
            rows = tuple({"label": label, "probability": probability} for label, probability in ranked)
            found.append(Prediction(name, rows, {"same": same}))
        return found


class Pairs:
    """Item i is (images (2, C, H, W), 1 where both are of one class, else 0); which second image is fixed by i's name.

    Args:
        images: `images[i]` -> (image, class number), with `targets` as a list of class numbers.
    """

    def __init__(self, images: Any) -> None:
        self.images = images
        classes = [int(target) for target in images.targets]
        members: dict[int, list[int]] = {}
        for index, number in enumerate(classes):
            members.setdefault(number, []).append(index)
        if len(members) < 2:
            raise UnsuitableTargets("Pairs need images of at least two classes; there is one.")
        self.seconds, self.targets = [], list[int]()
        for index, number in enumerate(classes):
            draw = int.from_bytes(hashlib.sha256(str(index).encode()).digest()[:8], "little")
            same = index % 2 == 0 and len(members[number]) > 1
            others = [one for one in members[number] if one != index] if same else _of_others(classes, number, draw)
            self.seconds.append(others[draw % len(others)])
            self.targets.append(int(same))

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> Sample:
        first, second = self.images[index], self.images[self.seconds[index]]
        return Sample(torch.stack([first[0], second[0]]), self.targets[index], getattr(first, "id", ""))

    def set_epoch(self, epoch: int) -> None:
        """Let random transforms of the images draw for `epoch`."""
        tell = getattr(self.images, "set_epoch", None)
        if callable(tell):
            tell(epoch)


def _of_others(classes: Sequence[int], number: int, draw: int) -> list[int]:
    """All images of one other class, which `draw` chooses."""
    others = sorted(set(classes) - {number})
    chosen = others[(draw >> 8) % len(others)]
    return [index for index, one in enumerate(classes) if one == chosen]


class PairMetric(Metric):
    """Accuracy at one half, and the area under the ROC curve."""

    full_state_update = False

    def __init__(self) -> None:
        super().__init__()
        self.values = MetricCollection({"accuracy": BinaryAccuracy(), "auroc": BinaryAUROC()})

    def update(self, outputs: Tensor, batch: Batch) -> None:
        """Count a batch: logits (B, 1) and targets (B,)."""
        self.values.update(outputs.squeeze(1).sigmoid(), batch.targets)

    def compute(self) -> dict[str, Tensor]:
        """Both values."""
        found: dict[str, Tensor] = self.values.compute()
        return found
