"""A picture of validation samples: each image, what the model says of it, and the truth."""

from __future__ import annotations

from typing import TYPE_CHECKING

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

PANEL = "validation_predictions.png"


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
