"""Tip-Adapter: the features of the training images are a cache whose answers join those of the class names."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from ..backbones.backbone import Backbone
from ..backbones.edits import Edit
from ..backbones.points import MissingPlace
from ..errors import VpeftError
from ..layers.class_labels import class_labels
from ..layers.random_crops import random_crops
from ..method import Method, register
from .cocoop import image_and_text

if TYPE_CHECKING:
    from ..injection.tuned_model import TunedModel


@register("tip_adapter", category="addition", family="adapter", paper="2207.09519", year=2022, venue="ECCV")
class TipAdapter(Method):
    """logits + alpha exp(-beta (1 - f K^T)) Y: few-shot images answer by how alike they are; nothing need be trained.

    f (B, E) is the normalised feature of an image, K (M, E) are those of the M training images, Y (M, C) their classes.
    `prepare` fills the cache: for each image the mean feature of `passes` random crops (half its area at least, and
    mirrored half of the time), which is normalised. `train_keys` is Tip-Adapter-F: K trains, from the same start. alpha
    and beta are found on validation images by `search_strengths`, before or after training, and saved. The authors keep
    the epoch that is best on the test images; take validation images for that too.

    Without `train_keys` there is nothing for `fit` to train: call `tuned.prepare(batches)`, and evaluate.

    Put it on the image tower of a model with class names. On a backbone alone it joins the head's own logits.
    Departure: crops are made of the images as they enter the model, not of the files.
    """

    train_keys: bool = False
    """whether K trains (Tip-Adapter-F)"""
    alpha: float = Field(default=1.17, ge=0.0)
    """weight of the cache; 1 to 3 in the authors' settings"""
    beta: float = Field(default=1.0, gt=0.0)
    """how sharply likeness counts"""
    passes: int = Field(default=10, gt=0)
    """random crops of each image; 1 takes the image as it is"""
    images: int = Field(default=0, ge=0)
    """M; `prepare` sets it"""
    classes: int = Field(default=0, ge=0)
    """C; `prepare` sets it"""

    def edits(self, backbone: Backbone) -> Iterator[Edit]:
        if backbone.inputs.layout == "tokens":
            raise MissingPlace(
                "TipAdapter compares images with those of the training set, and this tower takes texts: put it on the"
                " image tower, tune(clip, {'image': TipAdapter()}, task=...)."
            )
        if backbone.outlet.per_frame:
            raise MissingPlace(
                "TipAdapter keeps one feature for each sample, and this backbone reads the frames of a clip one by one:"
                " take a backbone that reads the clip as a whole."
            )
        cache = Cache(backbone.outlet.width, self.images, self.classes, self.alpha, self.beta, self.train_keys)
        yield backbone.logits.after(cache, reads=(backbone.outlet,))

    def edits_across(self, towers: Mapping[str, Backbone]) -> Iterator[Edit]:
        """On the image tower."""
        yield from self.edits(image_and_text(towers, type(self).__name__)[0])

    def prepare(self, tuned: TunedModel, batches: Iterable[tuple[Tensor, Tensor]]) -> None:
        if cache_of(tuned).images:
            return  # a loaded or resumed adapter keeps its cache
        keys, labels, classes = [], [], 0
        for images, targets, logits in _looked_at(tuned, batches):
            labels.append(class_labels(targets, len(images), type(self).__name__).to(logits.device))
            keys.append(F.normalize(self._mean_feature(tuned, images), dim=-1))
            classes = logits.shape[-1]
        if not keys:
            raise VpeftError("Tip-Adapter keeps the features of the training images, but `prepare` was given none.")
        filled = self.model_copy(update={"images": sum(map(len, keys)), "classes": classes})
        tuned.replace_method(self, filled)
        cache_of(tuned).fill(torch.cat(keys), torch.cat(labels))

    def _mean_feature(self, tuned: TunedModel, images: Tensor) -> Tensor:
        """(B, E), the mean over random crops."""
        if self.passes == 1 or images.dim() != 4:
            return image_features(tuned, images)
        total = sum(image_features(tuned, random_crops(images, 0.5)) for _ in range(self.passes))
        assert isinstance(total, Tensor)
        return total / self.passes

    @staticmethod
    @torch.no_grad()
    def search_strengths(
        tuned: TunedModel,
        batches: Iterable[tuple[Tensor, Tensor]],
        largest_alpha: float = 3.0,
        largest_beta: float = 7.0,
    ) -> float:
        """Set alpha and beta to the best of a grid of 20 x 200 on validation images; returns their accuracy.

        Args:
            tuned: with a filled cache.
            batches: (images, labels) of validation.
            largest_alpha, largest_beta: where the grid ends; it begins at 0.1. The authors take 3 and 7 for ImageNet, 5
                and 12 for Caltech-101, 13 and 13 for DTD, 10 and 12 for EuroSAT and SUN397.
        """
        cache = cache_of(tuned)
        if not cache.images:
            raise VpeftError(
                "The cache of Tip-Adapter is empty: call tuned.prepare(batches) with training images first."
            )
        alpha, rows = cache.alpha.clone(), []
        try:
            cache.alpha.zero_()
            for images, targets, logits in _looked_at(tuned, batches):
                feature = F.normalize(image_features(tuned, images), dim=-1)
                rows.append((logits, feature @ cache.keys.T, torch.as_tensor(targets).to(logits.device)))
        finally:
            cache.alpha.copy_(alpha)
        logits, likeness, labels = (torch.cat(parts) for parts in zip(*rows, strict=True))
        best = -1.0
        for step in range(200):
            beta = 0.1 + step * (largest_beta - 0.1) / 200
            answers = cache.answers(likeness, torch.as_tensor(beta))
            for inner in range(20):
                weight = 0.1 + inner * (largest_alpha - 0.1) / 20
                right = float(((logits + weight * answers).argmax(-1) == labels).float().mean())
                if right > best:
                    best = right
                    cache.alpha.fill_(weight)
                    cache.beta.fill_(beta)
        return best


