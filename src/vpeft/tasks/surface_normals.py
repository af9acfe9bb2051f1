"""The direction of the surface at each pixel."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional
from torchmetrics import Metric

from ..batch import Batch
from ..data.joint_maps import MapLayer
from ..task import Leading, Prediction, TargetKind, register_task
from .map_outputs import logits_of, to_size
from .number_map_task import NumberMapTask
from .targets import refusal

if TYPE_CHECKING:
    pass

# Degrees within which an angle counts as right, as in Eigen and Fergus, arXiv 1411.4734.
WITHIN = (11.25, 22.5, 30.0)


@register_task("surface_normals", short="normals")
class SurfaceNormals(NumberMapTask):
    """A unit vector for each pixel: outputs (B, 3, h, w), brought to the target's size and to length 1.

    Targets are (B, 3, H, W); pixels with NaN count nowhere.
    """

    target_kind: ClassVar[TargetKind] = "normals"
    channels: ClassVar[int] = 3

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
    def layer(self) -> MapLayer:
        """How the map goes through transforms."""
        return MapLayer(self.target_kind, "vectors")

    def check_batch(self, outputs: Any, batch: Batch) -> None:
        """Refuse targets that are no maps of vectors, and outputs of another number than three."""
        self.check_outputs(outputs)
        targets = batch.targets
        self.check_map(targets[0] if isinstance(targets, (Tensor, list)) and len(targets) else targets)

    def check_map(self, one: Any) -> None:
        """Refuse what is no map of vectors."""
        if not isinstance(one, Tensor) or one.dim() != 3 or len(one) != 3 or not one.is_floating_point():
            raise refusal(self, one)

    # -- how it is learnt ---------------------------------------------------------------------------------------------

    def loss(self, outputs: Any, batch: Batch) -> dict[str, Tensor]:
        """l1 = mean(|n - t|) over the numbers of the known pixels, n the output at length 1 (Vandenhende et al.)."""
        return self.each_loss("l1", lambda said: self._error(said, batch.targets), outputs)

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
        """A map (H, W) of the angle between the surface and the viewing direction, in degrees, and its mean."""
        found = []
        for name, seen, whole in self.shown(outputs, batch, tilt):
            row = {"mean_tilt": seen.mean().item(), "facing": (seen < WITHIN[-1]).float().mean().item()}
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
