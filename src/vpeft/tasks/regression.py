"""Real numbers for each image: one or several, or one of several ordered levels."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional
from torchmetrics import Metric
from torchmetrics.functional import mean_absolute_error, mean_squared_error, r2_score, spearman_corrcoef

from ..batch import Batch
from ..errors import VpeftError
from ..head import HeadText, make_head
from ..task import Leading, Prediction, TargetKind, Task, UnsuitableTargets, register_task
from .targets import refusal, rows_of, told_targets

if TYPE_CHECKING:
    from ..backbones.backbone import Backbone


class UnknownOutputs(VpeftError):
    """A head for numbers of which it is not known how many there are."""


@register_task("regression")
class Regression(Task):
    """K real numbers: outputs (B, K), learnt in units of the training targets' deviation, judged in their own units.

    Targets are (B,) or (B, K); `labels` names the numbers. With `ordinal` the target is one whole number, a level of
    several in order; the outputs are then the logits (B, levels - 1) that it lies above each level but the highest.
    """

    target_kind: ClassVar[TargetKind] = "values"

    loss_kind: Literal["l1", "l2", "huber"] = Field(default="l2", alias="loss")
    """what is minimised: the mean absolute error (l1), the mean squared one (l2), or huber, between both"""
    delta: float = Field(default=1.0, gt=0)
    """huber only: the error, in deviations, from which on it grows linearly"""
    standardise: bool = True
    """learn (target - mean) / deviation of the training targets"""
    ordinal: bool = False
    """the target is one whole number that counts levels in order; learnt as "above this level?" for each level"""
    mean: tuple[float, ...] = ()
    """of the training targets; filled in from the training data"""
    std: tuple[float, ...] = ()
    """of the training targets; filled in from the training data"""
    lowest: int = 0
    """ordinal only: the lowest level; filled in from the training data"""
    levels: int = Field(default=0, ge=0)
    """ordinal only: how many levels there are; filled in from the training data"""
    head_kind: HeadText = Field(default="linear", alias="head")
    """the head, with options where it has any: linear, attentive, mlp(hidden=512); coral for ordinal targets"""

    @property
    def leading(self) -> Leading:
        """The mean absolute error."""
        return Leading("mae", higher_is_better=False)

    # -- what is read -------------------------------------------------------------------------------------------------

    def head(self, backbone: Backbone, width: int) -> nn.Module:
        """The head that `head_kind` names: an output for each number, or for each level but the highest."""
        outputs = max(0, self.levels - 1) if self.ordinal else max(len(self.mean), len(self.labels))
        if not outputs:
            raise UnknownOutputs(
                "It is not known yet how many numbers there are. Bind the task to the training data, task.bind(train),"
                " which tell their targets by an attribute `targets`."
            )
        return make_head(self.head_kind, backbone, width, outputs)

    def bind(self, train: Any) -> Self:
        """With the names of the numbers, and mean and deviation or the levels of the training targets."""
        bound = super().bind(train)
        if bound.levels if bound.ordinal else bound.mean:
            return bound
        targets = told_targets(train)
        rows = None if targets is None or not len(targets) else rows_of(targets)
        if rows is None or not bool(torch.isfinite(rows).all()):
            return bound
        if bound.ordinal:
            low, high = int(rows.min()), int(rows.max())
            return bound.model_copy(update={"lowest": low, "levels": high - low + 1})
        values = rows.double()
        mean, std = values.mean(0), values.std(0, unbiased=False)
        if not bound.standardise:
            mean, std = torch.zeros_like(mean), torch.ones_like(std)
        # A number that is always the same has no deviation to be measured in.
        std = torch.where(std > 0, std, 1.0)
        return bound.model_copy(update={"mean": tuple(mean.tolist()), "std": tuple(std.tolist())})

    def check(self, train: Any) -> None:
        """Refuse targets that are no numbers, or not finite, or for `ordinal` no levels.

        Raises:
            UnsuitableTargets: with the task that fits.
        """
        targets = told_targets(train)
        if targets is None:
            if not (self.levels if self.ordinal else self.mean):
                raise UnsuitableTargets(
                    "Regression needs the targets of all training samples before the first step, to standardise them."
                    " Give the data set an attribute `targets`, or state mean and std (for ordinal lowest and levels)."
                )
            return
        if len(targets):
            self._rows(targets)

    def check_batch(self, outputs: Any, batch: Batch) -> None:
        """Refuse targets that are no numbers, or not as many as the model's outputs."""
        if not isinstance(outputs, Tensor) or outputs.dim() != 2:
            found = tuple(outputs.shape) if isinstance(outputs, Tensor) else type(outputs).__name__
            raise UnsuitableTargets(
                f"The task {self.name} needs outputs (samples, numbers), and the model gives {found}."
            )
        rows = self._rows(batch.targets)
        wanted = self.levels - 1 if self.ordinal else rows.shape[1]
        if outputs.shape[1] != wanted:
            raise UnsuitableTargets(
                f"The model has {outputs.shape[1]} outputs, and the targets need {wanted}. Attach the method with this"
                " task, tune(model, method, task=task), which makes the head."
            )

    def _rows(self, targets: Any) -> Tensor:
        """Targets (N, K), or a refusal."""
        if targets is None:
            raise refusal(self, None, "What belongs to a sample")
        rows = rows_of(targets)
        if rows is None:
            odd = next((one for one in targets if isinstance(one, str) or rows_of([one]) is None), targets[0])
            raise refusal(self, odd)
        if not bool(torch.isfinite(rows).all()):
            raise UnsuitableTargets("A target is NaN or infinite. Leave out the samples whose value is not known.")
        width = 1 if self.ordinal else len(self.mean) or rows.shape[1]
        if rows.shape[1] != width:
            raise UnsuitableTargets(
                f"A target is a vector of {rows.shape[1]} numbers, and {width} {'is' if width == 1 else 'are'} learnt."
            )
        if self.ordinal:
            if bool((rows.frac() != 0).any()):
                raise UnsuitableTargets(
                    f"A target is {rows[rows.frac() != 0][0]:g}, and ordinal regression learns whole numbers. Leave"
                    " ordinal out to learn the number itself."
                )
            low, high = int(rows.min()), int(rows.max())
            if self.levels and (low < self.lowest or high >= self.lowest + self.levels):
                raise UnsuitableTargets(
                    f"A target is {low if low < self.lowest else high}, and the training data have the levels"
                    f" {self.lowest} to {self.lowest + self.levels - 1}. State lowest and levels to learn more."
                )
        return rows

    # -- how it is learnt ---------------------------------------------------------------------------------------------

    def loss(self, outputs: Any, batch: Batch) -> dict[str, Tensor]:
        """The mean over samples and numbers (or levels), in deviations of the training targets."""
        outputs, targets = outputs.float(), _rows(batch).to(outputs.device)
        if self.ordinal:
            above = targets - self.lowest > torch.arange(outputs.shape[1], device=outputs.device)
            return {"ordinal": functional.binary_cross_entropy_with_logits(outputs, above.float())}
        mean, std = self._scale(outputs)
        wanted = ((targets.to(_exact(outputs)) - mean) / std).to(outputs.dtype)
        if self.loss_kind == "l1":
            return {"l1": functional.l1_loss(outputs, wanted)}
        if self.loss_kind == "l2":
            return {"l2": functional.mse_loss(outputs, wanted)}
        return {"huber": functional.huber_loss(outputs, wanted, delta=self.delta)}

    def _scale(self, outputs: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and deviation (K,) of the training targets; 0 and 1 where the task is not bound."""
        kind, width = _exact(outputs), outputs.shape[1]
        mean, std = self.mean or (0.0,) * width, self.std or (1.0,) * width
        return (
            torch.tensor(mean, dtype=kind, device=outputs.device),
            torch.tensor(std, dtype=kind, device=outputs.device),
        )

    def values(self, outputs: Tensor) -> Tensor:
        """Outputs (B, K) of the model -> the numbers (B, K) in their own units, double precision; levels (B, 1)."""
        if self.ordinal:
            return ((outputs > 0).sum(1, keepdim=True) + self.lowest).to(_exact(outputs))
        mean, std = self._scale(outputs)
        return outputs * std + mean

    def monitor(self, outputs: Any, batch: Batch) -> dict[str, Tensor]:
        """The absolute error in the targets' own units, the mean over the numbers of a sample."""
        error = self.values(outputs.detach().float()) - _rows(batch).to(outputs.device)
        return {"mae": error.abs().mean(1).sum()}

    # -- how it is judged ---------------------------------------------------------------------------------------------

    def metric(self) -> Metric:
        """See `RegressionScores`."""
        return RegressionScores(self)

    def predictions(self, outputs: Any, batch: Batch) -> list[Prediction]:
        """The numbers of each sample in their own units, by name."""
        found = []
        for number, row in enumerate(self.values(outputs).tolist()):
            row = [int(one) for one in row] if self.ordinal else row
            names = _names(self.labels, len(row))
            rows = tuple({"name": name, "value": value} for name, value in zip(names, row, strict=True))
            values = dict(zip(names, row, strict=True))
            found.append(Prediction(batch.ids[number] if batch.ids else str(number), rows, {"values": values}))
        return found

    def report(self, details: Mapping[str, Any]) -> list[tuple[str, Sequence[str], Sequence[Sequence[object]]]]:
        """The scores of each number, where there are several."""
        per_value = details.get("per_value", ())
        if len(per_value) < 2:
            return []
        columns = ("name", "mae", "rmse", "r2", "spearman")
        return [("Each number", columns, [[row.get(name) for name in columns] for row in per_value])]


class RegressionScores(Metric):
    """Scores of a regression's outputs against its targets, in the targets' own units and in double precision.

    Values: `mae`, `rmse`, `r2` and `spearman`, each the mean over the numbers; for ordinal targets `mae` counts levels,
    and `accuracy` is the share of the samples whose level is right. `r2` and `spearman` are left out where they are not
    defined: with one sample, or where all targets (for `spearman` also all outputs) are equal. Details: `per_value`.
    """

    is_differentiable = False
    higher_is_better = False
    full_state_update = False

    said: list[Tensor]
    wanted: list[Tensor]

    def __init__(self, task: Regression) -> None:
        super().__init__()
        self.task = task
        # All of them, as ranks need.
        self.add_state("said", [], dist_reduce_fx="cat")
        self.add_state("wanted", [], dist_reduce_fx="cat")

    def update(self, outputs: Tensor, batch: Batch) -> None:
        """Keep a batch: outputs (B, K), and numbers (B,) or (B, K) as the batch's targets."""
        self.said.append(self.task.values(outputs))
        self.wanted.append(_rows(batch).double())

    def compute(self) -> dict[str, Any]:
        """Values by name, and the details."""
        said, wanted = (torch.cat(part) if isinstance(part, list) else part for part in (self.said, self.wanted))
        each = [_scores(said[:, k].contiguous(), wanted[:, k].contiguous()) for k in range(wanted.shape[1])]
        found: dict[str, Any] = {}
        for name in ("mae", "rmse", "r2", "spearman"):
            known = [scores[name] for scores in each if name in scores]
            if known:
                found[name] = sum(known) / len(known)
        if self.task.ordinal:
            found["accuracy"] = float((said == wanted).double().mean())
        names = _names(self.task.labels, len(each))
        found["per_value"] = [{"name": name, **scores} for name, scores in zip(names, each, strict=True)]
        return found


def _scores(said: Tensor, wanted: Tensor) -> dict[str, float]:
    """Of one number, (N,) and (N,)."""
    found = {
        "mae": mean_absolute_error(said, wanted).item(),
        "rmse": mean_squared_error(said, wanted, squared=False).item(),
    }
    if len(wanted) > 1 and bool((wanted != wanted[0]).any()):
        # About their mean, so that far from zero no digits are lost.
        centre = wanted.mean()
        found["r2"] = r2_score(said - centre, wanted - centre).item()
        if bool((said != said[0]).any()):
            found["spearman"] = spearman_corrcoef(said, wanted).item()
    return {name: value for name, value in found.items() if math.isfinite(value)}


def _exact(outputs: Tensor) -> torch.dtype:
    """Double precision, so that large targets keep their digits; single where the device has no double."""
    return torch.float32 if outputs.device.type == "mps" else torch.float64


def _rows(batch: Batch) -> Tensor:
    """The targets (B, K), also where they came as (B,) or as lists."""
    rows = rows_of(batch.targets)
    assert rows is not None  # `check_batch` has refused others
    return rows


def _names(labels: Sequence[str], count: int) -> list[str]:
    """The names of the numbers; "value", or numbers from 0 on, where there are none."""
    if len(labels) == count:
        return list(labels)
    return ["value"] if count == 1 else [str(k) for k in range(count)]
