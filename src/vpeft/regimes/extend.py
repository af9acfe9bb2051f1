"""New classes for an existing adapter, without the images it was trained on; and what it forgets by it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch.nn import functional

from vpeft.atomic import write_json
from vpeft.data.datasets import Datasets
from vpeft.data.image_set import ImageSet
from vpeft.data.preprocessing import Preprocessing
from vpeft.data.used_images import UsedImages
from vpeft.errors import VpeftError
from vpeft.head import BadHead, Head
from vpeft.heads.prototype import PrototypeHead
from vpeft.heads.random_projection import RandomProjectionHead
from vpeft.injection.tuned_model import TunedModel
from vpeft.regimes.class_means import ClassMeans
from vpeft.regimes.learner import Features, Setting, outputs_for
from vpeft.regimes.one_adapter import SomeClasses, outputs_of_head
from vpeft.regimes.ridge import NoRidge, chosen_ridge, solution
from vpeft.tasks.classification import Classification
from vpeft.training.checkpoint import Checkpoint, read_checkpoint, write_checkpoint
from vpeft.training.fit import fit
from vpeft.training.optimisation import Optimisation
from vpeft.training.randomness import derived_seed, seed_everything, untouched_randomness
from vpeft.training.run import USED

ADAPTER, RECORD = "adapter.safetensors", "run.json"
STATE, SUMS = "state.safetensors", "sums"
Learnt = Literal["head", "all"]
Sums = Mapping[str, torch.Tensor]


class CannotExtend(VpeftError):
    """The adapter cannot take these classes."""


@dataclass(frozen=True)
class Extension:
    """What came of it.

    Attributes:
        labels: all classes, the old ones first.
        new: accuracy on held-out images of the new classes, over all classes; None where none were held out.
        old_before, old_after: accuracy on the given images of old classes, over the old classes before, over all after;
            None where no such images were given.
        adapter: the file.
    """

    labels: tuple[str, ...]
    new: float | None
    old_before: float | None
    old_after: float | None
    adapter: Path | None

    @property
    def forgetting(self) -> float | None:
        """old_before - old_after."""
        if self.old_before is None or self.old_after is None:
            return None
        return self.old_before - self.old_after

    def as_dict(self) -> dict[str, Any]:
        """The figures, JSON."""
        return {
            "labels": list(self.labels),
            "new": self.new,
            "old_before": self.old_before,
            "old_after": self.old_after,
            "forgetting": self.forgetting,
            "adapter": None if self.adapter is None else str(self.adapter),
        }


def extend(
    tuned: TunedModel,
    data: Datasets,
    preprocessing: Preprocessing,
    *,
    optimisation: Optimisation,
    old: ImageSet | None = None,
    learnt: Learnt = "head",
    out: Path | None = None,
    used: UsedImages | None = None,
    workers: int = 0,
    progress: bool = False,
    facts: Mapping[str, Any] | None = None,
    sums: Sums | None = None,
) -> Extension:
    """Let the active adapter know the classes of `data` too; it has learnt others, whose images are not needed.

    A head of prototypes gains the mean feature of each new class, and nothing is trained. A head of random projections
    follows from sums over all images, to which those of the new images are added; old rows change by it. A linear or
    cosine head gains rows, which are trained on the new images by a cross-entropy over the new classes; the rows of old
    classes are bit by bit as they were. With learnt="all" the method's own tensors go on training too, which old
    classes feel.

    Args:
        tuned: as loaded from its file, on its device.
        data: the new classes, as `open_data` gives them.
        preprocessing: the adapter's own.
        optimisation: of the training, where there is one.
        old: images of old classes, prepared, with labels in the order of the adapter's, to measure the forgetting; they
            are not learnt from.
        learnt: what trains besides the new rows.
        out: folder for the adapter file and `run.json`.
        used: marks of the images that the adapter has learnt from; the new file has them and those of `data`.
        workers: loading processes.
        progress: whether the training shows its progress.
        facts: for the record.
        sums: `gram` and `cross` over all images so far, which a head of random projections follows from; see `sums_of`.
            The new ones go to `state.safetensors` in `out`.

    Raises:
        CannotExtend: the classes are not new, there are too few images, or the adapter is no classifier.
        BadHead: the head does not grow.
    """
    task = tuned.task
    if not isinstance(task, Classification) or not task.labels:
        raise CannotExtend("Only a classifier whose file names its classes can take further ones.")
    before = tuple(task.labels)
    new = _new_labels(before, data)
    head = tuned.head
    if not isinstance(head, Head):
        raise BadHead(f"The adapter has no head of vpeft's that could grow, but {type(head).__name__}.")
    if isinstance(head, RandomProjectionHead):
        _require_sums(head, sums, len(before))
    settings = optimisation.model_copy(update={"seed": derived_seed(optimisation.seed, "extend")})
    setting = Setting(make=lambda: tuned.backbone, optimisation=optimisation, seed=optimisation.seed, workers=workers)
    labels = (*before, *new)
    tuned.eval()
    old_before = None if old is None else _accuracy(tuned, old, setting)
    with untouched_randomness():
        seed_everything(settings.seed)
        grown = head.grown(len(labels))
    tuned.adapter().head = grown
    tuned.task = Classification(labels)
    ready = data.prepared(preprocessing)
    kept: dict[str, torch.Tensor] | None = None
    if isinstance(grown, RandomProjectionHead):
        assert sums is not None
        kept = _add_sums(tuned, grown, data.train.prepared(preprocessing).relabelled(labels), sums, setting)
    elif isinstance(grown, PrototypeHead):
        _enter_means(tuned, grown, data.train.prepared(preprocessing).relabelled(labels), len(before), setting)
    else:
        _train_rows(tuned, ready.train.relabelled(labels), len(before), settings, learnt, workers, progress)
    tuned.task = Classification(labels)
    tuned.eval()
    held = ready.test if ready.test is not None else ready.val
    new_accuracy = None if held is None else _accuracy(tuned, held.relabelled(labels), setting)
    old_after = None if old is None else _accuracy(tuned, old.relabelled(labels), setting)
    found = Extension(labels, new_accuracy, old_before, old_after, None)
    if out is not None:
        scores = {"new_top1": new_accuracy, "old_top1": old_after}
        marks = data.used if used is None else used.joined(data.used)
        path = tuned.save(
            out / ADAPTER,
            task=tuned.task,
            preprocessing=preprocessing.model_dump(mode="json"),
            scores={name: value for name, value in scores.items() if value is not None},
            extra={} if marks is None else {USED: marks.model_dump(mode="json")},
        )
        found = Extension(labels, new_accuracy, old_before, old_after, path)
        if kept is not None:
            write_checkpoint(out / STATE, Checkpoint({SUMS: kept}, {"classes": list(labels)}))
        write_json(out / RECORD, {"format": 1, **(facts or {}), "extension": found.as_dict()})
    return found


def sums_of(adapter: Path) -> Sums | None:
    """The sums that belong to an adapter file: those in `state.safetensors` beside it; None where there are none.

    Raises:
        BadCheckpoint: the file is damaged.
    """
    file = adapter.parent / STATE
    return read_checkpoint(file).tensors.get(SUMS) if file.exists() else None


def _require_sums(head: RandomProjectionHead, sums: Sums | None, classes: int) -> None:
    if sums is None or not {"gram", "cross"} <= sums.keys():
        raise BadHead(
            "The head 'random_projection' follows from sums over the images of all classes, which are in"
            f" {STATE} of its stream and not in the adapter file. Keep that file beside the adapter."
        )
    size = head.weight.shape[1]
    shapes = tuple(sums["gram"].shape), tuple(sums["cross"].shape)
    if shapes != ((size, size), (size, classes)):
        raise BadHead(
            f"The sums beside the adapter are of the shapes {shapes[0]} and {shapes[1]}; an adapter of {classes}"
            f" classes has {(size, size)} and {(size, classes)}. They belong to another adapter."
        )


@torch.no_grad()
def _add_sums(
    tuned: TunedModel, head: RandomProjectionHead, plain: ImageSet, sums: Sums, setting: Setting
) -> dict[str, torch.Tensor]:
    """Add the new images' sums, and solve for the head."""
    found = list(outputs_for(Features(tuned, tuned.adapter().name), plain, setting))
    features = torch.cat([one for one, _ in found]).to(head.random)
    hidden = head.hidden(features).double().cpu()
    numbers = torch.cat([some for _, some in found])
    targets = functional.one_hot(numbers, len(plain.labels)).double()
    draw = torch.Generator().manual_seed(setting.seed_of("extend", "ridge"))
    ridge = chosen_ridge(hidden, targets, torch.randperm(len(hidden), generator=draw))
    gram = sums["gram"].double() + hidden.T @ hidden
    cross = functional.pad(sums["cross"].double(), (0, len(plain.labels) - sums["cross"].shape[1])) + hidden.T @ targets
    solved = solution(gram, cross, ridge)
    if solved is None:
        raise NoRidge(f"The system of the ridge {ridge:g} cannot be solved; take a smaller projection.")
    head.set_weight(solved.T.float())
    return {"gram": gram, "cross": cross}