class Cache(nn.Module):
    """logits (B, C) and features (B, E) -> logits + alpha exp(-beta (1 - f K^T)) Y; as they are while it is empty.

    Args:
        width: E.
        images: M.
        classes: C.
        alpha, beta: first values; they are saved with the adapter.
        train: whether K trains.
    """

    alpha: Tensor
    beta: Tensor
    labels: Tensor

    def __init__(self, width: int, images: int, classes: int, alpha: float, beta: float, train: bool) -> None:
        super().__init__()
        self.images, self.classes = images, classes
        self.keys = nn.Parameter(torch.zeros(images, width), requires_grad=train)
        self.register_buffer("labels", torch.zeros(images, dtype=torch.long))
        self.register_buffer("alpha", torch.tensor(alpha))
        self.register_buffer("beta", torch.tensor(beta))
        if train and not images:
            self.dormant = {"keys": "the cache is empty until `prepare` has seen the training images"}

    @torch.no_grad()
    def fill(self, keys: Tensor, labels: Tensor) -> None:
        """Keep the normalised features (M, E) of images and their classes (M,)."""
        self.keys.copy_(keys)
        self.labels.copy_(labels)

    def answers(self, likeness: Tensor, beta: Tensor) -> Tensor:
        """f K^T (B, M) -> what the cache says of each class, (B, C)."""
        near = torch.exp(-beta * (1.0 - likeness))
        return near.new_zeros(len(near), self.classes).index_add(1, self.labels, near)

    def forward(self, logits: Tensor, feature: Tensor) -> Tensor:
        if not self.images:
            return logits
        likeness = F.normalize(feature.to(self.keys.dtype), dim=-1) @ self.keys.T
        return logits + self.alpha * self.answers(likeness, self.beta)


def cache_of(tuned: TunedModel) -> Cache:
    """The cache of the active adapter."""
    return next(edit.layer for edit in tuned.adapter().edits if isinstance(edit.layer, Cache))


def image_features(tuned: TunedModel, images: Tensor) -> Tensor:
    """The features (B, E) of images, not normalised."""
    inputs: Any = {"image": images} if len(tuned.description.towers) > 1 else images
    return tuned.features(inputs)


@torch.no_grad()
def _looked_at(tuned: TunedModel, batches: Iterable[tuple[Tensor, Tensor]]) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Images on the model's device, their targets, and what the model says of them in eval mode."""
    modes = {module: module.training for module in tuned.modules()}
    device = next(tuned.backbone.parameters()).device
    tuned.eval()
    try:
        for images, targets in batches:
            images = images.to(device)
            yield images, targets, tuned(images)
    finally:
        for module, mode in modes.items():
            module.training = mode
