"""Scores of a model on labelled images: the same numbers every time, and no trace left in model or generators."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional

from vpeft.errors import VpeftError
from vpeft.training.batches import Batches, LabelledImages
from vpeft.training.failures import NonFinite, first_not_finite
from vpeft.training.modes import evaluation_mode
from vpeft.training.optimisation import Precision
from vpeft.training.randomness import seed_everything, untouched_randomness
from vpeft.training.result import Scores

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


class UnsuitableData(VpeftError):
    """Images or labels do not fit the model, or there are none."""


def evaluate(
    tuned: nn.Module,
    dataset: LabelledImages,
    *,
    batch: int = 64,
    workers: int = 0,
    precision: Precision = "fp32",
    records: Callable[[Tensor], Tensor] | None = None,
) -> Scores:
    """Score `tuned` on `dataset`.

    Args:
        tuned: images (B, 3, H, W) -> logits (B, K); used where it is, in evaluation mode, and left as it was found.
        dataset: `len(dataset)` and `dataset[i]` -> (image (3, H, W), label); its `labels`, if any, go into the scores.
        batch: images at a time; no influence on the scores but for rounding, and for transforms that draw at random.
        workers: processes that load images; no influence on the scores.
        precision: arithmetic of the forward pass.
        records: runs the model on records of its frozen part, whose numbers `dataset` then has as images.

    Raises:
        UnsuitableData: no images, or a label that the model has no class for.
        NonFinite: the logits hold NaN or infinity, so that there is no score.
    """
    if len(dataset) == 0:
        raise UnsuitableData("There are no images to evaluate on: the data set is empty.")
    device = next((tensor.device for tensor in (*tuned.parameters(), *tuned.buffers())), torch.device("cpu"))
    confusion: Tensor | None = None
    loss = 0.0
    batches = Batches(dataset, batch, workers=workers)
    model = tuned if records is None else records
    with torch.no_grad(), evaluation_mode(tuned), untouched_randomness():
        # A model that draws even in evaluation mode draws the same each time.
        seed_everything(0)
        for images, target in batches.epoch():
            with torch.autocast(device.type, _DTYPES.get(precision), enabled=precision != "fp32"):
                logits = model(images.to(device))
            logits = logits.float().cpu()
            if not torch.isfinite(logits).all():
                where = (first_not_finite(tuned, images.to(device)) if records is None else None) or "the logits"
                raise NonFinite(f"Evaluation met numbers that are not finite. The first such tensor is {where}.")
            classes = logits.shape[1]
            check_labels(target, classes)
            if confusion is None:
                confusion = torch.zeros(classes, classes, dtype=torch.int64)
            confusion += torch.bincount(target * classes + logits.argmax(1), minlength=classes**2).view(
                classes, classes
            )
            loss += functional.cross_entropy(logits.double(), target, reduction="sum").item()
    assert confusion is not None
    right, present = confusion.diagonal(), confusion.sum(1)
    shares = right[present > 0].double() / present[present > 0].double()
    return Scores(
        top1=int(right.sum()) / len(dataset),
        mean_per_class=float(shares.mean()),
        loss=loss / len(dataset),
        count=len(dataset),
        confusion=confusion.tolist(),
        labels=_labels(dataset),
    )


def check_labels(target: Tensor, classes: int) -> None:
    """Raise `UnsuitableData` if a label (int64, on the processor) does not count among `classes`."""
    low, high = int(target.min()), int(target.max())
    if low < 0 or high >= classes:
        wrong = low if low < 0 else high
        raise UnsuitableData(
            f"A label is {wrong}, but the model has {classes} classes (0 to {classes - 1}). "
            f"Attach the method with num_classes of the data, here at least {high + 1}."
        )


def _labels(dataset: LabelledImages) -> list[str] | None:
    found: Sequence[str] | None = getattr(dataset, "labels", None)
    is_names = isinstance(found, (list, tuple)) and all(isinstance(name, str) for name in found)
    return list(found) if found is not None and is_names else None
