"""Pictures of validation samples: image, prediction and truth side by side, and the scores of each class."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image

from vpeft.data.preprocessing import Preprocessing
from vpeft.drawing import SAMPLES, drawn, panel, picture_of, plain_image
from vpeft.task import Task
from vpeft.training.batches import Samples
from vpeft.training.evaluate import on_processor
from vpeft.training.modes import evaluation_mode
from vpeft.training.randomness import seed_everything, untouched_randomness

if TYPE_CHECKING:
    from vpeft.injection.tuned_model import TunedModel

# Names of the pictures, without the ending.
PANEL, CLASSES = "validation_predictions", "validation_classes"
COLOURS = 128  # of a panel's file; with all of them it has four times the bytes


def validation_pictures(
    tuned: TunedModel,
    samples: Samples,
    task: Task,
    preprocessing: Preprocessing,
    details: Mapping[str, Any],
    count: int = SAMPLES,
) -> dict[str, bytes]:
    """PNG files by name: the panel, and the task's drawing of its scores. Empty for a task whose targets are not drawn.

    Args:
        tuned, samples, task, preprocessing, count: see `validation_panel`.
        details: of the scores on these samples.
    """
    beside = validation_panel(tuned, samples, task, preprocessing, count)
    if beside is None:
        return {}
    made = {PANEL: _png(beside.quantize(COLOURS))}
    figure = task.picture(details)
    if figure is not None:
        stream = io.BytesIO()
        figure.savefig(stream, format="png", dpi=110, metadata={"Software": None})
        made[CLASSES] = stream.getvalue()
    return made


def validation_panel(
    tuned: TunedModel, samples: Samples, task: Task, preprocessing: Preprocessing, count: int = SAMPLES
) -> Image.Image | None:
    """The panel of `count` samples at equal distances; None for a task whose targets are not drawn.

    The model is the same afterwards, and so are random generators.

    Args:
        tuned: the model, on its device.
        samples: of the task, without random transforms.
        task: with `truth` and `predictions`.
        preprocessing: how the images were normalised.
        count: how many samples at most.
    """
    if type(task).truth is Task.truth or not len(samples):
        return None
    count = min(count, len(samples))
    places = [place * len(samples) // count for place in range(count)]
    device = next(tuned.parameters()).device
    rows = []
    with torch.no_grad(), evaluation_mode(tuned), untouched_randomness():
        seed_everything(0)
        for place in places:  # one by one: images may differ in size, and few are in memory at once
            batch = task.collate([samples[place]])
            true = task.truth(batch)
            if not true:
                return None
            said = task.predictions(on_processor(task.run(tuned, batch.to(device))), batch)[0]
            target = batch.targets[0] if isinstance(batch.targets, list) else None
            image = plain_image(batch.inputs[0], preprocessing, target)
            pictures = [drawn(image, one, task.labels) for one in (said, true[0])]
            rows.append((said.id, (picture_of(image), *pictures)))
    return panel(rows, ("image", "prediction", "truth"))


def _png(picture: Image.Image) -> bytes:
    stream = io.BytesIO()
    picture.save(stream, format="PNG", optimize=True)
    return stream.getvalue()
