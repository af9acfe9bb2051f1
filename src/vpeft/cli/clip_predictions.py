"""Predictions for clips: every view through the model, and their mean; `vpeft predict` with videos."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vpeft.batch import Batch, Sample
from vpeft.cli.drawings import write
from vpeft.cli.failure import say_warning
from vpeft.cli.loaded import Loaded
from vpeft.data.clips.clip import Clip, ClipPicture
from vpeft.data.clips.clip_config import FRAMES
from vpeft.data.clips.sampling import frame_numbers
from vpeft.data.clips.strip import strip
from vpeft.data.clips.views import transforms_of_views
from vpeft.data.decoding import Limits
from vpeft.data.pixels import DEFAULT, Reading
from vpeft.data.preprocessing import Preprocessing
from vpeft.data.problems import DataError
from vpeft.drawing import plain_image
from vpeft.task import Prediction
from vpeft.training.evaluate import on_processor


def clip_predictions(
    loaded: Loaded,
    clips: Mapping[str, ClipPicture],
    preprocessing: Preprocessing,
    *,
    batch: int = 32,
    strict: bool = False,
    limits: Limits = DEFAULT,
    draw: Path | None = None,
) -> Iterator[Prediction]:
    """Predict clips in order; one that cannot be read is skipped with a warning, or raises if `strict`.

    Args:
        loaded: the model.
        clips: by name.
        preprocessing: of the model, with the views that are wanted.
        batch: views that pass the model at a time.
        strict: see above.
        limits: of a frame.
        draw: folder for a strip of the frames that were seen, one picture for each clip.
    """
    transforms, config = transforms_of_views(preprocessing), preprocessing.clip
    assert config is not None  # the preprocessing of clips
    reading = Reading(3, "type", limits.max_pixels, limits.max_aspect, limits.max_mib)
    for name, picture in clips.items():
        try:
            clip, inputs = _seen(picture, reading, transforms)
        except DataError as error:
            if strict:
                raise
            say_warning(f"skipped: {name}: {error}")
            continue
        found = []
        with torch.inference_mode():
            for start in range(0, len(inputs), batch):
                some = loaded.task.collate([Sample(one, None, name) for one in inputs[start : start + batch]])
                found.append(on_processor(loaded.task.run(loaded.model, some.to(loaded.device))))
        outputs = torch.cat(found)
        if len(inputs) > 1:
            outputs = loaded.task.averaged(outputs, len(inputs))
        one = loaded.task.predictions(outputs, Batch(inputs[0][None], None, (name,)))[0]
        if draw is not None:
            rows = []
            for part in range(config.parts):
                numbers = frame_numbers(config, config.frames or FRAMES, clip.count, None, part)
                pixels = inputs[part * config.crops + config.crops // 2]
                shown = pixels if preprocessing.time_axis == 1 else pixels.transpose(0, 1)
                frames = torch.stack([plain_image(frame, preprocessing) for frame in shown])
                rows.append((f"frames {', '.join(map(str, numbers))} of {clip.count}", frames))
            best = "" if not one.rows else ", ".join(_word(value) for value in one.rows[0].values())
            write(strip(rows, f"{Path(name).name}: {best}"), _free(draw, Path(name)))
        yield one


def _seen(
    picture: ClipPicture, reading: Reading, transforms: Sequence[Callable[..., Any]]
) -> tuple[Clip, list[Tensor]]:
    """The clip and its views; a video whose packets name more frames than there are is counted anew."""
    clip = picture.checked("header", reading.limits).picture.decode(reading=reading)
    try:
        return clip, [transform(clip) for transform in transforms]
    except DataError:
        clip = picture.checked("decode", reading.limits).picture.decode(reading=reading)
        return clip, [transform(clip) for transform in transforms]


def _word(value: object) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _free(folder: Path, name: Path) -> Path:
    """A file that is not there yet, named as the clip."""
    number, path = 2, folder / f"{name.stem}.png"
    while path.exists():
        path, number = folder / f"{name.stem}_{number}.png", number + 1
    return path
