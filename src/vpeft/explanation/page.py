"""The page of one adapter: what each edit is worth, how features have moved, where the model looks on real images."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jinja2 import Environment, PackageLoader, select_autoescape
from matplotlib import colormaps
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from vpeft.atomic import replace_file
from vpeft.batch import Batch, Sample
from vpeft.data.preprocessing import Preprocessing
from vpeft.drawing import plain_image
from vpeft.errors import VpeftError
from vpeft.explanation.occlusion import occluded, said_of
from vpeft.explanation.rollout import NoRollOut, RollOut
from vpeft.explanation.similarity import cka_by_block
from vpeft.explanation.single_edits import Attribution, Lack, attribution, without_edits
from vpeft.injection.tuned_model import TunedModel
from vpeft.task import Prediction, Task
from vpeft.training.evaluate import on_processor

# Sides of the pictures, and cells of the occlusion map: 36 passes of one image.
SIDE, CELLS = 192, 6


@dataclass(frozen=True)
class Shown:
    """One image with its maps, each a PNG as a data URL.

    Attributes:
        name: of the image.
        truth: its target, where that is one label.
        said, said_before: the first answer with the adapter, and of the frozen backbone under the same head.
        pictures: what each picture is, and the picture.
    """

    name: str
    truth: str
    said: str
    said_before: str
    pictures: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Explanation:
    """All that the page shows."""

    facts: Mapping[str, Any]
    edits: Attribution
    blocks: tuple[tuple[str, float], ...]
    images: tuple[Shown, ...]
    notes: tuple[str, ...]


def explained(
    tuned: TunedModel,
    task: Task,
    preprocessing: Preprocessing,
    samples: Sequence[Sample],
    *,
    facts: Mapping[str, Any],
    pictures: int = 6,
    batch: int = 32,
) -> Explanation:
    """Measure an adapter on samples. The model is given up for it.

    Args:
        tuned: the model, with the adapter on.
        task: of the adapter.
        preprocessing: of the samples, to draw them.
        samples: as the task prepares them, with targets where scores are wanted.
        facts: for the head of the page.
        pictures: how many images are shown.
        batch: images in a pass.
    """
    tuned.eval()
    batches = [task.collate(list(samples[at : at + batch])) for at in range(0, len(samples), batch)]
    notes = []
    edits = attribution(tuned, task, batches)
    blocks: list[tuple[str, float]] = []
    if all(isinstance(one.inputs, Tensor) and one.inputs.dim() == 4 for one in batches):
        blocks = cka_by_block(tuned, [one.inputs for one in batches])
    else:
        notes.append("Samples of several images or clips: features are not compared, and no maps are drawn.")
        pictures = 0
    spread = [samples[number * len(samples) // pictures] for number in range(min(pictures, len(samples)))]
    shown = _shown(tuned, task, preprocessing, spread, notes)
    return Explanation(facts, edits, tuple(blocks), tuple(shown), tuple(notes))


def _shown(
    tuned: TunedModel, task: Task, preprocessing: Preprocessing, samples: Sequence[Sample], notes: list[str]
) -> list[Shown]:
    if not samples:
        return []
    before = _answers(tuned, task, samples, off=True)
    after = _answers(tuned, task, samples)
    falls = []
    for sample in samples:
        answers = _answers(tuned, task, [sample, *occluded(sample, CELLS)])
        found = None if answers is None else said_of(answers, CELLS)
        falls.append(None if found is None else np.array(found["falls"]))
    looks: tuple[Tensor, Tensor] | None = None
    try:
        device = next(tuned.backbone.parameters()).device
        looks = RollOut(tuned)(torch.stack([sample.input for sample in samples]).to(device))
    except NoRollOut as error:
        notes.append(f"No attention roll-out: {error}")
    shown = []
    for number, sample in enumerate(samples):
        image = plain_image(sample.input, preprocessing)
        pictures = [("the image", _png(_picture(image)))]
        if looks is not None:
            pictures.append(("roll-out, frozen", _png(_over(image, looks[0][number].cpu().numpy()))))
            pictures.append(("roll-out, adapted", _png(_over(image, looks[1][number].cpu().numpy()))))
        fall = falls[number]
        if fall is not None:
            pictures.append(("occlusion, adapted", _png(_over(image, fall, signed=True))))
        said = tuple("" if found is None else _words(found[number]) for found in (after, before))
        shown.append(Shown(sample.id or str(number), _truth(task, sample), said[0], said[1], tuple(pictures)))
    return shown


def _answers(tuned: TunedModel, task: Task, samples: Sequence[Sample], off: bool = False) -> list[Prediction] | None:
    """Predictions; with `off`, those of the frozen backbone under the adapter's head, or None where that cannot be."""
    batch: Batch = task.collate(list(samples))
    device = next(tuned.backbone.parameters()).device
    numbers = range(len(tuned.adapter().edits)) if off else range(0)
    try:
        with torch.inference_mode(), without_edits(tuned, numbers):
            return task.predictions(on_processor(task.run(tuned, batch.to(device))), batch)
    except (VpeftError, RuntimeError):  # the head is for features of another width
        if not off:
            raise
        return None


