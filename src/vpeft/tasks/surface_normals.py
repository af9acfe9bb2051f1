"""The direction of the surface at each pixel."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional
from torchmetrics import Metric

from ..batch import Batch
from ..data.joint import Fitting
from ..data.joint_maps import MapLayer, MapsTransform, maps_transform
from ..data.preprocessing import Preprocessing
from ..head import HeadText, make_head
from ..task import Leading, Prediction, TargetKind, UnsuitableTargets, register_task
from .map_outputs import auxiliary_of, logits_of, to_size
from .map_task import MapTask, windows_of
from .targets import refusal, told_targets

if TYPE_CHECKING:
    from ..backbones.backbone import Backbone

# Degrees within which an angle counts as right, as in Eigen and Fergus, arXiv 1411.4734.
WITHIN = (11.25, 22.5, 30.0)


@register_task("surface_normals", short="normals")
class SurfaceNormals(MapTask):
    """A unit vector for each pixel: outputs (B, 3, h, w), brought to the target's size and to length 1.

    Targets are (B, 3, H, W); pixels with NaN count nowhere. A head may give a mapping in training: `logits`, and
    further outputs of any size, each with its own loss.
    """

    target_kind: ClassVar[TargetKind] = "normals"

    auxiliary_weight: float = Field(default=0.4, ge=0)
    """weight of the loss of a head's auxiliary outputs, where it has any (upernet)"""
    head_kind: HeadText = Field(default="segformer_map", alias="head")
    """the head, with options where it has any: linear_map, segformer_map(channels=256), upernet(channels=512)"""

    @property
    def leading(self) -> Leading:
        """The mean angle between prediction and truth, in degrees."""
        return Leading("mean_angle", higher_is_better=False)

    # -- what is read -------------------------------------------------------------------------------------------------

    @property
    def padding(self) -> float:
        """NaN: not known."""
        return math.nan

    @property
    def own_transforms(self) -> bool:
        """Always: vectors turn round when an image is mirrored."""
        return True

    @property
    def layer(self) -> MapLayer:
        """How the map goes through transforms."""
        return MapLayer(self.target_kind, "vectors")

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
        """The joint transform of images and maps of vectors."""
        return maps_transform(preprocessing, training, self.layer, size, shortest, longest, augment, fit)

    def head(self, backbone: Backbone, width: int) -> nn.Module:
        """The head that `head_kind` names, with three outputs."""
        return make_head(self.head_kind, backbone, width, 3)

    def check(self, train: Any) -> None:
        """Refuse targets that are no maps of vectors, as far as the data set tells them.

        Raises:
            UnsuitableTargets: with the task that fits.
        """
        targets = told_targets(train)
        if targets is not None and len(targets) and not isinstance(targets[0], str):
            self._check_map(targets[0])

    def check_batch(self, outputs: Any, batch: Batch) -> None:
        """Refuse targets that are no maps of vectors, and outputs of another number than three."""
        outputs = logits_of(outputs)
        if not isinstance(outputs, Tensor) or outputs.dim() != 4 or outputs.shape[1] != 3:
            found = tuple(outputs.shape) if isinstance(outputs, Tensor) else type(outputs).__name__
            raise UnsuitableTargets(
                f"The task {self.name} needs outputs (samples, 3, rows, columns), and the model gives {found}. Attach"
                " the method with this task, tune(model, method, task=task), which makes the head."
            )
        targets = batch.targets
        self._check_map(targets[0] if isinstance(targets, (Tensor, list)) and len(targets) else targets)

    def _check_map(self, one: Any) -> None:
        if not isinstance(one, Tensor) or one.dim() != 3 or len(one) != 3 or not one.is_floating_point():
            raise refusal(self, one)

    # -- how it is learnt ---------------------------------------------------------------------------------------------

    def loss(self, outputs: Any, batch: Batch) -> dict[str, Tensor]:
        """l1 = mean(|n - t|) over the numbers of the known pixels, n the output at length 1 (Vandenhende et al.)."""
        losses = {"l1": self._error(logits_of(outputs), batch.targets)}
        for name, further in auxiliary_of(outputs).items():
            losses[name] = self.auxiliary_weight * self._error(further, batch.targets)
        return losses

    def _error(self, outputs: Tensor, targets: Tensor) -> Tensor:
        said = unit_vectors(outputs, targets.shape[-2:])
        known = torch.isfinite(targets).all(1, keepdim=True)
        off = (said - torch.where(known, targets, 0.0)).abs() * known
        return off.sum() / (3 * known.sum()).clamp(min=1)

    def monitor(self, outputs: Any, batch: Batch) -> dict[str, Tensor]:
        """The mean angle of each sample in degrees."""
        targets = batch.targets
        angles, known = angles_between(unit_vectors(logits_of(outputs).detach(), targets.shape[-2:]), targets)
        return {"mean_angle": (angles.sum((1, 2)) / known.sum((1, 2)).clamp(min=1)).sum()}

    # -- how it is judged ---------------------------------------------------------------------------------------------

    def metric(self) -> Metric:
        """See `NormalScores`."""
        return NormalScores()

    def predictions(self, outputs: Any, batch: Batch) -> list[Prediction]:
        """A map (H, W) of the angle between the surface and the viewing direction, in degrees, and its mean.

        (H, W) is the size of the original image where the batch says it, with NaN where the model was not shown it;
        else the size of the inputs.
        """
        said = logits_of(outputs).float()
        size = batch.inputs.shape[-2:] if isinstance(batch.inputs, Tensor) else said.shape[-2:]
        large, windows = to_size(said, size), windows_of(batch)
        found = []
        for number, one in enumerate(large):
            if windows is None:
                whole = seen = tilt(one)
            else:
                values, part = windows[number].restored(one)
                seen = tilt(values)
                whole = torch.full(windows[number].original, math.nan)
                whole[part] = seen
            row = {"mean_tilt": seen.mean().item(), "facing": (seen < WITHIN[-1]).float().mean().item()}
            name = batch.ids[number] if batch.ids else str(number)
            found.append(Prediction(name, (row,), row, whole))
        return found

    def truth(self, batch: Batch) -> list[Prediction]:
        """The angle between the surface and the viewing direction, NaN where nothing is known."""
        ids = batch.ids or tuple(str(number) for number in range(len(batch)))
        return [Prediction(name, (), {}, tilt(one)) for name, one in zip(ids, batch.targets, strict=True)]

    def report(self, details: Mapping[str, Any]) -> list[tuple[str, Sequence[str], Sequence[Sequence[object]]]]:
        """The share of pixels within some angles."""
        rows = details.get("within", ())
        return (
            [("Within an angle", ("degrees", "share"), [[one["degrees"], one["share"]] for one in rows])]
            if rows
            else []
        )


