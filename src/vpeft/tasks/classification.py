"""One label out of K for each image."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, Self

import numpy as np
import torch
from pydantic import Field, field_validator
from scipy.optimize import minimize_scalar
from torch import Tensor, nn
from torch.nn import functional
from torchmetrics import Metric
from torchmetrics.classification import BinaryAUROC, MulticlassCalibrationError
from torchvision.transforms import v2

from ..batch import Batch
from ..errors import VpeftError
from ..head import HeadText, make_head
from ..task import Leading, Prediction, Task, UnsuitableTargets, register_task
from .targets import label_names, refusal, told_targets

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from ..backbones.backbone import Backbone

# Guo et al., "On Calibration of Modern Neural Networks" (arXiv 1706.04599), measure the error in 15 bins.
CALIBRATION_BINS = 15
# Where a temperature is looked for; a network that needs one outside has not learnt anything, or everything by heart.
TEMPERATURES = (0.05, 20.0)


class TooFewLabels(VpeftError):
    """A classifier needs at least two different labels."""


@register_task("classification")
class Classification(Task):
    """One label out of K: logits (B, K), learnt by cross-entropy, judged by the share that is right.

    Targets are class numbers (B,) that count in `labels`.
    """

    label_smoothing: float = Field(default=0.0, ge=0, lt=1)
    """share of the target that is spread over all classes"""
    mixup: float = Field(default=0.0, ge=0)
    """mixup's Beta parameter; 0 is off"""
    cutmix: float = Field(default=0.0, ge=0)
    """CutMix's Beta parameter; 0 is off"""
    cutmix_share: float = Field(default=0.5, ge=0, le=1)
    """where mixup and CutMix are both on: share of the batches that CutMix changes"""
    loss_kind: Literal["cross_entropy", "focal"] = Field(default="cross_entropy", alias="loss")
    """what is minimised: cross_entropy, or focal, in which what is known already counts less"""
    gamma: float = Field(default=2.0, ge=0)
    """focal loss only: exponent of (1 - probability); 0 is cross-entropy"""
    class_weights: Literal["none", "balanced"] | tuple[float, ...] = "none"
    """how much each class counts in the loss: none, balanced (against its frequency), or a list"""
    weights: tuple[float, ...] = ()
    """the balanced weights themselves; filled in from the training data"""
    sampling: Literal["shuffled", "balanced", "weighted"] = "shuffled"
    """what an epoch sees: each sample once (shuffled), each class equally often (balanced), or samples drawn with
    replacement by the weights of their classes, against the frequency where none are listed (weighted)"""
    head_kind: HeadText = Field(default="linear", alias="head")
    """the head, with options where it has any: linear, attentive, mlp(hidden=512)"""
    calibrate: bool = False
    """choose a temperature on the validation samples when training is over"""
    temperature: float = Field(default=1.0, gt=0)
    """divides the logits wherever probabilities are stated; chosen by calibrate"""

    def __init__(self, labels: Sequence[str] | None = None, /, **options: Any) -> None:
        """`Classification(["ant", "bee"])`, or by name with further options.

        Raises:
            TooFewLabels: fewer than two labels, or repeated ones.
            BadOption: an option that does not exist, or a value that it does not take.
        """
        if labels is not None:
            _require_labels(tuple(labels))
            options = {"labels": tuple(labels), **options}
        super().__init__(**options)

    @field_validator("labels")
    @classmethod
    def _two_or_none(cls, labels: tuple[str, ...]) -> tuple[str, ...]:
        if labels:
            _require_labels(labels)
        return labels

    @field_validator("class_weights")
    @classmethod
    def _positive(cls, weights: str | tuple[float, ...]) -> str | tuple[float, ...]:
        if not isinstance(weights, str) and not (weights and all(0 < one < math.inf for one in weights)):
            raise ValueError("a list of class weights holds numbers above 0, one for each class")
        return weights

    @property
    def leading(self) -> Leading:
        """The share of the samples that are right."""
        return Leading("top1")

    # -- what is read -------------------------------------------------------------------------------------------------

    def head(self, backbone: Backbone, width: int) -> nn.Module:
        """The head that `head_kind` names, with one output for each label; `TooFewLabels` where none is known."""
        if not self.labels:
            raise TooFewLabels(
                "The labels are not known yet. Give them, Classification(labels), or bind the task to data that name"
                " theirs, task.bind(train)."
            )
        return make_head(self.head_kind, backbone, width, len(self.labels))

    def bind(self, train: Any) -> Self:
        """With the label names (`labels`, or `classes` as torchvision has them), and the balanced class weights."""
        bound = super().bind(train)
        names = () if bound.labels else getattr(train, "classes", ())
        if isinstance(names, (list, tuple)) and names and all(isinstance(one, str) for one in names):
            bound = bound.model_copy(update={"labels": tuple(names)})
        if bound.weights or bound.class_weights != "balanced":
            return bound
        numbers = _told_numbers(train)
        if numbers is None:
            return bound
        return bound.model_copy(update={"weights": tuple(_balanced(numbers, len(bound.labels)).tolist())})

    def check(self, train: Any) -> None:
        """Refuse targets that are no class numbers, or count beyond the labels, as far as the data set tells them.

        Raises:
            UnsuitableTargets: with the task that fits.
            TooFewLabels: there is only one class.
        """
        if self.labels:
            _require_labels(self.labels)
            self._check_names(train)
        targets = told_targets(train)
        if targets is None:
            needs = [f"class_weights = {self.class_weights!r}"] if self.class_weights == "balanced" else []
            needs += [f"sampling = {self.sampling!r}"] if self.sampling != "shuffled" else []
            if needs:
                raise UnsuitableTargets(
                    f"{' and '.join(needs)} need the classes of all samples before the first step. Give the data set"
                    " an attribute `targets`, a list with the class number of each sample."
                )
            return
        numbers = self._numbers(targets)
        if len(numbers):
            self._check_range(numbers, len(self.labels) or None)
        if self._weights and self.labels and len(self._weights) != len(self.labels):
            raise UnsuitableTargets(
                f"There are {len(self._weights)} class weights for {len(self.labels)} labels. Give one for each, in the"
                f" order {', '.join(self.labels[:10])}."
            )

    def check_batch(self, outputs: Any, batch: Batch) -> None:
        """Refuse targets that are no class numbers of the model's (targets mixed by `augment` are such already)."""
        if not isinstance(outputs, Tensor) or outputs.dim() != 2:
            found = f"the shape {tuple(outputs.shape)}" if isinstance(outputs, Tensor) else type(outputs).__name__
            raise UnsuitableTargets(f"Classification needs outputs (samples, classes), and the model gives {found}.")
        if outputs.shape[1] < 2:
            raise UnsuitableTargets(
                "The model has one output, and a classifier needs one for each of two or more classes: with one class"
                " its loss is always 0. Attach the method with num_classes=2 or more, or learn the number itself with"
                " a task for real numbers, regression."
            )
        targets = batch.targets
        if self.augments is not None and isinstance(targets, Tensor) and targets.dim() == 2:
            return
        numbers = self._numbers(targets)
        self._check_range(numbers, outputs.shape[1], of_model=True)

    def _numbers(self, targets: Any) -> Tensor:
        """Class numbers (N,) int64, or a refusal."""
        if targets is None:
            raise refusal(self, None, "What belongs to a sample")
        if isinstance(targets, Tensor):
            whole = not (targets.is_floating_point() or targets.is_complex())
            if targets.dim() == 1 and whole:
                return targets.long()
            if targets.dim() == 2 and targets.shape[1] == 1 and whole:
                raise UnsuitableTargets(
                    f"The labels have the shape {tuple(targets.shape)}, and classification takes one number for each"
                    " sample: give labels.squeeze(1)."
                )
            if targets.dim() == 1 and len(targets):
                broken = targets[targets.frac() != 0] if targets.is_floating_point() else targets
                raise self._refused((broken if len(broken) else targets)[0])
            if targets.dim() > 1 and len(targets):
                raise self._refused(targets[0])
            return targets.reshape(-1).long()
        if set(map(type, targets)) <= {int, bool}:
            return torch.as_tensor(list(targets), dtype=torch.int64)
        numbers: list[int] = []
        for target in targets:
            if isinstance(target, Tensor) and target.dim() == 1 and len(target) == 1:
                raise UnsuitableTargets(
                    f"A label has the shape {tuple(target.shape)}, and classification takes one number: label.item()."
                )
            plain = target.item() if isinstance(target, Tensor) and target.dim() == 0 else target
            if not isinstance(plain, (int, np.integer)):
                raise self._refused(plain)
            numbers.append(int(plain))
        return torch.tensor(numbers, dtype=torch.int64)

    def _refused(self, target: Any) -> UnsuitableTargets:
        said = str(refusal(self, target))
        if isinstance(target, str):
            known = f" They count in {list(self.labels)[:5]}." if self.labels else ""
            said += f" Give its class number, for instance labels.index({target!r}).{known}"
        elif isinstance(target, float) or (isinstance(target, Tensor) and target.dim() == 0):
            said += " If these are class numbers, give whole ones: labels.long()."
        return UnsuitableTargets(said)

    def _check_range(self, numbers: Tensor, classes: int | None, of_model: bool = False) -> None:
        low, high = int(numbers.min()), int(numbers.max())
        if low >= 0 and (classes is None or high < classes):
            return
        wrong = low if low < 0 else high
        if of_model or classes is None:
            there = f"the model has {classes} classes (0 to {classes - 1})" if classes else "classes count from 0 on"
            raise UnsuitableTargets(
                f"A label is {wrong}, but {there}. Attach the method with num_classes of the data, here at least"
                f" {high + 1}."
            )
        raise UnsuitableTargets(
            f"A label is {wrong}, but there are {classes} labels (0 to {classes - 1}): {', '.join(self.labels[:10])}."
        )

    def _check_names(self, data: Any) -> None:
        """Numbers of a data set with label names of its own must mean the same labels here."""
        names = getattr(data, "labels", None) or getattr(data, "classes", None)
        if not isinstance(names, (list, tuple)) or not all(isinstance(one, str) for one in names):
            return
        for number, (own, other) in enumerate(zip(self.labels, names, strict=False)):
            if own != other:
                raise UnsuitableTargets(
                    f"Class {number} is {own!r} in what is learnt, and {other!r} in this data set. Both must list the"
                    f" same labels in the same order: {list(self.labels)[:10]} and {list(names)[:10]}."
                )

    def order(self, train: Any, shuffled: list[int], epoch_seed: int) -> list[int]:
        """As many samples as there are, in the order in which an epoch sees them; see `sampling`."""
        if self.sampling == "shuffled":
            return shuffled
        numbers = _told_numbers(train)
        if numbers is None:
            raise UnsuitableTargets(f"sampling = {self.sampling!r} needs a data set that tells its `targets`.")
        draw = torch.Generator().manual_seed(epoch_seed)
        if self.sampling == "weighted":
            listed = () if isinstance(self.class_weights, str) else self.class_weights
            of_class = torch.tensor(listed, dtype=torch.float64) if listed else _balanced(numbers, 0)
            found = torch.multinomial(of_class[numbers], len(shuffled), replacement=True, generator=draw)
            return [int(index) for index in found]
        return _equally_often(numbers, len(shuffled), draw)

    @property
    def reorders(self) -> bool:
        """Whether an epoch sees anything but each sample once."""
        return self.sampling != "shuffled"

    @property
    def augments(self) -> str | None:
        """Which of mixup and CutMix is on."""
        on = [name for name, value in (("mixup", self.mixup), ("CutMix", self.cutmix)) if value]
        return f"{' or '.join(on)} mixes the images of a batch and their labels" if on else None

    def augment(self, batch: Batch) -> Batch:
        """Mixup or CutMix over the whole batch: targets (B,) become shares (B, K)."""
        if not (self.mixup or self.cutmix):
            return batch
        if not isinstance(batch.inputs, Tensor):
            raise UnsuitableTargets(
                f"{self.augments}, and the inputs are a {type(batch.inputs).__name__}, not one tensor. Switch it off:"
                " mixup = 0, cutmix = 0."
            )
        numbers = self._numbers(batch.targets)
        self._check_range(numbers, len(self.labels) or None)
        classes = len(self.labels) or int(numbers.max()) + 1
        kind, alpha = v2.MixUp, self.mixup
        if self.cutmix and (not self.mixup or float(torch.rand(())) < self.cutmix_share):
            kind, alpha = v2.CutMix, self.cutmix
        inputs, targets = kind(alpha=alpha, num_classes=classes)(batch.inputs, numbers)
        return batch.with_(inputs=inputs, targets=targets)

    # -- how it is learnt ---------------------------------------------------------------------------------------------

    def loss(self, outputs: Any, batch: Batch) -> dict[str, Tensor]:
        """The mean over the batch, in single precision, for class numbers (B,) or shares of classes (B, K).

        focal: -sum_k w_k t_k (1 - p_k)^gamma log p_k for the shares t and probabilities p (Lin et al., arXiv
        1708.02002). As with cross-entropy, weights of class numbers are divided by their sum over the batch.
        """
        logits, targets = outputs.float(), batch.targets
        if targets.dim() == 2 and targets.shape[1] < logits.shape[1]:
            # Mixed before anything told how many classes the model has.
            targets = functional.pad(targets, (0, logits.shape[1] - targets.shape[1]))
        weights = self._weights_for(logits)
        if self.loss_kind == "cross_entropy":
            return {
                "cross_entropy": functional.cross_entropy(
                    logits, targets, weight=weights, label_smoothing=self.label_smoothing
                )
            }
        classes = logits.shape[1]
        shares = targets if targets.dim() == 2 else functional.one_hot(targets, classes).to(logits.dtype)
        count = len(logits) if weights is None or targets.dim() == 2 else weights[targets].sum()
        shares = shares * (1 - self.label_smoothing) + self.label_smoothing / classes
        logs = logits.log_softmax(1)
        each = shares * (1 - logs.exp()).clamp(min=0) ** self.gamma * -logs
        return {"focal": (each if weights is None else each * weights).sum() / count}

    @property
    def _weights(self) -> tuple[float, ...]:
        """Of each class; empty where all count alike."""
        return self.weights if isinstance(self.class_weights, str) else self.class_weights

    def _weights_for(self, logits: Tensor) -> Tensor | None:
        if not self._weights:
            return None
        found = torch.ones(logits.shape[1], dtype=logits.dtype)
        found[: len(self._weights)] = torch.tensor(self._weights, dtype=logits.dtype)[: logits.shape[1]]
        return found.to(logits.device)

    def monitor(self, outputs: Any, batch: Batch) -> dict[str, Tensor]:
        """How many samples are right; of mixed targets the largest share counts."""
        targets = batch.targets
        hardest = targets if targets.ndim == 1 else targets.argmax(1)
        return {"top1": (outputs.detach().argmax(1) == hardest).sum()}

    # -- how it is judged ---------------------------------------------------------------------------------------------

    def metric(self) -> Metric:
        """See `ClassificationScores`."""
        return ClassificationScores(self.labels, self.temperature)

    def calibrated(self, outputs: Callable[[], Iterable[tuple[Any, Batch]]]) -> Self:
        """With `calibrate`, the temperature of the least cross-entropy on the validation samples (Guo et al. 2017)."""
        if not self.calibrate:
            return self
        found = [(logits.double(), self._numbers(batch.targets)) for logits, batch in outputs()]
        if not found:
            return self
        logits, targets = (torch.cat(part) for part in zip(*found, strict=True))

        def loss(log_temperature: float) -> float:
            return functional.cross_entropy(logits / math.exp(log_temperature), targets).item()

        low, high = map(math.log, TEMPERATURES)
        best = minimize_scalar(loss, bounds=(low, high), method="bounded", options={"xatol": 1e-4})
        return self.model_copy(update={"temperature": round(math.exp(float(best.x)), 4)})

    def averaged(self, outputs: Any, views: int) -> Tensor:
        """Logits (B, K) whose probabilities are the mean of those of the views."""
        logs: Tensor = (outputs.double() / self.temperature).log_softmax(1).unflatten(0, (-1, views))
        mean = (logs.logsumexp(1) - math.log(views)) * self.temperature
        return mean.to(outputs.dtype)

    def predictions(self, outputs: Any, batch: Batch) -> list[Prediction]:
        """Every label with its probability, the most probable first."""
        probabilities = (outputs.float() / self.temperature).softmax(1)
        ranked = probabilities.sort(dim=1, descending=True, stable=True)
        names = label_names(self.labels, probabilities.shape[1])
        found = []
        for row, (values, order) in enumerate(zip(ranked.values.tolist(), ranked.indices.tolist(), strict=True)):
            rows = tuple(
                {"label": names[number], "probability": value} for number, value in zip(order, values, strict=True)
            )
            found.append(Prediction(batch.ids[row] if batch.ids else str(row), rows))
        return found

    def picture(self, details: Mapping[str, Any]) -> Figure | None:
        """The confusion matrix: the share of each true class (row) that is taken for each class (column)."""
        confusion = details.get("confusion")
        if not confusion:
            return None
        from .confusion_picture import confusion_picture

        return confusion_picture(confusion, label_names(self.labels, len(confusion)))

    def report(self, details: Mapping[str, Any]) -> list[tuple[str, Sequence[str], Sequence[Sequence[object]]]]:
        """Precision, recall and F1 of each class, and what is most often taken for something else."""
        tables: list[tuple[str, Sequence[str], Sequence[Sequence[object]]]] = []
        if rows := details.get("per_class"):
            columns = ("label", "samples", "precision", "recall", "f1")
            tables.append(("Each class", columns, [[row[name] for name in columns] for row in rows]))
        if confusion := details.get("confusion"):
            names = label_names(self.labels, len(confusion))
            mistakes = [
                (count, names[true], names[said])
                for true, row in enumerate(confusion)
                for said, count in enumerate(row)
                if count and true != said
            ]
            if mistakes:
                mistakes.sort(key=lambda mistake: -mistake[0])
                rows = [[true, said, count] for count, true, said in mistakes[:10]]
                tables.append(("Most frequent confusions", ("label", "taken for", "samples"), rows))
        return tables