def _new_labels(before: Sequence[str], data: Datasets) -> tuple[str, ...]:
    if data.train.target.name != "label":
        raise CannotExtend(f"The new classes need images with one label each; {data.config.source} has others.")
    known = [name for name in data.labels if name in before]
    if known:
        raise CannotExtend(
            f"The adapter knows {', '.join(map(repr, known[:5]))} already. Give new classes alone; to learn more images"
            " of old ones, train anew from the file: vpeft train --from FILE."
        )
    if len(data.train) < 2:
        raise CannotExtend(
            f"{data.config.source} has {len(data.train)} training image; new classes need two or more. Add images, or"
            " hold out fewer: --data.val-fraction 0 --data.test-fraction 0."
        )
    absent = [name for name, count in data.train.counts().items() if not count]
    if absent:
        raise CannotExtend(f"There is no training image of {', '.join(map(repr, absent[:5]))}.")
    return tuple(data.labels)


def _enter_means(tuned: TunedModel, head: PrototypeHead, plain: ImageSet, first: int, setting: Setting) -> None:
    adapter = tuned.adapter().name
    parts = []
    for place in head.reads:
        means = ClassMeans()
        for features, numbers in outputs_for(Features(tuned, None if place == "query" else adapter), plain, setting):
            means.add(features, numbers, len(plain.labels))
        parts.append(means.means()[first:])
    head.set_rows(first, torch.cat(parts, dim=1))


