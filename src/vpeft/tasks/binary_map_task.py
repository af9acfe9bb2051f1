"""What tasks with yes or no for each pixel have in common: one logit, a loss that balances both, a map of shares."""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from ..batch import Batch
from ..data.on_pixels import IGNORED
from ..task import INSIDE, Prediction, UnsuitableTargets
from .map_outputs import logits_of, to_size
from .number_map_task import NumberMapTask
from .targets import refusal

if TYPE_CHECKING:
    pass


class BinaryMapTask(NumberMapTask):
    """Yes or no for each pixel: logits (B, 1, h, w), brought to the target's size.

    Targets are 0 and 1, (B, H, W); pixels of 255 count nowhere.
    """

    channels: ClassVar[int] = 1

    @property
    def padding(self) -> float:
        """The number that counts nowhere."""
        return float(IGNORED)

    def check_batch(self, outputs: Any, batch: Batch) -> None:
        """Refuse targets that are no maps of 0 and 1, and outputs that are no single map."""
        self.check_outputs(outputs)
        targets = batch.targets
        if not isinstance(targets, (Tensor, list)) or not len(targets):
            raise refusal(self, targets)
        for one in targets:
            self.check_map(one)

    def check_map(self, one: Any) -> None:
        """Refuse what is no map of 0 and 1."""
        if not isinstance(one, Tensor) or one.dim() != 2 or one.is_floating_point():
            raise refusal(self, one)
        odd = one[(one != 0) & (one != 1) & (one != IGNORED)]
        if odd.numel():
            raise UnsuitableTargets(
                f"A map holds {int(odd[0])}, and the task {self.name} learns 0 and 1, and {IGNORED} where nothing"
                " counts. For several classes there is the task semantic_segmentation."
            )

    # -- how it is learnt ---------------------------------------------------------------------------------------------

    @abstractmethod
    def share_of_yes(self, yes: Tensor, counted: Tensor) -> Tensor | float:
        """The factor of the pixels that are 1 in the loss; those that are 0 have 1 minus that."""

    def loss(self, outputs: Any, batch: Batch) -> dict[str, Tensor]:
        """The mean over the pixels that count of w y b + (1 - w)(1 - y) b, b the binary cross-entropy, y the target."""
        return self.each_loss("balanced_bce", lambda said: self._error(said, batch.targets), outputs)

    def _error(self, outputs: Tensor, targets: Tensor) -> Tensor:
        logits = to_size(outputs.float(), targets.shape[-2:])[:, 0]
        counted, yes = targets != IGNORED, targets == 1
        weight = self.share_of_yes(yes, counted)
        each = functional.binary_cross_entropy_with_logits(logits, yes.float(), reduction="none")
        factors = torch.where(yes, weight, 1 - weight) * counted
        return (factors * each).sum() / counted.sum().clamp(min=1)

    def monitor(self, outputs: Any, batch: Batch) -> dict[str, Tensor]:
        """The share of right pixels of each sample."""
        logits = to_size(logits_of(outputs).detach(), batch.targets.shape[-2:])[:, 0]
        counted = batch.targets != IGNORED
        right = ((logits > 0) == (batch.targets == 1)) & counted
        return {"pixel_accuracy": (right.sum((1, 2)) / counted.sum((1, 2)).clamp(min=1)).sum()}

    # -- how it is judged ---------------------------------------------------------------------------------------------

    def predictions(self, outputs: Any, batch: Batch) -> list[Prediction]:
        """The probability of each pixel (H, W), and the share of pixels above one half."""
        found = []
        for name, seen, whole in self.shown(outputs, batch, lambda one: one[0].sigmoid()):
            row = {"share": (seen >= INSIDE).float().mean().item()}
            found.append(Prediction(name, (row,), row, whole))
        return found

    def truth(self, batch: Batch) -> list[Prediction]:
        """The maps of a batch, NaN where nothing counts."""
        ids = batch.ids or tuple(str(number) for number in range(len(batch)))
        maps = torch.where(batch.targets == IGNORED, math.nan, batch.targets.float())
        return [Prediction(name, (), {}, one) for name, one in zip(ids, maps, strict=True)]