class ClassificationScores(Metric):
    """Scores of logits (B, K) against class numbers (B,).

    Values: `top1`, `mean_per_class` (the mean over the classes that have samples of the share that is right), `loss`
    (the mean cross-entropy), `macro_f1` (over the classes that have samples or are predicted), `ece` (calibration error
    in 15 bins), `top5` where there are more than five classes, `auroc` where there are two. Details: `confusion`, a row
    for each true class, and `per_class`. Counts are whole numbers and the loss is summed in double precision.
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False

    confusion: Tensor
    loss_sum: Tensor
    top5: Tensor

    def __init__(self, labels: Sequence[str] = (), temperature: float = 1.0) -> None:
        super().__init__()
        self.labels, self.temperature = tuple(labels), temperature
        self.add_state("loss_sum", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("top5", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")
        self._count_in(max(2, len(self.labels)))

    def _count_in(self, classes: int) -> None:
        """Begin to count in so many classes."""
        self.add_state("confusion", torch.zeros(classes, classes, dtype=torch.int64), dist_reduce_fx="sum")
        self.calibration = MulticlassCalibrationError(classes, n_bins=CALIBRATION_BINS, norm="l1", validate_args=False)
        self.auroc = BinaryAUROC(validate_args=False)

    def reset(self) -> None:
        """Forget all samples."""
        super().reset()
        self.calibration.reset()
        self.auroc.reset()

    def update(self, outputs: Tensor, batch: Batch) -> None:
        """Count a batch: logits (B, K), class numbers (B,) as the batch's targets."""
        targets, classes = batch.targets, outputs.shape[1]
        if classes != len(self.confusion):
            # A model with more outputs than the data have labels, or data that do not tell their labels.
            self._count_in(classes)
        found = torch.bincount(targets * classes + outputs.argmax(1), minlength=classes**2)
        self.confusion += found.view(classes, classes)
        logits = outputs.double() / self.temperature
        self.loss_sum += functional.cross_entropy(logits, targets, reduction="sum")
        probabilities = logits.softmax(1)
        self.calibration.update(probabilities.float(), targets)
        if classes > 5:
            self.top5 += (outputs.topk(5, dim=1).indices == targets[:, None]).sum()
        if classes == 2:
            self.auroc.update(probabilities[:, 1], targets)

    def compute(self) -> dict[str, Any]:
        """Values by name, each a number from 0 to 1 but for the loss; and the details."""
        confusion = self.confusion
        count, right, present = int(confusion.sum()), confusion.diagonal(), confusion.sum(1)
        shares = right[present > 0].double() / present[present > 0].double()
        predicted = confusion.sum(0)
        known = (present + predicted) > 0
        f1 = 2 * right.double() / (present + predicted).clamp(min=1).double()
        found: dict[str, Any] = {
            "top1": int(right.sum()) / count if count else math.nan,
            "mean_per_class": float(shares.mean()),
            "loss": self.loss_sum.item() / count if count else math.nan,
            "macro_f1": float(f1[known].mean()),
        }
        if count:
            found["ece"] = self.calibration.compute().item()
        if len(confusion) > 5 and count:
            found["top5"] = int(self.top5) / count
        if len(confusion) == 2 and bool((present > 0).all()):
            found["auroc"] = self.auroc.compute().item()
        found["confusion"] = confusion.tolist()
        found["per_class"] = [
            {
                "label": name,
                "samples": int(present[k]),
                "precision": int(right[k]) / int(predicted[k]) if predicted[k] else None,
                "recall": int(right[k]) / int(present[k]) if present[k] else None,
                "f1": float(f1[k]) if known[k] else None,
            }
            for k, name in enumerate(label_names(self.labels, len(confusion)))
        ]
        return found


