"""Tune any method on the support of each episode, and tell the queries apart; the adapter starts afresh each time."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn
from torch.nn import functional

from vpeft.atomic import write_json
from vpeft.backbones.create import create_backbone
from vpeft.batch import Batch
from vpeft.data.config import DataConfig
from vpeft.data.datasets import open_for_evaluation
from vpeft.data.preprocessing import Preprocessing
from vpeft.head import make_head
from vpeft.injection.tune import tune
from vpeft.injection.tuned_model import TunedModel
from vpeft.regimes.episodes import Episode, EpisodeSizes, episodes_of
from vpeft.regimes.learner import MethodText, Setting, methods_of, outputs_for
from vpeft.tasks.classification import Classification
from vpeft.training.fit import fit
from vpeft.training.optimisation import Optimisation
from vpeft.training.randomness import derived_seed, seed_everything, untouched_randomness
from vpeft.version import __version__

RECORD = "run.json"
# Cosines are multiplied by this before the softmax (Li et al., TSA; eTT).
SHARPNESS = 10.0


class FewShotRecipe(BaseModel):
    """Episodes out of a data set, a backbone, a method, and how it is tuned on a support."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    backbone: str = Field(default="pocket_vit", description="Pre-trained model: a name from `vpeft backbones`.")
    pretrained: bool = Field(default=True, description="Load the backbone's weights; false: random weights.")
    method: MethodText = Field(description="What is tuned on each support: a method, with settings, several with +.")
    head: Literal["centroid", "linear"] = Field(
        default="centroid",
        description="How queries are told apart: by the nearest mean of the support, or by a linear layer.",
    )
    data: DataConfig
    sizes: EpisodeSizes = Field(default_factory=EpisodeSizes)
    episodes: int = Field(default=600, ge=1, description="How many episodes.")
    steps: int = Field(default=40, ge=0, description="Steps on each support, all of it at once; 0: nothing is tuned.")
    out: Path | None = Field(default=None, description="Folder for the record.")
    optimisation: Optimisation = Field(
        default_factory=lambda: Optimisation(lr=1e-3, schedule="constant", warmup=0, weight_decay=0.01)
    )


class NearestCentroid(Classification):
    """Outputs are features (B, D); the loss is that of the scaled cosines to the mean feature of each class.

    Means are those of the batch itself, so a batch must be the whole support.
    """

    def loss(self, outputs: Any, batch: Batch) -> dict[str, Tensor]:
        """Cross-entropy of `SHARPNESS` times the cosines."""
        features = outputs.float()
        scores = cosines(features, centroids(features, batch.targets, len(self.labels)))
        return {"cross_entropy": functional.cross_entropy(SHARPNESS * scores, batch.targets)}

    def monitor(self, outputs: Any, batch: Batch) -> dict[str, Tensor]:
        """Nothing: the outputs are no scores."""
        return {}


def centroids(features: Tensor, numbers: Tensor, classes: int) -> Tensor:
    """The mean feature of each class, (K, D)."""
    chosen = functional.one_hot(numbers, classes).to(features.dtype)
    return chosen.T @ features / chosen.sum(0)[:, None]


def cosines(features: Tensor, means: Tensor) -> Tensor:
    """(B, D), (K, D) -> (B, K)."""
    return functional.normalize(features, dim=1) @ functional.normalize(means, dim=1).T


@dataclass(frozen=True)
class FewShotOutcome:
    """The accuracy on the queries of each episode, and the record."""

    accuracies: tuple[float, ...]
    record: dict[str, Any]


