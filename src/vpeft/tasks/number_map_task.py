"""What tasks with some numbers for each pixel have in common: a head with so many outputs, checks, the way back."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from ..batch import Batch
from ..data.joint import Fitting
from ..data.joint_maps import MapsTransform, maps_transform
from ..data.preprocessing import Preprocessing
from ..head import HeadText, make_head
from ..task import UnsuitableTargets
from .map_outputs import auxiliary_of, logits_of, to_size
from .map_task import MapTask, windows_of
from .targets import told_targets

if TYPE_CHECKING:
    from ..backbones.backbone import Backbone


class NumberMapTask(MapTask):
    """`channels` numbers for each pixel: outputs (B, channels, h, w), brought to the target's size.

    A head may give a mapping in training: `logits`, and further outputs of any size, each with its own loss.

    Class attributes:
        channels: how many numbers.
    """

    channels: ClassVar[int]

    auxiliary_weight: float = Field(default=0.4, ge=0)
    """weight of the loss of a head's auxiliary outputs, where it has any (upernet)"""
    head_kind: HeadText = Field(default="segformer_map", alias="head")
    """the head, with options where it has any: linear_map, segformer_map(channels=256), upernet(channels=512)"""

    # -- what is read -------------------------------------------------------------------------------------------------

    @property
    def own_transforms(self) -> bool:
        """Always: the numbers are no class numbers, and the bars beside an image have none."""
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
    ) -> Callable[..., Any]:
        """The joint transform of images and maps."""
        made: MapsTransform = maps_transform(preprocessing, training, self.layer, size, shortest, longest, augment, fit)
        return made

    def head(self, backbone: Backbone, width: int) -> nn.Module:
        """The head that `head_kind` names, with as many outputs as there are numbers."""
        return make_head(self.head_kind, backbone, width, self.channels)

    @abstractmethod
    def check_map(self, one: Any) -> None:
        """Refuse the target of one sample that the task does not learn.

        Raises:
            UnsuitableTargets: with the task that fits.
        """

    def check(self, train: Any) -> None:
        """Refuse targets that are no maps of the task's kind, as far as the data set tells them.

        Raises:
            UnsuitableTargets: with the task that fits.
        """
        targets = told_targets(train)
        # Paths of maps, as torchvision's data sets tell, say nothing of what is in them.
        if targets is not None and len(targets) and not isinstance(targets[0], str):
            self.check_map(targets[0])

    def check_outputs(self, outputs: Any) -> None:
        """Refuse outputs of another shape or number."""
        outputs = logits_of(outputs)
        if not isinstance(outputs, Tensor) or outputs.dim() != 4 or outputs.shape[1] != self.channels:
            found = tuple(outputs.shape) if isinstance(outputs, Tensor) else type(outputs).__name__
            raise UnsuitableTargets(
                f"The task {self.name} needs outputs (samples, {self.channels}, rows, columns), and the model gives"
                f" {found}. Attach the method with this task, tune(model, method, task=task), which makes the head."
            )

    # -- how it is learnt ---------------------------------------------------------------------------------------------

    def each_loss(self, name: str, error: Callable[[Tensor], Tensor], outputs: Any) -> dict[str, Tensor]:
        """`error` of the outputs under `name`, and that of each auxiliary output under its own, times its weight."""
        losses = {name: error(logits_of(outputs))}
        for other, further in auxiliary_of(outputs).items():
            losses[other] = self.auxiliary_weight * error(further)
        return losses

    # -- how it is judged ---------------------------------------------------------------------------------------------

    def shown(
        self, outputs: Any, batch: Batch, answer: Callable[[Tensor], Tensor]
    ) -> Iterator[tuple[str, Tensor, Tensor]]:
        """The name of each sample, the answer for what the model was shown of it, and the map of the whole image.

        Args:
            outputs: of the head, (B, channels, h, w).
            batch: that they are for.
            answer: outputs of one sample (channels, H, W) -> a map (H, W).

        Yields:
            with a map of the size of the original image where the batch says it (as samples for prediction do), with
            NaN where the model was not shown it; else of the size of the inputs.
        """
        said = logits_of(outputs).float()
        size = batch.inputs.shape[-2:] if isinstance(batch.inputs, Tensor) else said.shape[-2:]
        windows = windows_of(batch)
        for number, one in enumerate(to_size(said, size)):
            if windows is None:
                whole = seen = answer(one)
            else:
                values, part = windows[number].restored(one)
                seen = answer(values)
                whole = torch.full(windows[number].original, math.nan)
                whole[part] = seen
            yield batch.ids[number] if batch.ids else str(number), seen, whole
