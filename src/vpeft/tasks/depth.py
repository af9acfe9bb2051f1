"""A depth for each pixel."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

import torch
from pydantic import Field
from torch import Tensor, nn
from torchmetrics import Metric

from ..batch import Batch
from ..data.joint import Fitting, MapTransform, depth_transform
from ..data.joint_maps import MapLayer
from ..data.preprocessing import Preprocessing
from ..task import Leading, Prediction, TargetKind, UnsuitableTargets, register_task
from .map_outputs import logits_of, to_size
from .number_map_task import NumberMapTask
from .targets import refusal, told_targets

if TYPE_CHECKING:
    pass

# Training images whose depths tell the scale, evenly spaced over the data set.
LOOKED_AT = 64
# The ratio of which delta1, delta2 and delta3 are the first three powers (Eigen et al., arXiv 1406.2283).
DELTA = 1.25


@register_task("depth")
class Depth(NumberMapTask):
    """The distance of each pixel, in the unit of the targets: outputs z (B, 1, h, w), depth = scale * exp(z).

    z is brought to the size of the target bilinearly, before the exponential. Targets are (B, H, W); a depth that is
    NaN, infinite or not above zero is not known and counts nowhere.
    """

    target_kind: ClassVar[TargetKind] = "depth"
    channels: ClassVar[int] = 1

    loss_kind: Literal["silog", "l1"] = Field(default="silog", alias="loss")
    """what is minimised: the scale-invariant error of the logarithm (silog), or the mean absolute error (l1)"""
    variance_focus: float = Field(default=0.85, ge=0, le=1)
    """silog only: the share of the mean error that is forgiven; 1 leaves the scale of an image open"""
    max_depth: float | None = Field(default=None, gt=0)
    """larger depths count nowhere, and predictions are cut off there"""
    scale: float = Field(default=0.0, ge=0)
    """the geometric mean of the depths; filled in from the training data"""

    @property
    def leading(self) -> Leading:
        """The mean relative error."""
        return Leading("abs_rel", higher_is_better=False)

    # -- what is read -------------------------------------------------------------------------------------------------

    @property
    def padding(self) -> float:
        """NaN: not known."""
        return math.nan

    @property
    def layer(self) -> MapLayer:
        """How the map goes through the transforms of several maps."""
        return MapLayer(self.target_kind, "depth")

    def map_transform(
        self,
        preprocessing: Preprocessing,
        training: bool,
        size: tuple[int, int] | None,
        shortest: tuple[int, ...] | None,
        longest: int | None,
        augment: str,
        fit: Fitting | None,
    ) -> MapTransform:
        """The joint transform of images and depth maps."""
        return depth_transform(preprocessing, training, size, shortest, longest, augment, fit)

    def bind(self, train: Any) -> Self:
        """With the scale of the training depths, as far as the data set tells them."""
        if self.scale:
            return self
        targets = told_targets(train)
        if targets is None and isinstance(getattr(train, "targets", None), Sequence):
            targets = train.targets  # made one by one as they are asked for, as few as are looked at
        count = 0 if targets is None else len(targets)
        if targets is None or not count:
            return self
        few = min(LOOKED_AT, count)
        looked = sorted({round(i * (count - 1) / max(1, few - 1)) for i in range(few)})
        total, number = 0.0, 0
        for index in looked:
            depths = targets[index]
            if not isinstance(depths, Tensor) or not depths.is_floating_point():
                return self
            logs = depths[self._known(depths)].double().log()
            total, number = total + float(logs.sum()), number + logs.numel()
        return self.model_copy(update={"scale": math.exp(total / number)}) if number else self

    def check_batch(self, outputs: Any, batch: Batch) -> None:
        """Refuse targets that are no depth maps, and outputs that are no single map."""
        self.check_outputs(outputs)
        depths = _as_depths(batch.targets)
        if isinstance(depths, list) and depths and all(isinstance(one, Tensor) and one.dim() == 2 for one in depths):
            sizes = sorted({tuple(one.shape) for one in depths})
            raise UnsuitableTargets(f"The depth maps of one batch have different sizes: {sizes[:5]}.")
        whole = isinstance(depths, (Tensor, list)) and len(depths) > 0
        self.check_map(depths[0] if whole else depths)

    def check_map(self, one: Any) -> None:
        """Refuse the target of one sample where it is no depth map."""
        if not isinstance(one, Tensor) or one.dim() not in (2, 3) or (one.dim() == 3 and len(one) != 1):
            raise refusal(self, one)
        if not one.is_floating_point():
            raise UnsuitableTargets(
                f"A map holds {one.dtype}, and the task {self.name} learns depths as real numbers: give"
                " depth.float(). For class numbers there is the task semantic_segmentation."
            )

    def _known(self, depths: Tensor) -> Tensor:
        """Where a depth is known and counts."""
        known = torch.isfinite(depths) & (depths > 0)
        return known if self.max_depth is None else known & (depths <= self.max_depth)

    # -- how it is learnt ---------------------------------------------------------------------------------------------

    def loss(self, outputs: Any, batch: Batch) -> dict[str, Tensor]:
        """With the error e = log(depth) - log(target) of each pixel that counts, or the depths d and t themselves:

            silog = sqrt(mean(e^2) - variance_focus * mean(e)^2)      l1 = mean(|d - t|) / scale

        The means are over the pixels of the batch. Source of silog: Eigen et al., arXiv 1406.2283, in the form and with
        the 0.85 of Lee et al., arXiv 1907.10326, who multiply it by 10.
        """
        depths = _as_depths(batch.targets)
        known = self._known(depths)
        return self.each_loss(self.loss_kind, lambda said: self._error(said, depths, known), outputs)

    def _error(self, outputs: Tensor, depths: Tensor, known: Tensor) -> Tensor:
        said = to_size(outputs.float(), depths.shape[-2:])[:, 0]
        if not bool(known.any()):
            return (said * 0).sum()
        said, true = said[known], depths[known].float() / self._unit
        if self.loss_kind == "l1":
            return (said.exp() - true).abs().mean()
        error = said - true.log()
        # The square root has no slope at zero.
        return (error.square().mean() - self.variance_focus * error.mean().square()).clamp(min=1e-12).sqrt()

    @property
    def _unit(self) -> float:
        return self.scale or 1.0

    def monitor(self, outputs: Any, batch: Batch) -> dict[str, Tensor]:
        """The mean relative error of each sample, at the output's own resolution."""
        outputs = logits_of(outputs).detach().float()
        depths = nn.functional.interpolate(_as_depths(batch.targets)[:, None], outputs.shape[-2:], mode="nearest-exact")
        known = self._known(depths)
        true = torch.where(known, depths, 1.0)
        error = ((self._unit * outputs.exp() - true).abs() / true * known).sum((1, 2, 3))
        return {"abs_rel": (error / known.sum((1, 2, 3)).clamp(min=1)).sum()}

    # -- how it is judged ---------------------------------------------------------------------------------------------

    def metric(self) -> Metric:
        """See `DepthScores`."""
        return DepthScores(self)

    def depth_of(self, outputs: Tensor) -> Tensor:
        """Outputs of a head, at any resolution, as depths."""
        depths = self._unit * outputs.exp()
        return depths if self.max_depth is None else depths.clamp(max=self.max_depth)

    def predictions(self, outputs: Any, batch: Batch) -> list[Prediction]:
        """The depth of each pixel (H, W), and the nearest, the middle and the farthest one."""
        found = []
        for name, seen, whole in self.shown(outputs, batch, lambda one: self.depth_of(one[0])):
            row = {"nearest": seen.min().item(), "median": seen.median().item(), "farthest": seen.max().item()}
            found.append(Prediction(name, (row,), row, whole))
        return found

    def truth(self, batch: Batch) -> list[Prediction]:
        """The depth maps of a batch, NaN where nothing is known."""
        ids, depths = batch.ids or tuple(str(number) for number in range(len(batch))), _as_depths(batch.targets)
        known = torch.where(self._known(depths), depths, math.nan)
        return [Prediction(name, (), {}, one) for name, one in zip(ids, known, strict=True)]

    def report(self, details: Mapping[str, Any]) -> list[tuple[str, Sequence[str], Sequence[Sequence[object]]]]:
        """How wrong depths are, by how far away things are."""
        columns = ("depth", "pixels", "abs_rel", "delta1")
        rows = [[row[name] for name in columns] for row in details.get("by_depth", ())]
        return [("By depth", columns, rows)] if rows else []