class FewShot:
    """One model that is tuned on one support after the other; before each the adapter's tensors are those of the start.

    Nothing is attached anew for episodes of one number of classes, so that a reset is a copy of small tensors.
    """

    def __init__(
        self, make: Callable[[], nn.Module], method: str, head: str, settings: Optimisation, steps: int
    ) -> None:
        self.make, self.methods, self.head = make, methods_of(method), head
        self.settings, self.steps = settings, steps
        self.setting = Setting(make, settings, settings.seed)
        self._models: dict[int, tuple[TunedModel, dict[str, Tensor]]] = {}
        self.reset_seconds = 0.0

    def _ready(self, classes: int) -> TunedModel:
        """The model for episodes of so many classes, as at the start."""
        key = classes if self.head == "linear" else 0
        if key not in self._models:
            with untouched_randomness():
                seed_everything(derived_seed(self.settings.seed, "few-shot"))
                tuned = tune(
                    self.make(),
                    *self.methods,
                    head=nn.Identity() if not key else lambda b, width: make_head("linear", b, width, classes),
                    verify=False,
                ).to(self.setting.device)
            self._models[key] = tuned, {name: value.clone() for name, value in tuned.adapter_state().items()}
            return tuned
        tuned, start = self._models[key]
        began = time.perf_counter()
        tuned.load_adapter_state(start)
        for _, parameter in tuned.trainable():
            parameter.grad = None
        self.reset_seconds += time.perf_counter() - began
        return tuned

    def accuracy(self, episode: Episode) -> float:
        """The share of the episode's queries that are right."""
        labels = episode.classes
        tuned = self._ready(len(labels))
        task = NearestCentroid(labels=labels) if self.head == "centroid" else Classification(labels)
        if self.steps and any(True for _ in tuned.trainable()):
            seed = derived_seed(self.settings.seed, "episode", episode.number)
            settings = self.settings.model_copy(
                update={"epochs": self.steps, "batch": len(episode.support), "seed": seed}
            )
            fit(tuned, episode.support, None, optimisation=settings, progress=False, task=task)
        found, numbers = _outputs(tuned, episode.queries, self.setting)
        if self.head == "centroid":
            support, of_support = _outputs(tuned, episode.support, self.setting)
            found = cosines(found, centroids(support, of_support, len(labels)))
        return float((found.argmax(1) == numbers).double().mean())


def _outputs(tuned: TunedModel, images: Any, setting: Setting) -> tuple[Tensor, Tensor]:
    found = list(outputs_for(tuned, images, setting))
    return torch.cat([outputs for outputs, _ in found]), torch.cat([numbers for _, numbers in found])


def run_few_shot(recipe: FewShotRecipe, *, say: Callable[[str], None] = print) -> FewShotOutcome:
    """Tune and score all episodes of a recipe; `run.json` in its folder has the mean with its 95 % interval.

    The interval is 1.96 standard errors over the episodes, as the literature states it.

    Raises:
        BadEpisodes: there are too few classes or images.
    """
    seed = recipe.optimisation.seed

    def make() -> nn.Module:
        with untouched_randomness():
            seed_everything(derived_seed(seed, "backbone"))
            return create_backbone(recipe.backbone, recipe.pretrained, image_size=recipe.data.image_size)

    preprocessing = Preprocessing.from_model(make()).for_data(recipe.data)
    config = recipe.data.model_copy(update={"target": "label"})
    images = open_for_evaluation(config, None).prepared(preprocessing)
    worker = FewShot(make, recipe.method, recipe.head, recipe.optimisation, recipe.steps)
    began, found = time.perf_counter(), list[float]()
    for episode in episodes_of(images, recipe.sizes, recipe.episodes, seed):
        found.append(worker.accuracy(episode))
        if len(found) in (1, 10, 100) or len(found) % 200 == 0:
            mean, half = interval(found)
            say(f"{len(found)} of {recipe.episodes} episodes: {100 * mean:.2f} ± {100 * half:.2f} %")
    seconds = time.perf_counter() - began
    mean, half = interval(found)
    record = {
        "format": 1,
        "vpeft": __version__,
        "recipe": recipe.model_dump(mode="json"),
        "episodes": len(found),
        "accuracy": mean,
        "interval": half,
        "accuracies": found,
        "seconds": round(seconds, 3),
        "reset_share": worker.reset_seconds / seconds,
    }
    if recipe.out is not None:
        write_json(recipe.out / RECORD, record)
    return FewShotOutcome(tuple(found), record)


def interval(values: list[float]) -> tuple[float, float]:
    """The mean, and 1.96 standard errors of it; 0 for one value."""
    numbers = torch.tensor(values, dtype=torch.float64)
    half = 1.96 * float(numbers.std()) / len(values) ** 0.5 if len(values) > 1 else 0.0
    return float(numbers.mean()), half