def unit_vectors(outputs: Tensor, size: Sequence[int]) -> Tensor:
    """Outputs (B, 3, h, w) as vectors of length 1, (B, 3, H, W)."""
    return functional.normalize(to_size(outputs.float(), size), dim=1)


def angles_between(said: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Angles in degrees (B, H, W) between unit vectors (B, 3, H, W), 0 where the target is not known; where it is."""
    known = torch.isfinite(targets).all(1)
    cosine = (said * torch.where(known[:, None], targets, 0.0)).sum(1).clamp(-1.0, 1.0)
    return torch.where(known, torch.rad2deg(torch.arccos(cosine)), 0.0), known


def tilt(vectors: Tensor) -> Tensor:
    """Vectors (3, H, W) of any length as their angle to the viewing direction in degrees (H, W), whichever its sign."""
    facing = functional.normalize(vectors, dim=0)[2].abs().clamp(max=1.0)
    return torch.rad2deg(torch.arccos(facing))


class NormalScores(Metric):
    """Angles between outputs (B, 3, h, w), brought to the targets' size, and targets (B, 3, H, W), in degrees.

    Over all known pixels of the data set: `mean_angle`, `rmse_angle` = sqrt(mean(angle^2)), and `within_11`,
    `within_22` and `within_30`, the shares below 11.25, 22.5 and 30 degrees.
    """

    is_differentiable = False
    full_state_update = False

    sums: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("sums", torch.zeros(3 + len(WITHIN), dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, outputs: Any, batch: Batch) -> None:
        """Count a batch."""
        targets = batch.targets
        angles, known = angles_between(unit_vectors(logits_of(outputs), targets.shape[-2:]), targets)
        found = angles[known].double()
        parts = [torch.ones_like(found), found, found.square(), *((found < limit).double() for limit in WITHIN)]
        self.sums += torch.stack([part.sum() for part in parts])

    def compute(self) -> dict[str, Any]:
        """Values by name, and the details."""
        count = self.sums[0].item()
        means = (self.sums / count).tolist() if count else [math.nan] * len(self.sums)
        shares = dict(zip(WITHIN, means[3:], strict=True))
        return {
            "mean_angle": means[1],
            "rmse_angle": math.sqrt(means[2]) if count else math.nan,
            **{f"within_{int(limit)}": share for limit, share in shares.items()},
            "within": [{"degrees": limit, "share": share} for limit, share in shares.items()],
        }
