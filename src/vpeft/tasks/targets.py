"""The targets of a data set: those that it tells without loading an image, and of which kind they are.

A task refuses targets of another kind than it learns, in a sentence that names the tasks that learn them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Subset, TensorDataset

from ..data.target import target_kind
from ..task import TargetKind, Task, UnsuitableTargets, all_tasks


def plural_of(kind: TargetKind) -> str:
    """What targets of a kind are called; raises `UnknownTarget`."""
    return target_kind(kind).plural


def told_targets(data: Any) -> Sequence[Any] | Tensor | None:
    """The targets of all samples, where a data set tells them without loading inputs; None where it does not.

    They are told by an attribute `targets`, by the second tensor of a `TensorDataset`, by a list of pairs in memory, or
    by the data set that a `Subset` is of.

    Raises:
        UnsuitableTargets: the data are no samples: a `DataLoader`, or a list of something else than pairs.
    """
    if isinstance(data, DataLoader):
        raise UnsuitableTargets(
            "A DataLoader was given. Give the data set that it loads (loader.dataset): batches, order and loading are"
            " decided here."
        )
    if isinstance(data, Subset):
        inner = told_targets(data.dataset)
        if inner is None:
            return None
        return inner[list(data.indices)] if isinstance(inner, Tensor) else [inner[index] for index in data.indices]
    if isinstance(data, TensorDataset):
        return data.tensors[1] if len(data.tensors) > 1 else None
    if isinstance(data, (list, tuple)):
        return [_of_pair(item) for item in data]
    found = getattr(data, "targets", None)
    # A transform of the targets changes what `data[i]` gives.
    if found is None or getattr(data, "target_transform", None) is not None:
        return None
    if isinstance(found, np.ndarray):
        found = torch.from_numpy(found)
    return found if isinstance(found, (list, tuple, Tensor)) and len(found) == len(data) else None


def _of_pair(item: Any) -> Any:
    if isinstance(item, Mapping):
        raise UnsuitableTargets(
            f"A sample is a mapping with the keys {', '.join(map(str, item))}. Give pairs (input, target), for instance"
            " [(item['pixel_values'], item['label']) for item in data]."
        )
    if not isinstance(item, (tuple, list)) or len(item) != 2:
        raise UnsuitableTargets(f"A sample is a {type(item).__name__}. Give pairs (input, target).")
    if isinstance(item[0], Image.Image):
        raise UnsuitableTargets(
            "The inputs are PIL images. Give tensors: a data set whose transform ends with torchvision's ToTensor and"
            " Normalize, or a folder or table through vpeft's own data sets."
        )
    return item[1]


def kind_of(target: Any) -> tuple[TargetKind | None, str]:
    """The kind of one sample's target, None where no task learns it, and what it is in words."""
    if isinstance(target, np.ndarray):
        target = torch.from_numpy(target)
    if target is None:
        return None, "no target"
    if isinstance(target, str):
        return None, f"the word {target!r}"
    if isinstance(target, (bool, int, np.integer)):
        return "label", f"the whole number {int(target)}"
    if isinstance(target, (float, np.floating)):
        return "values", f"the number {float(target):g}"
    if isinstance(target, Image.Image):
        return "mask", "a picture"
    if isinstance(target, (list, tuple, set, frozenset)):
        inner = list(target)
        if inner and all(isinstance(one, (bool, int, float)) for one in inner):
            return kind_of(torch.tensor(inner))
        return None, f"a {type(target).__name__} of {len(inner)}"
    if isinstance(target, Mapping) and "boxes" in target:
        return "objects", f"the objects of an image, {len(target['boxes'])} boxes"
    if isinstance(target, Tensor):
        return _kind_of_tensor(target)
    return None, f"a {type(target).__name__}"


def _kind_of_tensor(target: Tensor) -> tuple[TargetKind | None, str]:
    shape = f"a tensor of the shape {tuple(target.shape)}"
    if target.dim() == 0:
        return kind_of(target.item())
    if target.dim() == 1:
        zero_one = len(target) > 1 and bool(((target == 0) | (target == 1)).all())
        if zero_one:
            return "labels", f"a vector of {len(target)} zeros and ones"
        if target.is_floating_point():
            return "values", f"a vector of {len(target)} numbers"
        return None, shape
    if target.dim() == 2 or (target.dim() == 3 and 1 in (target.shape[0], target.shape[-1])):
        return "mask", f"a map of the shape {tuple(target.shape)}"
    return None, shape


def refusal(task: Task, target: Any, where: str = "A target") -> UnsuitableTargets:
    """Why a task does not learn a target, and which tasks do.

    Args:
        task: which refuses.
        target: of one sample.
        where: the beginning of the sentence.
    """
    kind, words = kind_of(target)
    said = f"{where} is {words}, and the task {task.name} learns {plural_of(task.target_kind)}."
    fitting = [] if kind is None else [name for name, one in all_tasks().items() if one.target_kind == kind]
    fitting = [name for name in fitting if name != task.name]
    if fitting and kind != task.target_kind:
        assert kind is not None
        said += f" For {plural_of(kind)} there is the task {' or '.join(fitting)}."
    return UnsuitableTargets(said)


def rows_of(targets: Any) -> Tensor | None:
    """Targets of several samples, each a number or a vector, as one floating-point tensor (N, K); None if they differ.

    Single numbers (N,) become (N, 1).
    """
    if isinstance(targets, Tensor):
        found = targets
    else:
        try:
            plain = [torch.as_tensor(one) for one in targets if isinstance(one, _NUMERIC)]
        except (TypeError, ValueError):
            return None
        if len(plain) != len(targets) or len({one.shape for one in plain}) != 1:
            return None
        found = torch.stack([one.double() for one in plain]).float()
    if found.is_complex() or found.dim() not in (1, 2):
        return None
    found = found if found.is_floating_point() else found.float()
    return found if found.dim() == 2 else found[:, None]


_NUMERIC = (bool, int, float, np.number, np.ndarray, Tensor, list, tuple)


def label_names(labels: Sequence[str], outputs: int) -> list[str]:
    """A name for each output: its label, and its number where it has none."""
    return [labels[k] if k < len(labels) else str(k) for k in range(outputs)]