# Ranges of the true depth in the details of the scores, as powers of two times the scale.
RANGES = (0.0, 0.25, 0.5, 1.0, 2.0, 4.0, math.inf)


class DepthScores(Metric):
    """Scores of outputs (B, 1, h, w), brought to the targets' size, against depths (B, H, W).

    Over all known pixels of the data set, with depth d and truth t: `rmse` = sqrt(mean((d - t)^2)), `abs_rel` =
    mean(|d - t| / t), `mae` = mean(|d - t|), `delta1` to `delta3` the shares with max(d / t, t / d) < 1.25, 1.25^2 and
    1.25^3 (Eigen et al., arXiv 1406.2283), and `silog` = sqrt(mean(e^2) - mean(e)^2) for e = log d - log t, which no
    factor of all depths changes. Details: `by_depth`, errors by ranges of the truth.
    """

    is_differentiable = False
    full_state_update = False

    sums: Tensor
    ranges: Tensor

    def __init__(self, task: Depth) -> None:
        super().__init__()
        self.task = task
        self.add_state("sums", torch.zeros(9, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("ranges", torch.zeros(len(RANGES) - 1, 3, dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, outputs: Any, batch: Batch) -> None:
        """Count a batch."""
        depths = _as_depths(batch.targets)
        known = self.task._known(depths)
        large = to_size(logits_of(outputs).float(), depths.shape[-2:])[:, 0]
        said, true = self.task.depth_of(large)[known].double(), depths[known].double()
        if not true.numel():
            return
        error, log = said - true, said.log() - true.log()
        relative, ratio = error.abs() / true, log.abs().exp()
        shares = [(ratio < DELTA**power).double() for power in (1, 2, 3)]
        parts = (torch.ones_like(true), error.square(), relative, error.abs(), *shares, log, log.square())
        self.sums += torch.stack([part.sum() for part in parts])
        edges = torch.tensor(RANGES[1:-1], dtype=torch.float64, device=true.device) * self.task._unit
        place = torch.bucketize(true, edges, right=True)
        self.ranges.index_add_(0, place, torch.stack((torch.ones_like(true), relative, shares[0]), dim=1))

    def compute(self) -> dict[str, Any]:
        """Values by name, and the details."""
        count = self.sums[0].item()
        means = (self.sums / count).tolist() if count else [math.nan] * len(self.sums)
        names = ("abs_rel", "mae", "delta1", "delta2", "delta3")
        unit = self.task._unit
        rows = []
        for low, high, (number, relative, right) in zip(RANGES, RANGES[1:], self.ranges.tolist(), strict=False):
            if number:
                said = f"{low * unit:.3g} to {high * unit:.3g}" if math.isfinite(high) else f"from {low * unit:.3g} on"
                rows.append(
                    {"depth": said, "pixels": int(number), "abs_rel": relative / number, "delta1": right / number}
                )
        return {
            "rmse": math.sqrt(means[1]) if count else math.nan,
            **dict(zip(names, means[2:7], strict=True)),
            "silog": math.sqrt(max(0.0, means[8] - means[7] ** 2)) if count else math.nan,
            "by_depth": rows,
        }


def _as_depths(targets: Any) -> Any:
    """Depths (B, H, W) or (B, 1, H, W) as (B, H, W); anything else as it is."""
    if not isinstance(targets, Tensor):
        return targets
    depths = targets.as_subclass(Tensor)
    return depths[:, 0] if depths.dim() == 4 and depths.shape[1] == 1 else depths
