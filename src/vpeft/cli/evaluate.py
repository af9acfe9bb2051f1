"""`vpeft evaluate`: scores of a saved adapter on samples with known targets."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter, validators
from rich.text import Text

from vpeft.cli import show
from vpeft.cli.data_flags import data_flags
from vpeft.cli.failure import say_warning
from vpeft.cli.flags import Switch, nested, with_flags
from vpeft.cli.loaded import Device, open_adapter
from vpeft.cli.validated import validated
from vpeft.data.class_splits import without_classes
from vpeft.data.clips.clip_config import ClipConfig
from vpeft.data.clips.views import in_views
from vpeft.data.config import DataConfig
from vpeft.data.datasets import open_for_evaluation
from vpeft.data.items import SplitName
from vpeft.errors import VpeftError
from vpeft.regimes.restricted_classes import UnknownClasses, restricted
from vpeft.task import Task
from vpeft.training.evaluate import evaluate as score
from vpeft.training.result import shown

_FLAGS = data_flags()


class NoData(VpeftError):
    """No data set was named."""


class NoPicture(VpeftError):
    """The task has no picture of its scores."""


def _evaluate(
    adapter: Path,
    /,
    *,
    batch: Annotated[int, Parameter(validator=validators.Number(gte=1))] = 64,
    device: Device = "auto",
    weights: Path | None = None,
    backbone: str | None = None,
    allow_download: Switch = False,
    task: str | None = None,
    split: SplitName | None = None,
    include_used: Switch = False,
    new_classes: Switch = False,
    classes: str | None = None,
    json: Switch = False,
    picture: Path | None = None,
    given: dict[str, Any],
) -> None:
    """Evaluate a saved adapter on samples with known targets.

    If the source states splits, the test split is used, otherwise val, otherwise all of it. Images that `vpeft train`
    used for this adapter are left out, wherever they lie now, and it is said how many. A task whose splits are made of
    classes, such as retrieval, is scored on classes of which training had no image, not even for validation.

    Parameters
    ----------
    adapter:
        The file that `vpeft train` saved.
    batch:
        Images, or views of clips, per pass.
    device:
        The device; auto uses the best one of this machine.
    weights:
        The backbone's file of weights, if it has moved since training.
    backbone:
        The backbone, if the adapter file cannot create it: py:FILE.py:NAME for your own code.
    allow_download:
        Download a backbone hf:ID that the adapter names, if it is not on this machine.
    task:
        Which of the adapter's tasks is wanted, where it has several (a fused adapter, for instance).
    split:
        The split to score: test, or val and train, which are those of the adapter's training if the data hold them.
    include_used:
        Score the images that training used, too.
    new_classes:
        The data have other classes than training: an adapter that classifies by name tells them apart by their names.
    classes:
        Classes of the adapter to choose among, the answers of the others being left out: data for those that the data
        have, numbers for data whose labels are the numbers of the adapter's classes from 0 on (ImageNetV2), imagenet-a
        or imagenet-r for the 200 of these sets, or a file with one label a line.
    json:
        Print JSON, with all details (a confusion matrix), instead of tables.
    picture:
        Draw the scores into this PNG file: a confusion matrix.
    """
    values = nested(_FLAGS, given)
    if "source" not in values:
        raise NoData("No data were given. Add --data FOLDER, with one sub-folder of images for each label.")
    config = validated(DataConfig, values, _FLAGS)
    loaded = open_adapter(
        adapter, device=device, weights=weights, backbone=backbone, allow_download=allow_download, of_task=task
    )
    if loaded.unsealed is not None:
        say_warning(loaded.unsealed)
    learnt = loaded.task
    by_classes = (config.split_by or learnt.split_by) == "classes"
    config = config.model_copy(update={"target": learnt.target_kind, **({"split_by": "classes"} if by_classes else {})})
    used = loaded.used_images
    validated_on = () if used is None else used.val_classes
    if include_used and split in (None, "test"):
        used = None
    preprocessing = loaded.preprocessing
    if preprocessing.clip is not None:
        config = config.model_copy(update={"clip": (config.clip or ClipConfig()).over(preprocessing.clip)})
        preprocessing = preprocessing.with_clip(config.clip or ClipConfig())
    if new_classes and classes is not None:
        raise UnknownClasses("--new-classes tells other classes apart than the adapter's; leave out --classes.")
    any_labels = new_classes or classes is not None
    opened = open_for_evaluation(config, None if any_labels else learnt.data_labels, used, split)
    answering = loaded.answering
    if classes is not None:
        answering, learnt, opened = restricted(answering, learnt, opened, classes)
    if new_classes:
        loaded = loaded.renamed(opened.labels)
        learnt, answering = loaded.task, loaded.answering
    images = opened.prepared(preprocessing, learnt)
    if by_classes and split in (None, "test"):
        images = without_classes(images, (*learnt.labels, *validated_on), config.source)
    if picture is not None and picture.suffix.lower() != ".png":
        raise NoPicture(f"The picture is a PNG file: name it {picture.with_suffix('.png').name}, not {picture.name}.")
    if picture is not None and type(learnt).picture is Task.picture:
        raise NoPicture(f"The task {learnt.name} draws no picture of its scores. Leave out --picture.")
    learnt = learnt.compared_on(images)
    samples = in_views(learnt.dataset(images, False), preprocessing)
    scores = score(answering, samples, task=learnt, batch=batch, workers=config.workers)
    if picture is not None:
        drawn = learnt.picture(scores.details)
        assert drawn is not None
        picture.parent.mkdir(parents=True, exist_ok=True)
        drawn.savefig(picture, dpi=150, bbox_inches="tight")
    if json:
        show.as_json(scores.model_dump(mode="json"))
        return
    out = show.console()
    for title, columns, rows in learnt.report(scores.details):
        out.print(show.table(columns, rows, title=title))
        out.print(Text())
    named = ", ".join(f"{name} {shown(value)}" for name, value in scores.values.items())
    out.print(Text(f"{named}, {scores.count} samples"))


evaluate = with_flags(_evaluate, _FLAGS)
