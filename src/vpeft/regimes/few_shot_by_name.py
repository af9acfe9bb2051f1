"""Few images of each class and the names of the classes: the accuracy on base classes, on new ones, and their mean."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, Field, field_validator

from vpeft.atomic import write_json
from vpeft.backbones.create import create_backbone
from vpeft.backbones.describe import describe
from vpeft.data.config import DataConfig
from vpeft.data.datasets import open_data
from vpeft.data.image_set import ImageSet
from vpeft.data.preprocessing import Preprocessing
from vpeft.errors import VpeftError
from vpeft.heads.class_names import PLAIN
from vpeft.injection.placed import TOGETHER, MethodLike
from vpeft.injection.rename_classes import rename_classes
from vpeft.injection.tune import tune
from vpeft.injection.tuned_model import TunedModel
from vpeft.method import Method, get_method
from vpeft.method_spec import parse_placed
from vpeft.regimes.few_shot_protocols import few_shot_protocol
from vpeft.tasks.classification_by_name import ClassificationByName
from vpeft.training.evaluate import evaluate
from vpeft.training.fit import fit
from vpeft.training.optimisation import Optimisation
from vpeft.training.randomness import derived_seed, seed_everything, untouched_randomness
from vpeft.version import __version__

RECORD = "run.json"


class TooFewShots(VpeftError):
    """A class has fewer images than are asked for, or there are too few classes."""


class FewShotByNameRecipe(BaseModel):
    """An image-text model, methods on its towers, a data set, and how many images of each class are seen."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    backbone: str = Field(description="Image-text model: pocket_clip, host::hf:FOLDER, host::open_clip:NAME/WEIGHTS.")
    weights: Path | None = Field(default=None, description="File of weights to load instead.")
    method: str = Field(description="What is tuned: `image:lora(rank=2)+text:coop(n=4)`; linear_probe tunes nothing.")
    templates: tuple[str, ...] = Field(default=(PLAIN,), description="Texts with {} for the name of a class.")
    data: DataConfig
    shots: int = Field(default=16, ge=1, description="Training images of each class; 1, 2, 4, 8 and 16 in papers.")
    base_to_new: bool = Field(
        default=False, description="Train on the first half of the classes, and test on it and on the other half."
    )
    protocol: str = Field(
        default="few-shot-validation-free@1", description="Whether validation images may be looked at; an id."
    )
    out: Path | None = Field(default=None, description="Folder for the adapter and the record.")
    optimisation: Optimisation = Field(default_factory=lambda: Optimisation(epochs=20, batch=32, lr=2e-3))

    @field_validator("protocol")
    @classmethod
    def _known(cls, name: str) -> str:
        return few_shot_protocol(name).id


@dataclass(frozen=True)
class FewShotByNameOutcome:
    """The tuned model and the record: `accuracy`, and with base_to_new `base`, `new` and `harmonic_mean`."""

    tuned: TunedModel
    record: dict[str, Any]


def methods_on_towers(text: str) -> list[MethodLike]:
    """Methods in text, each on its tower; one that couples towers is on all, one that tunes nothing on the image's."""
    found: list[MethodLike] = []
    for tower, spec in parse_placed(text):
        method = get_method(spec.name)(**spec.fields)
        if not tower and type(method).edits_across is not Method.edits_across:
            tower = TOGETHER
        if not tower and method.trains_head_only:
            tower = "image"
        found.append({tower: method} if tower else method)
    return found


def run_few_shot_by_name(recipe: FewShotByNameRecipe, *, say: Callable[[str], None] = print) -> FewShotByNameOutcome:
    """Train on few images of each class and test once; see `FewShotByNameRecipe`.

    Raises:
        TooFewShots: a class has fewer training images than shots, or there are fewer than four classes to halve.
    """
    rules, seed = few_shot_protocol(recipe.protocol), recipe.optimisation.seed
    with untouched_randomness():
        seed_everything(derived_seed(seed, "backbone"))
        model = create_backbone(recipe.backbone, recipe.weights is None, weights=recipe.weights)
    preprocessing = Preprocessing.from_model(model).for_data(recipe.data)
    config = recipe.data.model_copy(update={"target": "label"})
    data = open_data(config).prepared(preprocessing)
    if data.test is None:
        raise TooFewShots(
            "There are no test images; a data set with a test split, or test_fraction above 0, is needed."
        )
    labels = data.labels
    if recipe.base_to_new and len(labels) < 4:
        raise TooFewShots(f"{len(labels)} classes cannot be halved into two or more on each side.")
    base = labels[: (len(labels) + 1) // 2] if recipe.base_to_new else labels
    train = _shots(data.train, base, recipe.shots, derived_seed(seed, "train"))
    looked = rules.validation_images(recipe.shots)
    val = _shots(data.val, base, looked, derived_seed(seed, "val")) if looked and data.val is not None else None
    task = ClassificationByName(base, templates=recipe.templates)
    with untouched_randomness():
        seed_everything(derived_seed(seed, "tune"))
        tuned = tune(describe(model), *methods_on_towers(recipe.method), task=task)
    if any(True for _ in tuned.trainable()):
        said = f"{recipe.shots} images of each of {len(base)} classes"
        say(f"{recipe.method} on {recipe.backbone} learns {said} ({rules.id})")
        fit(tuned, train, val, optimisation=recipe.optimisation, progress=False, task=task)
    found = {"base" if recipe.base_to_new else "accuracy": _accuracy(tuned, data.test, base, recipe)}
    if recipe.out is not None:
        recipe.out.mkdir(parents=True, exist_ok=True)
        tuned.save(recipe.out / "adapter.safetensors", preprocessing=preprocessing.model_dump(mode="json"))
    if recipe.base_to_new:
        new = labels[len(base) :]
        found["new"] = _accuracy(rename_classes(tuned, new), data.test, new, recipe)
        rename_classes(tuned, base)
        total = found["base"] + found["new"]
        found["harmonic_mean"] = 2 * found["base"] * found["new"] / total if total else 0.0
    record = {
        "format": 1,
        "vpeft": __version__,
        "protocol": rules.id,
        "recipe": recipe.model_dump(mode="json"),
        "trainable": tuned.plan().trainable,
        **found,
    }
    if recipe.out is not None:
        write_json(recipe.out / RECORD, record)
    return FewShotByNameOutcome(tuned, record)


def _shots(images: ImageSet, labels: list[str], count: int, seed: int) -> ImageSet:
    """`count` images of each class, drawn by the seed, whose targets count in `labels`."""
    draw = torch.Generator().manual_seed(seed)
    chosen: list[int] = []
    for label in labels:
        places = [place for place, item in enumerate(images.items) if item.label == label]
        if len(places) < count:
            raise TooFewShots(f"{label} has {len(places)} images, and {count} are asked for. Ask for fewer shots.")
        chosen += [places[place] for place in torch.randperm(len(places), generator=draw)[:count].tolist()]
    return images.subset(chosen).relabelled(labels)


def _accuracy(tuned: TunedModel, images: ImageSet, labels: list[str], recipe: FewShotByNameRecipe) -> float:
    """The share of the test images of these classes that are right."""
    inside = set(labels)
    some = images.subset([place for place, item in enumerate(images.items) if item.label in inside])
    scores = evaluate(tuned, some.relabelled(labels), task=tuned.task, batch=recipe.optimisation.batch)
    return scores.values["top1"]
