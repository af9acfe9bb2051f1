"""DnA: weights are split into a low-rank and a sparse part, and one of them is aligned with the task's images."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from ..backbones.backbone import Backbone
from ..backbones.edits import Edit
from ..backbones.points import MissingPlace
from ..layers.contrast import supervised_contrastive, two_views
from ..method import Method, register
from .lora import Target, chosen_places

if TYPE_CHECKING:
    from ..injection.tuned_model import TunedModel

FEW = 32
Trains = Literal["sparse", "low_rank", "U", "V", "U+sparse", "V+sparse", "all"]


@register("dna", category="partial", family="reparameter", paper="ECCV 2022", year=2022, venue="ECCV")
class DnA(Method):
    """W = U V + S + E; the part that trains is first aligned with the images without their labels, then by the task.

    A weight (out, in, k, k) is the matrix (out k, in k), as it lies in memory; U (out k, R), V (R, in k), R a share of
    in k; S the largest entries of W - U V, E the frozen rest, so step 0 is the frozen model. `prepare` takes SimCLR
    steps: two views of each image, their pooled features, NT-Xent. It folds into W.

    The authors' trainer is released in part. Departures: U, V and S come from alternating truncated SVDs and the choice
    of a fixed share of entries, where theirs grows the rank step by step and cuts S by a threshold; the views' features
    pass no projection head; afterwards the same part trains on the labels, where theirs folds it in and trains the
    whole model. Share, steps and rate of the alignment are ours. It is no method for small files.
    """

    variants = ({"align": 0},)

    ratio: float = Field(default=0.25, gt=0.0, le=1.0)
    """R over in k"""
    share: float = Field(default=0.05, gt=0.0, le=1.0)
    """entries of S, as a share of W's"""
    rounds: int = Field(default=3, gt=0, le=1000)
    """of the decomposition"""
    trains: Trains = "sparse"
    """which parts train; the low-rank part keeps the source where it is frozen"""
    align: int = Field(default=10, ge=0)
    """passes over the images before the labels are used"""
    align_lr: float = Field(default=0.01, gt=0.0)
    """rate of their SGD with momentum 0.9"""
    temperature: float = Field(default=0.2, gt=0.0)
    """of NT-Xent"""
    targets: tuple[Target, ...] | None = ("all",)
    """projections of each block, as LoRA has them"""

    def edits(self, backbone: Backbone) -> Iterator[Edit]:
        if self.align and not backbone.inputs.takes_images:
            raise MissingPlace(
                f"DnA aligns by two views of each image, and {backbone.facts.architecture} takes no images. align=0"
                " trains on the labels alone."
            )
        for place in chosen_places(backbone, self.targets, type(self).__name__):
            yield place.reparametrize(Decomposed(place.weight.detach(), self))

    @property
    def reads_data(self) -> bool:
        return self.align > 0

    def prepare(self, tuned: TunedModel, batches: Iterable[tuple[Tensor, Tensor]]) -> None:
        layers = [edit.layer for edit in tuned.adapter().edits if isinstance(edit.layer, Decomposed)]
        if not self.align or all(bool(layer.aligned) for layer in layers):
            return  # a loaded or resumed adapter is aligned already
        listed = [images.flatten(0, -4) for images, _ in batches if len(images) > 1]  # views and pairs one by one
        optimiser = torch.optim.SGD((p for layer in layers for p in layer.parameters()), self.align_lr, momentum=0.9)
        for images in listed * self.align:
            views = two_views(images.to(layers[0].aligned.device)).flatten(0, 1)
            with torch.enable_grad(), torch.autocast(views.device.type, enabled=False):
                pairs = torch.arange(len(images), device=views.device).repeat(2)
                loss = supervised_contrastive(tuned.features(views), pairs, self.temperature)
                optimiser.zero_grad()
                torch.autograd.backward(loss)
            optimiser.step()
        tuned.zero_grad()
        for layer in layers:
            layer.aligned.fill_(True)


class Decomposed(nn.Module):
    """W -> W + (U V - U_0 V_0) + (S - S_0), for those of the parts that train; the index 0 marks their start."""

    aligned: Tensor
    index: Tensor

    def __init__(self, weight: Tensor, method: DnA) -> None:
        super().__init__()
        rows = weight.shape[0] * (weight.shape[2] if weight.dim() > 2 else 1)
        matrix = weight.float().reshape(rows, -1)
        rank = max(1, min(*matrix.shape, int(method.ratio * matrix.shape[1])))
        count = max(1, int(method.share * matrix.numel()))
        sparse = torch.zeros_like(matrix)
        for _ in range(method.rounds):
            left, size, right = torch.linalg.svd(matrix - sparse, full_matrices=False)
            U, V = left[:, :rank], size[:rank, None] * right[:rank]
            rest = (matrix - U @ V).flatten()
            index = rest.abs().topk(count).indices
            sparse = torch.zeros_like(rest).scatter(0, index, rest[index]).reshape(matrix.shape)
        parts = method.trains.split("+")
        self.low_rank = parts[0] != "sparse"
        self.shape = matrix.shape
        if self.low_rank:
            for name, value in (("U", U), ("V", V)):
                self.register_buffer(f"{name}_start", value.clone())
                trained = name in parts or method.trains in ("low_rank", "all")
                if trained:
                    self.register_parameter(name, nn.Parameter(value.clone()))
        if "sparse" in parts or method.trains == "all":
            self.register_buffer("index", index.int())
            self.register_buffer("values_start", rest[index].clone())
            self.values = nn.Parameter(rest[index].clone())
            if count < FEW:
                self.dormant = {"values": f"all {count} entries may meet inputs that a ReLU has made zero"}
        self.register_buffer("aligned", torch.zeros((), dtype=torch.bool))

    def forward(self, weight: Tensor) -> Tensor:
        change = torch.zeros(self.shape, device=self.aligned.device)
        if self.low_rank:
            start = [self.get_buffer(f"{name}_start") for name in "UV"]
            now = [self._parameters.get(name) for name in "UV"]
            U, V = (a if b is None else b for a, b in zip(start, now, strict=True))
            change = U @ V - start[0] @ start[1]
        if "values" in self._parameters:
            moved = self.values - self.get_buffer("values_start")
            change = change.flatten().scatter_add(0, self.index.long(), moved).reshape(self.shape)
        return weight + change.reshape(weight.shape).to(weight.dtype)
