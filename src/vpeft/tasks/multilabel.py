"""Any number of labels for each image, each a yes or no of its own."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

import torch
from pydantic import Field, field_validator
from torch import Tensor, nn
from torch.nn import functional
from torchmetrics import Metric
from torchmetrics.classification import MultilabelAveragePrecision

from ..batch import Batch
from ..errors import VpeftError
from ..head import HeadText, make_head
from ..task import Leading, Prediction, TargetKind, Task, UnsuitableTargets, register_task
from .targets import label_names, refusal, rows_of, told_targets

if TYPE_CHECKING:
    from ..backbones.backbone import Backbone


class NoLabels(VpeftError):
    """A head for labels whose names or number are not known."""


@register_task("multilabel")
class MultiLabel(Task):
    """Any number of K labels: logits (B, K), learnt by binary cross-entropy, judged by mean average precision.

    Targets are (B, K), 1 where the label is there and 0 where it is not, in the order of `labels`.
    """

    target_kind: ClassVar[TargetKind] = "labels"

    positive_weights: Literal["none", "balanced"] | tuple[float, ...] = "none"
    """how much the presence of each label counts in the loss: none, balanced (absent for each present), or a list"""
    weights: tuple[float, ...] = ()
    """the balanced weights themselves; filled in from the training data"""
    threshold: float = Field(default=0.5, gt=0, lt=1)
    """probability from which on a label is stated"""
    choose_thresholds: bool = False
    """choose a threshold for each label on the validation samples, by the best F1, when training is over"""
    thresholds: tuple[float, ...] = ()
    """the chosen thresholds; filled in by choose_thresholds"""
    head_kind: HeadText = Field(default="linear", alias="head")
    """the head, with options where it has any: linear, attentive, mlp(hidden=512)"""

    @field_validator("positive_weights")
    @classmethod
    def _positive(cls, weights: str | tuple[float, ...]) -> str | tuple[float, ...]:
        if not isinstance(weights, str) and not (weights and all(0 < one < math.inf for one in weights)):
            raise ValueError("a list of positive weights holds numbers above 0, one for each label")
        return weights

    @property
    def leading(self) -> Leading:
        """The mean average precision."""
        return Leading("map")

    # -- what is read -------------------------------------------------------------------------------------------------

    def head(self, backbone: Backbone, width: int) -> nn.Module:
        """The head that `head_kind` names, with one output for each label; `NoLabels` where none is known."""
        if not self.labels:
            raise NoLabels(
                "The labels are not known yet. Give them, MultiLabel(labels=(...)), or bind the task to data that name"
                " theirs, task.bind(train)."
            )
        return make_head(self.head_kind, backbone, width, len(self.labels))

    def bind(self, train: Any) -> Self:
        """With the label names, and the weights where they follow from the training data."""
        bound = super().bind(train)
        targets = told_targets(train) if bound.positive_weights == "balanced" and not bound.weights else None
        rows = None if targets is None else rows_of(targets)
        if rows is None:
            return bound
        there = rows.double().sum(0)
        # A label that is always or never there teaches nothing that a weight could mend.
        weights = torch.where((there > 0) & (there < len(rows)), (len(rows) - there) / there.clamp(min=1), 1.0)
        return bound.model_copy(update={"weights": tuple(weights.tolist())})

    def check(self, train: Any) -> None:
        """Refuse targets that are no vectors of 0 and 1, one for each label, as far as the data set tells them.

        Raises:
            UnsuitableTargets: with the task that fits.
        """
        targets = told_targets(train)
        if targets is None:
            if self.positive_weights == "balanced" and not self.weights:
                raise UnsuitableTargets(
                    "positive_weights = 'balanced' needs the labels of all samples before the first step. Give the data"
                    " set an attribute `targets`, or list the weights."
                )
            return
        if len(targets):
            self._check_rows(targets, len(self.labels) or None, "there are {} labels")
        if self._weights and self.labels and len(self._weights) != len(self.labels):
            raise UnsuitableTargets(
                f"There are {len(self._weights)} positive weights for {len(self.labels)} labels. Give one for each, in"
                f" the order {', '.join(self.labels[:10])}."
            )

    def check_batch(self, outputs: Any, batch: Batch) -> None:
        """Refuse targets that are no vectors of 0 and 1, one for each output."""
        if not isinstance(outputs, Tensor) or outputs.dim() != 2:
            raise UnsuitableTargets(
                f"The task {self.name} needs outputs (samples, labels), and the model gives"
                f" {tuple(outputs.shape) if isinstance(outputs, Tensor) else type(outputs).__name__}."
            )
        self._check_rows(batch.targets, outputs.shape[1], "the model has {} outputs")

    def _check_rows(self, targets: Any, labels: int | None, there: str) -> None:
        if targets is None:
            raise refusal(self, None, "What belongs to a sample")
        rows = rows_of(targets)
        flat = isinstance(targets, Tensor) and targets.dim() == 1
        if rows is None or flat or (rows.shape[1] == 1 and (labels or 2) > 1):
            odd = next((one for one in targets if not isinstance(one, Tensor) or one.dim() != 1), targets[0])
            raise refusal(self, odd)
        zero_one = ((rows == 0) | (rows == 1)).all(1)
        if not bool(zero_one.all()):
            raise refusal(self, rows[~zero_one][0])
        if labels is not None and rows.shape[1] != labels:
            raise UnsuitableTargets(
                f"A target is a vector of {rows.shape[1]} zeros and ones, and {there.format(labels)}. Give one for each"
                f" label: {', '.join(self.labels[:10]) or labels}."
            )

    # -- how it is learnt ---------------------------------------------------------------------------------------------

    @property
    def _weights(self) -> tuple[float, ...]:
        """Of each label; empty where all count alike."""
        return self.weights if isinstance(self.positive_weights, str) else self.positive_weights

    def loss(self, outputs: Any, batch: Batch) -> dict[str, Tensor]:
        """-mean of w t log p + (1 - t) log(1 - p) over samples and labels, for the probabilities p and weights w."""
        logits = outputs.float()
        weights = torch.tensor(self._weights, device=logits.device) if self._weights else None
        targets = _rows(batch).to(logits)
        return {
            "binary_cross_entropy": functional.binary_cross_entropy_with_logits(logits, targets, pos_weight=weights)
        }

    def monitor(self, outputs: Any, batch: Batch) -> dict[str, Tensor]:
        """The share of the labels that are stated rightly."""
        right = (outputs.detach() > 0) == (_rows(batch).to(outputs.device) > 0)
        return {"label_accuracy": right.float().mean(1).sum()}

    # -- how it is judged ---------------------------------------------------------------------------------------------

    def metric(self) -> Metric:
        """See `MultiLabelScores`."""
        return MultiLabelScores(self.labels, self.thresholds or (self.threshold,))

    def calibrated(self, outputs: Callable[[], Iterable[tuple[Any, Batch]]]) -> Self:
        """With `choose_thresholds`, for each label the threshold of the best F1 on the validation samples."""
        if not self.choose_thresholds:
            return self
        found = [(logits.double().sigmoid(), _rows(batch)) for logits, batch in outputs()]
        if not found:
            return self
        probabilities, targets = (torch.cat(part) for part in zip(*found, strict=True))
        chosen = [
            best_threshold(column, there, self.threshold)
            for column, there in zip(probabilities.T, targets.T > 0, strict=True)
        ]
        return self.model_copy(update={"thresholds": tuple(chosen)})

    def averaged(self, outputs: Any, views: int) -> Tensor:
        """Logits (B, K) whose probabilities are the mean of those of the views."""
        logits = outputs.double().unflatten(0, (-1, views))
        there, absent = functional.logsigmoid(logits).logsumexp(1), functional.logsigmoid(-logits).logsumexp(1)
        return (there - absent).to(outputs.dtype)

    def predictions(self, outputs: Any, batch: Batch) -> list[Prediction]:
        """The labels whose probability reaches their threshold, the most probable first."""
        probabilities = outputs.double().sigmoid()
        names = label_names(self.labels, probabilities.shape[1])
        thresholds = self.thresholds or (self.threshold,) * len(names)
        found = []
        for number, row in enumerate(probabilities.tolist()):
            stated = [
                (value, name) for value, name, least in zip(row, names, thresholds, strict=True) if value >= least
            ]
            stated.sort(key=lambda one: -one[0])
            rows = tuple({"label": name, "probability": value} for value, name in stated)
            values = {"probabilities": dict(zip(names, row, strict=True))}
            found.append(Prediction(batch.ids[number] if batch.ids else str(number), rows, values))
        return found

    def report(self, details: Mapping[str, Any]) -> list[tuple[str, Sequence[str], Sequence[Sequence[object]]]]:
        """Average precision and F1 of each label."""
        columns = ("label", "samples", "average_precision", "f1", "threshold")
        rows = [[row[name] for name in columns] for row in details.get("per_label", ())]
        return [("Each label", columns, rows)] if rows else []


class MultiLabelScores(Metric):
    """Scores of logits (B, K) against 0 and 1 (B, K).

    Values: `map` (the mean of the labels' average precisions, over labels that are there at least once), `micro_f1` and
    `macro_f1` at the thresholds (the latter over labels that are there or stated), `loss` (the mean binary
    cross-entropy, unweighted). Details: `per_label`.
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False

    right: Tensor
    stated: Tensor
    there: Tensor
    loss_sum: Tensor
    samples: Tensor

    def __init__(self, labels: Sequence[str], thresholds: Sequence[float]) -> None:
        super().__init__()
        self.labels, self.thresholds = tuple(labels), tuple(thresholds)
        self.add_state("loss_sum", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("samples", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")
        self._count_in(max(1, len(self.labels)))

    def _count_in(self, labels: int) -> None:
        """Begin to count so many labels."""
        for name in ("right", "stated", "there"):
            self.add_state(name, torch.zeros(labels, dtype=torch.int64), dist_reduce_fx="sum")
        # Two labels at least is what torchmetrics takes; a second column that is never there leaves the first alone.
        self.precision = MultilabelAveragePrecision(max(2, labels), average="none", validate_args=False)

    def reset(self) -> None:
        """Forget all samples."""
        super().reset()
        self.precision.reset()

    def update(self, outputs: Tensor, batch: Batch) -> None:
        """Count a batch: logits (B, K), 0 and 1 (B, K) as the batch's targets."""
        logits, there = outputs.double(), _rows(batch) > 0
        labels = logits.shape[1]
        if labels != len(self.right):
            self._count_in(labels)
        probabilities = logits.sigmoid()
        stated = probabilities >= torch.tensor(self.thresholds, dtype=torch.float64)
        self.right += (stated & there).sum(0)
        self.stated += stated.sum(0)
        self.there += there.sum(0)
        self.loss_sum += functional.binary_cross_entropy_with_logits(logits, there.double(), reduction="sum")
        self.samples += len(logits)
        more = (0, max(0, 2 - labels))
        self.precision.update(functional.pad(probabilities, more), functional.pad(there.long(), more))

    def compute(self) -> dict[str, Any]:
        """Values by name, each from 0 to 1 but for the loss; and the details."""
        labels, known = len(self.right), self.there > 0
        precisions = torch.full((labels,), math.nan, dtype=torch.float64)
        if bool(known.any()):
            with warnings.catch_warnings():
                # Labels that are never there are left out below.
                warnings.simplefilter("ignore")
                precisions = self.precision.compute()[:labels].double()
        sums = self.stated + self.there
        f1 = 2 * self.right.double() / sums.clamp(min=1)
        thresholds = self.thresholds if len(self.thresholds) == labels else self.thresholds[:1] * labels
        samples = int(self.samples)
        return {
            "map": float(precisions[known].mean()),
            "micro_f1": 2 * int(self.right.sum()) / max(1, int(sums.sum())),
            "macro_f1": float(f1[sums > 0].mean()) if bool((sums > 0).any()) else 0.0,
            "loss": self.loss_sum.item() / (samples * labels) if samples else math.nan,
            "per_label": [
                {
                    "label": name,
                    "samples": int(self.there[k]),
                    "average_precision": float(precisions[k]) if known[k] else None,
                    "f1": float(f1[k]) if sums[k] else None,
                    "threshold": thresholds[k],
                }
                for k, name in enumerate(label_names(self.labels, labels))
            ],
        }


def _rows(batch: Batch) -> Tensor:
    """The targets (B, K), also where they came as lists."""
    rows = rows_of(batch.targets)
    assert rows is not None  # `check_batch` has refused others
    return rows


def best_threshold(probabilities: Tensor, there: Tensor, usual: float) -> float:
    """The threshold of the best F1: half-way between two neighbouring probabilities; `usual` for a label never there.

    Args:
        probabilities: (N,).
        there: (N,), whether the label is there.
        usual: the threshold of labels that nothing can be chosen for.
    """
    if not bool(there.any()):
        return usual
    order = probabilities.argsort(descending=True, stable=True)
    values, right = probabilities[order], there[order].cumsum(0)
    f1 = 2 * right / (torch.arange(1, len(values) + 1) + right[-1])
    below = torch.cat((values[1:], values.new_zeros(1)))
    # A threshold cannot part equal probabilities.
    apart = values > below
    apart[-1] = True
    f1 = torch.where(apart, f1, -1.0)
    best = int(f1.argmax())
    return float((values[best] + below[best]) / 2)