def _require_labels(labels: tuple[str, ...]) -> None:
    if len(set(labels)) < 2 or len(set(labels)) < len(labels):
        raise TooFewLabels(f"Classification needs two or more different labels, not {list(labels)[:10]}.")


def _told_numbers(data: Any) -> Tensor | None:
    """The class numbers that a data set tells, where they are such."""
    targets = told_targets(data)
    if targets is None:
        return None
    numbers = targets if isinstance(targets, Tensor) else torch.as_tensor([int(target) for target in targets])
    return numbers.long() if numbers.dim() == 1 else None


def _balanced(numbers: Tensor, classes: int) -> Tensor:
    """n / (classes with samples * n_k), so that each class counts equally; 1 for a class without samples."""
    counts = torch.bincount(numbers, minlength=classes).double()
    there = counts > 0
    weights = torch.ones_like(counts)
    weights[there] = len(numbers) / (there.sum() * counts[there])
    return weights


def _equally_often(numbers: Tensor, length: int, draw: torch.Generator) -> list[int]:
    """`length` indices, each class equally often up to one; the samples of a class in turn, shuffled anew each time."""
    members = [torch.nonzero(numbers == k).flatten() for k in torch.unique(numbers)]
    each, more = divmod(length, len(members))
    lucky = set(torch.randperm(len(members), generator=draw)[:more].tolist())
    chosen: list[int] = []
    for position, some in enumerate(members):
        wanted = each + (position in lucky)
        turns = [some[torch.randperm(len(some), generator=draw)] for _ in range(-(-wanted // len(some)))]
        chosen += torch.cat(turns)[:wanted].tolist() if turns else []
    return [chosen[index] for index in torch.randperm(len(chosen), generator=draw).tolist()]
