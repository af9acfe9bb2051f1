"""GPS: gradient-based parameter selection."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from ..backbones.backbone import Backbone
from ..backbones.edits import Edit
from ..backbones.places import Projection
from ..backbones.points import MissingPlace
from ..errors import VpeftError
from ..layers.class_labels import class_labels
from ..layers.contrast import supervised_contrastive, two_views
from ..layers.sparse_delta import SparseDelta
from ..method import Method, register

if TYPE_CHECKING:
    from ..injection.tuned_model import TunedModel


@register("gps", category="partial", family="specification", paper="2312.10136", year=2024, venue="CVPR")
class GPS(Method):
    """For each output neuron of each weight only the k incoming weights with the largest gradient train.

    `prepare` sums dL/dW (out, in) over one pass through the training images at the pre-trained weights, with L the
    supervised contrastive loss of two views of each image on the pooled feature, and takes the k largest |dL/dW| of a
    row; a convolution has one row for each filter. Then W + delta trains, delta a sparse change at those places, with
    all biases of the same layers and the LayerScale. Norms, class token and positions stay frozen. It folds into W.

    Departures: the places are gathered into compact tensors, so weight decay and the optimiser's state cannot touch a
    frozen weight (with a dense mask, decay must be 0). The pass runs in fp32, in the mode the model is in. The share of
    the image that a crop keeps, 0.2 to 1, is that of the contrastive loss's own code. Batches (2, B, C, H, W) are taken
    as two views already.
    """

    variants = ({"loss": "cross_entropy"},)

    k: int = Field(default=1, gt=0)
    """weights of each row; the tables use 1 (VTAB-1k), 2 (camelyon, CUB), 15 (Cars) and 20 (NABirds)"""
    loss: Literal["contrastive", "cross_entropy"] = "contrastive"
    """of the pass; cross_entropy goes through the fresh head (the paper's ablation: worse)"""
    temperature: float = Field(default=0.07, gt=0.0)
    """t of the contrastive loss"""

    def edits(self, backbone: Backbone) -> Iterator[Edit]:
        if self.loss == "contrastive" and not backbone.inputs.takes_images:
            raise MissingPlace(
                f"GPS's contrastive pass compares two views of each image, and {backbone.facts.architecture} takes no"
                " images. With loss='cross_entropy' it needs labels only."
            )
        for place in backbone.places():
            if not isinstance(place, Projection):
                continue
            if place.rows is None:
                weight = place.weight
                taps = weight[0, 0].numel()
                yield place.reparametrize(SparseDelta(len(weight), weight[0].numel(), self.k, taps))
            if "bias" in place.own:
                yield place.unfreeze("bias")
        for block in backbone.blocks:
            scales = [name for name in block.own if name.rpartition(".")[2] == "gamma"]
            if scales:
                yield block.unfreeze(*scales)

    def prepare(self, tuned: TunedModel, batches: Iterable[tuple[Tensor, Tensor]]) -> None:
        chosen = [(e.place, e.layer) for e in tuned.adapter().edits if isinstance(e.layer, SparseDelta)]
        if all(bool(layer.chosen) for _, layer in chosen):
            return  # a loaded or resumed adapter keeps its places
        homes = [place.parameter("weight") for place, _ in chosen]
        # an edited module may answer `weight` with the weight in use: the stored one is wanted
        tensors = [dict(module.named_parameters(recurse=False))[name] for module, name in homes]
        flags = [tensor.requires_grad for tensor in tensors]
        total: list[Tensor] = []
        try:
            for tensor in tensors:
                tensor.requires_grad_(True)
            for images, labels in batches:
                slopes = torch.autograd.grad(self._loss(tuned, images.to(tensors[0].device), labels), tensors)
                total = [a + b for a, b in zip(total, slopes, strict=True)] if total else list(slopes)
        finally:
            for tensor, flag in zip(tensors, flags, strict=True):
                tensor.requires_grad_(flag)
        if not total:
            raise VpeftError("GPS selects weights by the gradients of real batches, but `prepare` was given none.")
        for (_, layer), slope in zip(chosen, total, strict=True):
            layer.choose(slope)

    def _loss(self, tuned: TunedModel, images: Tensor, labels: Tensor) -> Tensor:
        # several views of each image or clip come as (views, B, ...)
        in_views = images.dim() > len(tuned.description.inputs.shape) + 1
        labels = class_labels(labels, images.shape[1 if in_views else 0], "GPS").to(images.device)
        with torch.autocast(images.device.type, enabled=False):
            if self.loss == "cross_entropy":
                views = images if in_views else images[None]
                return F.cross_entropy(tuned(views.flatten(0, 1)), labels.repeat(len(views)))
            views = images if in_views else two_views(images)
            return supervised_contrastive(tuned.features(views.flatten(0, 1)), labels.repeat(2), self.temperature)

    def advance(self, tuned: TunedModel, progress: float) -> None:
        if progress == 0.0 and not all(bool(m.chosen) for m in tuned.adapter().modules() if isinstance(m, SparseDelta)):
            raise VpeftError("GPS has not selected its weights yet. Call tuned.prepare(batches) before training.")