def _words(one: Prediction) -> str:
    if not one.rows:
        return "nothing"
    return " ".join(f"{value:.3g}" if isinstance(value, float) else str(value) for value in one.rows[0].values())


def _truth(task: Task, sample: Sample) -> str:
    target, labels = sample.target, list(task.labels)
    return str(labels[target]) if isinstance(target, int) and 0 <= target < len(labels) else ""


def _picture(image: Tensor) -> Image.Image:
    values = image if image.dtype == torch.uint8 else (image.clamp(0, 1) * 255).round().to(torch.uint8)
    values = values[:3] if values.shape[0] >= 3 else values[:1].expand(3, -1, -1)
    made = Image.fromarray(values.permute(1, 2, 0).numpy())
    return made.resize((SIDE, SIDE), Image.Resampling.BICUBIC)


def _over(image: Tensor, values: NDArray[Any], signed: bool = False) -> Image.Image:
    """A map in colours over the grey image; a signed one is white at zero, red above and blue below."""
    most = float(np.abs(values).max()) or 1.0
    low = -most if signed else float(values.min())
    part = (values - low) / ((most if signed else float(values.max())) - low or 1.0)
    coloured = colormaps["bwr" if signed else "inferno"](part)[..., :3]
    cover = Image.fromarray((255 * coloured).astype(np.uint8)).resize((SIDE, SIDE), Image.Resampling.BICUBIC)
    return Image.blend(_picture(image).convert("L").convert("RGB"), cover, 0.55)


def _png(picture: Image.Image) -> str:
    held = BytesIO()
    picture.save(held, "PNG")
    return f"data:image/png;base64,{base64.b64encode(held.getvalue()).decode()}"


@dataclass(frozen=True)
class Bar:
    """A row of the table of edits: its places, its numbers, and its length in percent of the longest."""

    places: str
    change: str
    score: str
    length: float
    reason: str


def _bars(edits: Attribution) -> list[Bar]:
    most = max((one.change or 0.0 for one in edits.lacks), default=0.0) or 1.0
    return [_bar(one, edits.score, most) for one in sorted(edits.lacks, key=lambda one: -(one.change or 0.0))]


def _bar(one: Lack, score: float | None, most: float) -> Bar:
    change = "" if one.change is None else f"{one.change:.2%}"
    fall = "" if one.score is None or score is None else f"{one.score - score:+.4f}"
    length = 0.0 if one.change is None else min(100.0, 100 * one.change / most)
    shown = one.places if len(one.places) <= 2 else (one.places[0], f"and {len(one.places) - 1} more with its layer")
    return Bar(", ".join(shown), change, fall, length, one.reason)


def write_page(found: Explanation, out: Path) -> None:
    """Write the page as one file that needs no other."""
    environment = Environment(loader=PackageLoader("vpeft.explanation", "templates"), autoescape=select_autoescape())
    everything = found.edits.without_all
    text = environment.get_template("page.html").render(
        facts=found.facts,
        leading=found.edits.leading,
        score=found.edits.score,
        nothing=_bar(everything, found.edits.score, everything.change or 1.0),
        nothing_score=everything.score,
        bars=_bars(found.edits),
        blocks=found.blocks,
        images=found.images,
        notes=found.notes,
    )

    def write(beside: Path) -> None:
        beside.write_text(text, encoding="utf-8")

    replace_file(out, write)


def as_data(found: Explanation) -> dict[str, Any]:
    """The numbers of the page as JSON."""
    lacks = [
        {"places": list(one.places), "change": one.change, "score": one.score, "reason": one.reason}
        for one in (*found.edits.lacks, found.edits.without_all)
    ]
    return {
        "leading": found.edits.leading,
        "score": found.edits.score,
        "edits": lacks[:-1],
        "without_all": lacks[-1],
        "cka": [{"block": name, "value": value} for name, value in found.blocks],
        "notes": list(found.notes),
    }
