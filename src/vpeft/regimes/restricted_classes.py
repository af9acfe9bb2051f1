"""A classifier judged on some of its classes alone: the answers of the others are left out before the best is taken.

Data sets that test whether a model holds up elsewhere often have a part of its classes, such as ImageNet-A and
ImageNet-R, which have 200 of ImageNet's 1,000. Their published scores restrict the answers to these.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vpeft.batch import Batch
from vpeft.data.annotations import read_lines
from vpeft.data.image_set import ImageSet
from vpeft.errors import VpeftError, nearest
from vpeft.guarded import short
from vpeft.task import Task
from vpeft.tasks.classification import Classification

# The classes of ImageNet-A and ImageNet-R by WordNet id, as github.com/hendrycks/natural-adv-examples and
# github.com/hendrycks/imagenet-r state them.
LISTS = Path(__file__).parents[1] / "data" / "imagenet_subsets.json"
OF_DATA, NUMBERS = "data", "numbers"


class UnknownClasses(VpeftError):
    """Classes that the model does not know, or a list of classes that cannot be read."""


class RestrictedClasses(nn.Module):
    """Inputs -> the scores (B, K) of K of the model's classes.

    Args:
        model: gives scores (B, C).
        columns: the numbers of the K classes.
    """

    takes_batch = True
    columns: Tensor

    def __init__(self, model: nn.Module, columns: Sequence[int]) -> None:
        super().__init__()
        self.model = model
        self.register_buffer("columns", torch.tensor(columns), persistent=False)

    def forward(self, *inputs: Any, batch: Batch | None = None, **named: Any) -> Tensor:
        """The scores of the chosen classes, in their order."""
        given = Batch(inputs[0] if inputs else None) if batch is None else batch
        scores: Tensor = self.model(*inputs, batch=given, **named)
        return scores[:, self.columns.to(scores.device)]


def class_lists() -> dict[str, tuple[str, ...]]:
    """The lists of classes that can be named: those of ImageNet-A and ImageNet-R, by WordNet id."""
    stated: dict[str, list[str]] = json.loads(LISTS.read_text(encoding="utf-8"))
    return {name: tuple(ids) for name, ids in stated.items()}


def restricted(
    model: nn.Module, task: Task, images: ImageSet, classes: str
) -> tuple[RestrictedClasses, Task, ImageSet]:
    """The model, its task and the images, restricted to some classes, in the order of the model's.

    Args:
        model: gives scores for the task's labels.
        task: classification.
        images: with labels of their own.
        classes: "data" for those that the images have; "numbers" for all, where the images' labels are the numbers of
            the model's classes from 0 on (ImageNetV2); the name of a list in `class_lists`; or a file with one label a
            line.

    Raises:
        UnknownClasses: a class that the model does not have, an image of a class that is left out, or no such list.
    """
    if not isinstance(task, Classification):
        raise UnknownClasses(f"The task {task.name} gives no score for each of several classes, of which to leave out.")
    if classes == NUMBERS:
        images = _by_number(images, task.labels)
    known, present = set(task.labels), images.labels_present
    if classes in (OF_DATA, NUMBERS):
        wanted = list(task.labels) if classes == NUMBERS else present
        where = "The data"
    elif classes in class_lists():
        wanted, where = list(class_lists()[classes]), f"The list {classes}"
    else:
        file = Path(classes).expanduser()
        if not file.is_file():
            ways = [OF_DATA, NUMBERS, *class_lists()]
            raise UnknownClasses(f"There is no list and no file of classes {short(classes)}. {nearest(classes, ways)}")
        wanted, where = [line.strip() for line in read_lines(file) if line.strip()], f"{file}"
    strange = [name for name in wanted if name not in known]
    if strange:
        raise UnknownClasses(
            f"{where} has {len(strange)} classes that the adapter does not know, such as {short(strange[0])}; its own"
            f" are {', '.join(task.labels[:3])} ..."
        )
    chosen = [name for name in task.labels if name in set(wanted)]
    outside = [name for name in present if name not in set(chosen)]
    if outside:
        raise UnknownClasses(
            f"{len(outside)} classes of the data are left out by {classes}, such as {short(outside[0])}. Add them, or"
            " take these images away."
        )
    if len(chosen) < 2:
        raise UnknownClasses(f"{where} leaves {len(chosen)} class of the adapter's; at least two are needed.")
    columns = [task.labels.index(name) for name in chosen]
    changed: dict[str, Any] = {"labels": tuple(chosen)}
    if task.weights:
        changed["weights"] = tuple(task.weights[column] for column in columns)
    if isinstance(task.class_weights, tuple):
        changed["class_weights"] = tuple(task.class_weights[column] for column in columns)
    return RestrictedClasses(model, columns), task.model_copy(update=changed), images.relabelled(chosen)


def _by_number(images: ImageSet, labels: Sequence[str]) -> ImageSet:
    """The images with the names of the classes whose numbers they carry."""
    wrong = [label for label in images.labels_present if not label.isdecimal() or int(label) >= len(labels)]
    if wrong:
        raise UnknownClasses(
            f"The label {short(wrong[0])} is not the number of one of the adapter's {len(labels)} classes, 0 to"
            f" {len(labels) - 1}."
        )
    items = [replace(item, label=labels[int(item.label)]) for item in images.items]
    return images._of(items, labels)