def _train_rows(
    tuned: TunedModel,
    train: ImageSet,
    first: int,
    settings: Optimisation,
    learnt: Learnt,
    workers: int,
    progress: bool,
) -> None:
    adapter, head = tuned.adapter(), tuned.head
    assert isinstance(head, Head)
    # one new class is learnt against the old ones' fixed rows, several against each other
    start = first if outputs_of_head(head) - first > 1 else 0
    before = {name: value.clone() for name, value in head.state_dict().items()}
    frozen = [p for name, p in adapter.owned() if learnt == "head" and not name.startswith("head.") and p.requires_grad]
    for parameter in frozen:
        parameter.requires_grad_(False)
    fit(
        tuned,
        train,
        None,
        optimisation=settings,
        progress=progress,
        workers=workers,
        task=SomeClasses(labels=tuple(train.labels), first=start),
    )
    for parameter in frozen:
        parameter.requires_grad_(True)
    for name, value in head.state_dict().items():
        if value.dim() and len(value) == outputs_of_head(head):
            value[:first].copy_(before[name][:first])
        elif learnt == "head":
            value.copy_(before[name])


@torch.no_grad()
def _accuracy(tuned: TunedModel, images: ImageSet, setting: Setting) -> float:
    right = sum(int((outputs.argmax(1) == targets).sum()) for outputs, targets in outputs_for(tuned, images, setting))
    return right / len(images)
