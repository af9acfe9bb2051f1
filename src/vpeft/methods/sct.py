"""SCT: a small linear map on the channels that the data excite most."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Literal

import torch
from pydantic import Field
from torch import Tensor

from ..backbones.backbone import Backbone
from ..backbones.edits import Edit
from ..backbones.places import Place, ResidualStream
from ..layers.class_labels import class_labels
from ..layers.salient import Salience, SalientMap
from ..method import Method, register

if TYPE_CHECKING:
    from ..injection.tuned_model import TunedModel


@register("sct", category="addition", family="adapter", paper="2309.08513", year=2023, venue="IJCV")
class SCT(Method):
    """The K most salient channels of each block pass a K x K map and are added back in place.

    x[i] + s (W x[i] + b), i the K channels, W (K, K), at `site`:
    attn: on the residual stream between attention and MLP (so the shortcut changes too);
    mlp: on the MLP's output, before drop path; this folds into the MLP's second layer;
    qkv: on queries and values, each with channels of its own; this folds into their projections.

    `prepare` picks the channels: over the training images, without class token, the L2 norm of each channel for each
    class, averaged over the classes; the K largest, kept in ascending order. The frozen model is looked at: its stream
    (attn), the blocks' outputs (mlp), or queries and values. Before `prepare` they are the first K.

    W starts at N(0, 0.02), so step 0 is not the frozen model. The released ViT file forgets s (its scaled lines are
    comments); s = 1 gives that one. Where the code compares with the (K + 1)-th score, ties here still give K channels.
    """

    variants = ({"site": "mlp"},)

    channels: int = Field(default=96, gt=0)
    """K; all of them where the backbone is narrower"""
    site: Literal["attn", "mlp", "qkv"] = "attn"
    """where the map acts"""
    scale: float = 1.0
    """s; the paper has one for each task, 0.1 to 1"""
    scale_input: bool = False
    """s x[i] + (W x[i] + b) instead, as the paper does on five tasks (on the stream)"""
    last: int | None = Field(default=None, gt=0)
    """only so many blocks, counted from the end; the Swin-B file has 11"""

    @property
    def starts_as_identity(self) -> bool:
        return False

    def edits(self, backbone: Backbone) -> Iterator[Edit]:
        for block in backbone.blocks[-self.last if self.last else 0 :]:
            if self.site == "attn":
                backbone.require("stream1")
                found: tuple[Place, ...] = (block.stream1,)
            elif self.site == "mlp":
                found = (block.mlp.fc2,)
            else:
                backbone.require("attn.q", "attn.v")
                found = (block.attn.q, block.attn.v)
            for place in found:
                yield place.after(SalientMap(place.width, self.channels, self.scale, self.scale_input))

    @torch.no_grad()
    def prepare(self, tuned: TunedModel, batches: Iterable[tuple[Tensor, Tensor]]) -> None:
        adapter, backbone = tuned.adapter(), tuned.description
        scores = [
            Salience(self._watched(backbone, edit.place), edit.layer)
            for edit in adapter.edits
            if isinstance(edit.layer, SalientMap)
        ]
        modes = {module: module.training for module in tuned.modules()}
        tuned.eval()
        handles = [score.watch() for score in scores]
        try:
            with tuned.disable():
                for images, labels in batches:
                    classes = class_labels(labels, len(images), "SCT").to(images.device)
                    for score in scores:
                        score.labels = classes
                    tuned.features(images)
        finally:
            for handle in handles:
                handle.remove()
            for module, mode in modes.items():
                module.training = mode
        for score in scores:
            score.choose()

    def _watched(self, backbone: Backbone, place: Place) -> Place:
        """Whose tensor is scored for the map at this place."""
        block = backbone.blocks[place.depth]
        if isinstance(place, ResidualStream):
            return (block.norm2 if block.has("norm2") else block.mlp_branch).input  # what reads the stream next
        return block if self.site == "mlp" else place
