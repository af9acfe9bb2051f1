"""`vpeft evaluate`: how often a saved adapter is right on labelled images."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter, validators
from rich.text import Text

from vpeft.cli import show
from vpeft.cli.data_flags import data_flags
from vpeft.cli.flags import Switch, nested, with_flags
from vpeft.cli.loaded import Device, open_adapter
from vpeft.cli.validated import validated
from vpeft.data.config import DataConfig
from vpeft.data.datasets import open_for_evaluation
from vpeft.errors import VpeftError
from vpeft.training.evaluate import evaluate as score

_FLAGS = data_flags()


class NoData(VpeftError):
    """No data set was named."""


def _evaluate(
    adapter: Path,
    /,
    *,
    batch: Annotated[int, Parameter(validator=validators.Number(gte=1))] = 64,
    device: Device = "auto",
    weights: Path | None = None,
    backbone: str | None = None,
    json: Switch = False,
    given: dict[str, Any],
) -> None:
    """Score a saved adapter on labelled images.

    Of a source that states its splits the test split is used, else val, else all of it. A folder that `vpeft train`
    split by itself states none: name images that were not trained on.

    Parameters
    ----------
    adapter:
        The file that `vpeft train` saved.
    batch:
        Images per pass.
    device:
        Where to compute; auto takes the best that this machine has.
    weights:
        The backbone's file of weights, if it is no longer where it was in training.
    backbone:
        The backbone, where the adapter cannot make it itself: py:FILE.py:NAME for code of yours.
    json:
        Print JSON, with the confusion matrix, instead of a table.
    """
    values = nested(_FLAGS, given)
    if "source" not in values:
        raise NoData("No data were given. Say --data FOLDER: one sub-folder of images for each label.")
    config = validated(DataConfig, values, _FLAGS)
    loaded = open_adapter(adapter, device=device, weights=weights, backbone=backbone)
    images = open_for_evaluation(config, loaded.labels).with_transform(loaded.preprocessing.transform())
    scores = score(loaded.model, images, batch=batch, workers=config.workers)
    if json:
        show.as_json({**scores.model_dump(mode="json"), "labels": loaded.labels})
        return
    out = show.console()
    counts = [sum(row) for row in scores.confusion]
    rows = [
        (label, number, f"{right:.1%}", _most_confused(row, place, loaded.labels))
        for place, (label, number, right, row) in enumerate(
            zip(loaded.labels, counts, scores.per_class, scores.confusion, strict=True)
        )
        if right is not None
    ]
    out.print(show.table(("label", "images", "right", "most often taken for"), rows))
    out.print(
        Text(
            f"\ntop-1 {scores.top1:.2%}, mean per class {scores.mean_per_class:.2%}, loss {scores.loss:.4f}, "
            f"{scores.count} images"
        )
    )


def _most_confused(row: list[int], true: int, labels: list[str]) -> str:
    wrong = [(number, -place) for place, number in enumerate(row) if place != true and number]
    if not wrong:
        return ""
    number, place = max(wrong)
    return f"{labels[-place]} ({number})"


evaluate = with_flags(_evaluate, _FLAGS)
