"""`vpeft predict`: predictions of a saved adapter for images."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence, Sized
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import Parameter, validators
from rich.text import Text

from vpeft.cli import show
from vpeft.cli.clip_predictions import clip_predictions
from vpeft.cli.coco_objects import CocoObjects
from vpeft.cli.drawings import Drawings
from vpeft.cli.failure import say_warning
from vpeft.cli.flags import Switch
from vpeft.cli.gallery import Gallery
from vpeft.cli.loaded import Device, Loaded, open_adapter
from vpeft.cli.nothing_to_predict import NothingToPredict
from vpeft.cli.read_samples import readable_images, samples_of
from vpeft.cli.validated import validated
from vpeft.cli.zero_shot import by_names, split_names
from vpeft.data.clips.clip_config import ClipConfig
from vpeft.data.clips.find_clips import find_clips
from vpeft.data.decoding import Limits
from vpeft.data.images import find_images
from vpeft.data.pixels import DEFAULT
from vpeft.task import Prediction

_POSITIVE = Parameter(validator=validators.Number(gte=1))


def predict(
    adapter: Path,
    /,
    *images: str,
    top: Annotated[int, _POSITIVE] = 5,
    format: Literal["table", "json", "csv", "coco"] = "table",
    batch: Annotated[int, _POSITIVE] = 32,
    device: Device = "auto",
    weights: Path | None = None,
    backbone: str | None = None,
    allow_download: Switch = False,
    task: str | None = None,
    strict: Switch = False,
    draw: Path | None = None,
    names: str | None = None,
    templates: tuple[str, ...] = (),
    gallery: tuple[str, ...] = (),
    question: str | None = None,
    views: Annotated[str | None, Parameter(name=("--clip.views",))] = None,
    max_pixels: Annotated[int | None, _POSITIVE] = None,
    max_aspect: Annotated[float | None, _POSITIVE] = None,
    max_mib: Annotated[int | None, _POSITIVE] = None,
) -> None:
    """Predict labels, numbers or maps of images, or labels of videos, with a saved adapter, as its task defines.

    Parameters
    ----------
    adapter:
        The file that `vpeft train` saved. With --names there is none, and this is the first image.
    images:
        Image files, folders (searched with their sub-folders) or patterns such as `photos/*.jpg`. For a model of
        clips: videos, folders of frames, or patterns.
    top:
        Number of answers for each image, best first.
    format:
        A table to read, or JSON or CSV for programs; coco writes found objects as COCO does, all of them.
    batch:
        Images per pass.
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
    strict:
        Stop at the first image that cannot be read, instead of skipping it with a warning.
    draw:
        Folder for a picture of each image with what is found: boxes, masks and names, or classes or depths in
        colours. Class maps also go to masks/ as PNGs of class numbers, depths to depth/ as arrays for numpy, pictures
        that the model made to a folder named as what they show. Of a video, the frames that were seen. With a
        gallery, each image beside its nearest ones.
    gallery:
        For retrieval: folders, files or patterns of the images among which the nearest are looked for.
    question:
        For an adapter that answers questions: what is asked of each image.
    names:
        Zero-shot: names of classes with commas between them, which the image-text model of --backbone compares with
        the images (pocket_clip, hf:FOLDER, open_clip:NAME/WEIGHTS). Nothing is trained, and no adapter is needed. With
        an adapter file that classifies by name, and no --backbone, these classes in place of those of its training.
    templates:
        For --names: texts with {} for the name, "a photo of a {}." by default; several are an ensemble.
    views:
        Views of a video, parts in time x crops in space, such as 4x3; those of the training by default.
    max_pixels:
        Height times width of the largest image to read, 178956970 by default; JPEG is read smaller.
    max_aspect:
        Longer side of the narrowest image to read, divided by its shorter side; 200 by default.
    max_mib:
        Memory of one decoded image, and size of its file, in MiB; 4096 by default.
    """
    alone = names is not None and backbone is not None  # no adapter: the first argument is an image
    if alone:
        images = (str(adapter), *images)
    if not images:
        raise NothingToPredict("No images were given. Give files, folders or patterns: vpeft predict ADAPTER photos/")
    zero_shot = None
    if names is not None and alone:
        zero_shot = by_names(names, templates=templates, backbone=backbone, device=device, weights=weights)
    loaded = zero_shot or open_adapter(
        adapter, device=device, weights=weights, backbone=backbone, allow_download=allow_download, of_task=task
    )
    if names is not None and not alone:
        loaded = loaded.renamed(split_names(names))
    if question is not None:
        loaded = loaded.asking(question)
    if loaded.unsealed is not None:
        say_warning(loaded.unsealed)
    files: Sized
    limits = Limits(max_pixels, max_aspect, max_mib)
    if gallery and loaded.preprocessing.clip is not None:
        raise NothingToPredict("--gallery is for models of images, and this one takes clips. Leave it out.")
    if loaded.preprocessing.clip is not None:
        asked = ClipConfig() if views is None else validated(ClipConfig, {"views": views}, ())
        clips = files = find_clips(images)
        seen = loaded.preprocessing.with_clip(asked)
        found = clip_predictions(loaded, clips, seen, batch=batch, strict=strict, limits=limits, draw=draw)
        draw = None
    elif views is not None:
        raise NothingToPredict("--clip.views is for models of clips, and this one takes images. Leave it out.")
    else:
        named = files = find_images(images)
        if gallery:
            among = Gallery(loaded, find_images(gallery), batch=batch, strict=strict, limits=limits)
            found, draw = among.drawn(among.nearest(named, top), draw), None
        else:
            found = predictions_for(loaded, named, batch=batch, strict=strict, limits=limits)
    predictions: list[Prediction] = []
    drawings = None if draw is None else Drawings(draw, loaded)
    coco = CocoObjects(loaded.labels) if format == "coco" else None
    for one in found:
        if drawings is not None:
            drawings.add(one)
        if coco is not None:
            coco.add(one)
        # pixels of many images would fill the memory
        predictions.append(replace(one, map=None, objects=None, pictures={}))
    if not predictions:
        what = "an image" if loaded.preprocessing.clip is None else "a clip"
        raise NothingToPredict(f"None of the {len(files)} files could be read as {what}.")
    if coco is not None:
        show.as_json(coco.document())
    else:
        _print(predictions, top, format)


def predictions_for(
    loaded: Loaded,
    files: Iterable[Path],
    *,
    batch: int = 32,
    strict: Switch = False,
    limits: Limits = DEFAULT,
) -> Iterator[Prediction]:
    """Predict image files in order. A file that cannot be read is skipped with a warning, or raises if `strict`.

    If a sample of the task has several images, the files are taken in groups of that size. Each image is brought to the
    size of the model before the next one is read, so that memory holds one image of a file's size.
    """
    samples = samples_of(loaded, readable_images(files, loaded.preprocessing, strict, limits))
    while chunk := list(islice(samples, batch)):
        yield from loaded.predictions(chunk)


def _print(predictions: Sequence[Prediction], top: int, format: str) -> None:
    columns = list(dict.fromkeys(name for one in predictions for row in one.rows for name in row))
    if format == "json":
        show.as_json(
            [
                {"image": one.id, "predictions": [_rounded(row) for row in one.rows[:top]], **dict(one.values)}
                for one in predictions
            ]
        )
    elif format == "csv":
        show.as_csv(
            ("image", "rank", *columns),
            (
                (one.id, rank, *(_written(row.get(name, ""), exact=True) for name in columns))
                for one in predictions
                for rank, row in enumerate(one.rows[:top], start=1)
            ),
        )
    elif len(predictions) == 1:
        show.console().print(Text(f"{predictions[0].id}\n"))
        rows = [[_written(row.get(name, "")) for name in columns] for row in predictions[0].rows[:top]]
        show.console().print(show.table(columns, rows))
    else:
        width = max((len(one.rows[:top]) for one in predictions), default=0)
        names = ("image", "says", *(f"{place}." for place in range(2, width + 1)))
        table = [
            (
                one.id,
                *(" ".join(_written(value) for value in row.values()) for row in one.rows[:top] or ({"": "nothing"},)),
            )
            for one in predictions
        ]
        show.console().print(show.table(names, [(*row, *[""] * (len(names) - len(row))) for row in table]))


def _rounded(row: Mapping[str, Any]) -> dict[str, Any]:
    return {name: round(value, 6) if isinstance(value, float) else value for name, value in row.items()}


def _written(value: Any, exact: bool = False) -> str:
    if not isinstance(value, float):
        return str(value)
    return f"{value:.6f}" if exact else f"{value:.4g}"
