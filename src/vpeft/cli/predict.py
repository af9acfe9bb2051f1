"""`vpeft predict`: names for images, from a saved adapter."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

from cyclopts import Parameter, validators
from PIL import Image
from rich.text import Text

from vpeft.cli import show
from vpeft.cli.failure import say_warning
from vpeft.cli.flags import Switch
from vpeft.cli.loaded import Device, Loaded, open_adapter
from vpeft.data.images import UnreadableImage, find_images, read_image
from vpeft.errors import VpeftError

_POSITIVE = Parameter(validator=validators.Number(gte=1))


class NothingToPredict(VpeftError):
    """None of the images could be read."""


class Prediction(NamedTuple):
    """One image and its most probable labels with their probabilities, best first."""

    image: Path
    best: list[tuple[str, float]]


def predict(
    adapter: Path,
    /,
    *images: str,
    top: Annotated[int, _POSITIVE] = 5,
    format: Literal["table", "json", "csv"] = "table",
    batch: Annotated[int, _POSITIVE] = 32,
    device: Device = "auto",
    weights: Path | None = None,
    backbone: str | None = None,
    strict: Switch = False,
) -> None:
    """Name what is on images, with a saved adapter.

    Parameters
    ----------
    adapter:
        The file that `vpeft train` saved.
    images:
        Image files, folders (searched through) or patterns such as `photos/*.jpg`.
    top:
        How many labels for each image, best first.
    format:
        A table to read, or JSON or CSV for programs.
    batch:
        Images per pass.
    device:
        Where to compute; auto takes the best that this machine has.
    weights:
        The backbone's file of weights, if it is no longer where it was in training.
    backbone:
        The backbone, where the adapter cannot make it itself: py:FILE.py:NAME for code of yours.
    strict:
        Stop at the first image that cannot be read, instead of skipping it with a warning.
    """
    if not images:
        raise NothingToPredict("No images were given. Give files, folders or patterns: vpeft predict ADAPTER photos/")
    files = find_images(images)
    loaded = open_adapter(adapter, device=device, weights=weights, backbone=backbone)
    predictions = list(predictions_for(loaded, files, top=top, batch=batch, strict=strict))
    if not predictions:
        raise NothingToPredict(f"None of the {len(files)} files could be read as an image.")
    _print(predictions, format)


def predictions_for(
    loaded: Loaded, files: Iterable[Path], *, top: int = 5, batch: int = 32, strict: Switch = False
) -> Iterator[Prediction]:
    """Predict image files in order; one that cannot be read is skipped with a warning, or raised when `strict`."""
    transform = loaded.preprocessing.transform()
    readable = _readable(files, strict)
    while chunk := list(islice(readable, batch)):
        rows = loaded.probabilities([transform(image) for _, image in chunk])
        for (file, _), best in zip(chunk, loaded.best(rows, top), strict=True):
            yield Prediction(file, best)


def _readable(files: Iterable[Path], strict: bool) -> Iterator[tuple[Path, Image.Image]]:
    for file in files:
        try:
            yield file, read_image(file)
        except UnreadableImage as error:
            if strict:
                raise
            say_warning(f"skipped: {error}")


def _print(predictions: Sequence[Prediction], format: str) -> None:
    if format == "json":
        show.as_json(
            [
                {
                    "image": str(one.image),
                    "predictions": [{"label": label, "probability": round(value, 6)} for label, value in one.best],
                }
                for one in predictions
            ]
        )
    elif format == "csv":
        show.as_csv(
            ("image", "rank", "label", "probability"),
            (
                (one.image, rank, label, f"{value:.6f}")
                for one in predictions
                for rank, (label, value) in enumerate(one.best, start=1)
            ),
        )
    elif len(predictions) == 1:
        show.console().print(Text(f"{predictions[0].image}\n"))
        rows = [(label, f"{value:.1%}") for label, value in predictions[0].best]
        show.console().print(show.table(("label", "probability"), rows))
    else:
        width = len(predictions[0].best)
        names = ("image", "label", *(f"{place}." for place in range(2, width + 1)))
        table = [(one.image, *(f"{label} {value:.1%}" for label, value in one.best)) for one in predictions]
        show.console().print(show.table(names, table))
