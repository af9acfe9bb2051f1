"""ILM-VP: a learned border, and classes that are read from the backbone's own ones by what it says of the images."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from ..backbones.backbone import Backbone
from ..backbones.edits import Edit
from ..backbones.points import MissingPlace
from ..errors import VpeftError
from ..layers.class_labels import class_labels
from ..method import Method, register
from .evp import FramedImage
from .visual_prompting_pixel import Border

if TYPE_CHECKING:
    from ..injection.tuned_model import TunedModel


@register("ilm_vp", category="addition", family="prompt", paper="2211.11635", year=2023, venue="CVPR")
class ILMVP(Method):
    """x' = normalise(pad(shrink(x)) + m sigmoid(delta)), m one on a border of w pixels; y_c = z[s_c].

    z are the scores of the backbone's own classifier, s the label mapping: before each epoch the frozen classifier
    looks at the training images with the present border; of the counts F[source, target] of its choices the largest
    is taken, with its row and column left out of what follows, until every target has a source of its own. delta
    starts at zero: a grey border. "additive" (the authors' for CLIP, w = 30): x + m delta on the normalised image.

    The mapping needs `classes`, and no head; with a head of its own (`num_classes`) leave `classes` out, and the border
    alone is left. The mapping is saved with the adapter. A loop of your own calls `tuned.begin_epoch(batches)`.
    Departures: delta exists on the border only; images arrive at the backbone's size, and are shrunk to fit inside
    (the authors pad small images). The text templates that the CLIP version maps to are not part of this.
    """

    variants: ClassVar[tuple[dict[str, Any], ...]] = ({"width": 4},)

    width: int = Field(default=48, gt=0)
    """w, pixels: images of 128 inside 224; 96 leaves 32, as the authors have it for CIFAR"""
    form: Literal["expansive", "additive"] = "expansive"
    """whether the image is shrunk to make room for the border"""
    classes: int | None = Field(default=None, gt=0)
    """target classes, which are mapped to the backbone's own; None for no mapping"""
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    """of the normalisation, for each channel; ImageNet's. CLIP has others"""
    std: tuple[float, ...] = (0.229, 0.224, 0.225)
    """of the normalisation, for each channel"""

    @property
    def starts_as_identity(self) -> bool:
        return self.form == "additive" and self.classes is None

    @property
    def follows_data(self) -> bool:
        return self.classes is not None

    def edits(self, backbone: Backbone) -> Iterator[Edit]:
        if not backbone.pixels.offers("before"):
            raise MissingPlace(f"{backbone.facts.architecture} takes no pixels that a prompt could be added to.")
        (height, width), channels = backbone.facts.image_size, backbone.pixels.width
        if 2 * self.width >= min(height, width):
            raise MissingPlace(
                f"An image of {height}x{width} pixels has no room inside a border of {self.width}. Choose a width below"
                f" {min(height, width) // 2}."
            )
        if not channels == len(self.mean) == len(self.std):
            raise MissingPlace(f"The images have {channels} channels; give `mean` and `std` for each.")
        border = Border(channels, height, width, self.width)
        for part in border.parameters():
            nn.init.zeros_(part)
        expanded = self.form == "expansive"
        yield backbone.pixels.before(ExpandedImage(border, self.mean, self.std, False) if expanded else border)
        if self.classes is not None:
            yield backbone.logits.after(LabelMapping(self.classes))

    @torch.no_grad()
    def begin_epoch(self, tuned: TunedModel, batches: Iterable[tuple[Tensor, Tensor]]) -> None:
        mapping = _mapping(tuned)
        if mapping is None:
            return
        if tuned.head is not None:
            raise VpeftError(
                "ILM-VP maps the backbone's own classes; with a head of its own it has none to map. Leave out"
                " `classes`, or the head."
            )
        modes = {module: module.training for module in tuned.modules()}
        tuned.eval()
        counts = torch.zeros(0)
        for images, targets in batches:
            labels = class_labels(targets, len(images), "ILM-VP").to(images.device)
            scores = tuned.description.classifier(tuned.features(images))
            if not len(counts):
                counts = torch.zeros(scores.shape[1], len(mapping.source), device=scores.device)
            counts.index_put_((scores.argmax(1), labels), torch.ones_like(labels, dtype=counts.dtype), accumulate=True)
        for module, mode in modes.items():
            module.training = mode
        mapping.follow(counts)

    def advance(self, tuned: TunedModel, progress: float) -> None:
        mapping = _mapping(tuned)
        if progress == 0.0 and mapping is not None and not bool(mapping.known):
            raise VpeftError("ILM-VP has no label mapping yet. Call tuned.begin_epoch(batches) before each epoch.")


def _mapping(tuned: TunedModel) -> LabelMapping | None:
    return next((edit.layer for edit in tuned.adapter().edits if isinstance(edit.layer, LabelMapping)), None)


class ExpandedImage(FramedImage):
    """x (B, C, H, W) -> x shrunk, with sigmoid(delta) as the pixel values around it."""

    def forward(self, x: Tensor) -> Tensor:
        w, (height, width) = self.border.up.shape[1], x.shape[-2:]
        delta: Tensor = self.border(torch.zeros_like(x[:1]))
        around = F.pad(delta.new_zeros(height - 2 * w, width - 2 * w), (w, w, w, w), value=1.0)
        return self.padded(x) + delta.sigmoid() * around / self.std.to(x.dtype)


class LabelMapping(nn.Module):
    """Scores (B, K) of source classes -> scores (B, C) of target classes, y_c = z[s_c]."""

    source: Tensor
    known: Tensor

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.register_buffer("source", torch.arange(classes))
        self.register_buffer("known", torch.zeros((), dtype=torch.bool))

    def forward(self, scores: Tensor) -> Tensor:
        return scores[:, self.source]

    def follow(self, counts: Tensor) -> None:
        """Map by the numbers F (K, C) of images of a target that a source class was chosen for.

        Raises:
            VpeftError: there are no images, or more targets than sources.
        """
        targets = len(self.source)
        if len(counts) < targets:
            raise VpeftError(
                f"ILM-VP maps {targets} classes to sources of their own, and the backbone's classifier has"
                f" {len(counts)} for the images that it was given."
            )
        left = counts.cpu().clone()
        for _ in range(targets):
            source, target = divmod(int(left.argmax()), targets)
            self.source[target] = source
            left[source], left[:, target] = -1.0, -1.0
        self.known.fill_(True)
