"""What tasks with yes or no for each pixel have in common: one logit, a loss that balances both, a map of shares."""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import TYPE_CHECKING, Any

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from ..batch import Batch
from ..data.joint import Fitting
from ..data.joint_maps import MapsTransform, maps_transform
from ..data.on_pixels import IGNORED
from ..data.preprocessing import Preprocessing
from ..head import HeadText, make_head
from ..task import INSIDE, Prediction, UnsuitableTargets
from .map_outputs import auxiliary_of, logits_of, to_size
from .map_task import MapTask, windows_of
from .targets import refusal, told_targets

if TYPE_CHECKING:
    from ..backbones.backbone import Backbone


class BinaryMapTask(MapTask):
    """Yes or no for each pixel: logits (B, 1, h, w), brought to the target's size.

    Targets are 0 and 1, (B, H, W); pixels of 255 count nowhere. A head may give a mapping in training: `logits`, and
    further outputs of any size, each with its own loss.
    """

    auxiliary_weight: float = Field(default=0.4, ge=0)
    """weight of the loss of a head's auxiliary outputs, where it has any (upernet)"""
    head_kind: HeadText = Field(default="segformer_map", alias="head")
    """the head, with options where it has any: linear_map, segformer_map(channels=256), upernet(channels=512)"""

    @property
    def padding(self) -> float:
        """The number that counts nowhere."""
        return float(IGNORED)

    @property
    def own_transforms(self) -> bool:
        """Always: bars count nowhere."""
        return True

    def map_transform(
        self,
        preprocessing: Preprocessing,
        training: bool,
        size: tuple[int, int] | None,
        shortest: tuple[int, ...] | None,
        longest: int | None,
        augment: str,
        fit: Fitting | None,
    ) -> MapsTransform:
        """The joint transform of images and maps."""
        return maps_transform(preprocessing, training, self.layer, size, shortest, longest, augment, fit)

    def head(self, backbone: Backbone, width: int) -> nn.Module:
        """The head that `head_kind` names, with one output."""
        return make_head(self.head_kind, backbone, width, 1)

    def check(self, train: Any) -> None:
        """Refuse targets that are no maps of 0 and 1, as far as the data set tells them.

        Raises:
            UnsuitableTargets: with the task that fits.
        """
        targets = told_targets(train)
        if targets is not None and len(targets) and not isinstance(targets[0], str):
            self._check_map(targets[0])

    def check_batch(self, outputs: Any, batch: Batch) -> None:
        """Refuse targets that are no maps of 0 and 1, and outputs that are no single map."""
        outputs = logits_of(outputs)
        if not isinstance(outputs, Tensor) or outputs.dim() != 4 or outputs.shape[1] != 1:
            found = tuple(outputs.shape) if isinstance(outputs, Tensor) else type(outputs).__name__
            raise UnsuitableTargets(
                f"The task {self.name} needs outputs (samples, 1, rows, columns), and the model gives {found}. Attach"
                " the method with this task, tune(model, method, task=task), which makes the head."
            )
        targets = batch.targets
        if not isinstance(targets, (Tensor, list)) or not len(targets):
            raise refusal(self, targets)
        for one in targets:
            self._check_map(one)

    def _check_map(self, one: Any) -> None:
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
        losses = {"balanced_bce": self._error(logits_of(outputs), batch.targets)}
        for name, further in auxiliary_of(outputs).items():
            losses[name] = self.auxiliary_weight * self._error(further, batch.targets)
        return losses

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
        """The probability of each pixel (H, W), and the share of pixels above one half.

        (H, W) is the size of the original image where the batch says it, with NaN where the model was not shown it;
        else the size of the inputs.
        """
        said = logits_of(outputs).float()
        size = batch.inputs.shape[-2:] if isinstance(batch.inputs, Tensor) else said.shape[-2:]
        large, windows = to_size(said, size), windows_of(batch)
        found = []
        for number, one in enumerate(large):
            if windows is None:
                whole = seen = one[0].sigmoid()
            else:
                values, part = windows[number].restored(one)
                seen = values[0].sigmoid()
                whole = torch.full(windows[number].original, math.nan)
                whole[part] = seen
            row = {"share": (seen >= INSIDE).float().mean().item()}
            name = batch.ids[number] if batch.ids else str(number)
            found.append(Prediction(name, (row,), row, whole))
        return found

    def truth(self, batch: Batch) -> list[Prediction]:
        """The maps of a batch, NaN where nothing counts."""
        ids = batch.ids or tuple(str(number) for number in range(len(batch)))
        maps = torch.where(batch.targets == IGNORED, math.nan, batch.targets.float())
        return [Prediction(name, (), {}, one) for name, one in zip(ids, maps, strict=True)]
