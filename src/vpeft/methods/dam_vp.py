"""DAM-VP: the images are clustered, and each cluster has a border of its own."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from pydantic import Field
from scipy.cluster.hierarchy import fcluster, linkage
from torch import Tensor, nn
from torch.nn import functional as F

from ..backbones.backbone import Backbone
from ..backbones.edits import Edit
from ..backbones.points import MissingPlace
from ..errors import VpeftError
from ..method import Method, register

if TYPE_CHECKING:
    from ..injection.tuned_model import TunedModel


@register("dam_vp", category="addition", family="prompt", paper="2303.08138", year=2023, venue="CVPR")
class DAMVP(Method):
    """x + M(p_c), c the cluster whose mean is nearest to the frozen model's feature of the plain image.

    p_1 .. p_M are borders of w pixels as in `visual_prompting_pixel`, on the normalised image, all equal at the start,
    N(0, 1). `prepare` takes the frozen features of up to `samples` training images, clusters them (agglomerative,
    average linkage, Euclidean) and keeps the means. With `threshold` clusters farther apart than that stay apart, so
    that the data decide M, as with the authors, who have one for each backbone; else there are `clusters`. One more
    pass of the frozen model chooses c for each image.

    Not part of this: the start from a border that Reptile has learnt on other data sets (copy one into the tensors),
    and the head-free mode, whose class scores are the most active channels of the feature. Before `prepare` every
    image has the first border.
    """

    variants: ClassVar[tuple[dict[str, Any], ...]] = ({"width": 4},)

    width: int = Field(default=30, gt=0)
    """w, pixels"""
    clusters: int = Field(default=8, gt=0, le=1000)
    """M; with `threshold`, or fewer images, `prepare` changes it. Our choice, as the paper's depends on the data"""
    threshold: float | None = Field(default=None, gt=0.0)
    """least average distance between two clusters; the authors': 21 ResNet-50, 31 ViT-B, 10 ViT-B-22k, 20 Swin-B-22k"""
    samples: int = Field(default=1000, gt=1)
    """images that are clustered"""

    @property
    def starts_as_identity(self) -> bool:
        return False

    def edits(self, backbone: Backbone) -> Iterator[Edit]:
        if not backbone.pixels.offers("before"):
            raise MissingPlace(f"{backbone.facts.architecture} takes no pixels that a prompt could be added to.")
        height, width = backbone.facts.image_size
        if 2 * self.width >= min(height, width):
            raise MissingPlace(
                f"An image of {height}x{width} pixels has no room for a border of {self.width}. Choose a width below"
                f" {min(height, width) // 2}."
            )
        layer = Borders(self.clusters, backbone.facts.width, backbone.pixels.width, height, width, self.width)
        yield backbone.pixels.before(layer, reads=(backbone.query,))

    @torch.no_grad()
    def prepare(self, tuned: TunedModel, batches: Iterable[tuple[Tensor, Tensor]]) -> None:
        modes = {module: module.training for module in tuned.modules()}
        tuned.eval()
        found: list[Tensor] = []
        with tuned.disable():
            for images, *_ in batches:
                found.append(tuned.features(images).float())
                if sum(map(len, found)) >= self.samples:
                    break
        for module, mode in modes.items():
            module.training = mode
        features = torch.cat(found)[: self.samples] if found else torch.empty(0)
        if len(features) < 2:
            raise VpeftError("DAM-VP clusters the training images, but `prepare` was given fewer than two.")
        tree = linkage(features.double().cpu().numpy(), "average")
        by_count = self.threshold is None
        labels = fcluster(tree, self.clusters if by_count else self.threshold, "maxclust" if by_count else "distance")
        chosen = torch.as_tensor(labels, device=features.device)
        means = [features[chosen == label].mean(0) for label in sorted(set(labels.tolist()))]
        if len(means) != self.clusters:
            tuned.replace_method(self, self.model_copy(update={"clusters": len(means)}))
        (layer,) = [edit.layer for edit in tuned.adapter().edits if isinstance(edit.layer, Borders)]
        layer.means.copy_(torch.stack(means))


class Borders(nn.Module):
    """x (B, C, H, W) and the frozen feature (B, D) -> x plus the border of the nearest cluster."""

    channels_first = True
    up: nn.Parameter
    down: nn.Parameter
    left: nn.Parameter
    right: nn.Parameter
    means: Tensor

    def __init__(self, clusters: int, features: int, channels: int, height: int, width: int, border: int) -> None:
        super().__init__()
        rows, columns = (channels, border, width), (channels, height - 2 * border, border)
        starts = {"up": rows, "down": rows, "left": columns, "right": columns}
        for name, shape in starts.items():
            self.register_parameter(name, nn.Parameter(torch.randn(shape).expand(clusters, *shape).clone()))
        self.register_buffer("means", torch.zeros(clusters, features))

    def forward(self, x: Tensor, query: Tensor) -> Tensor:
        nearest = (query[:, None].float() - self.means).square().sum(-1).argmin(dim=1)
        nearest = nearest.repeat_interleave(len(x) // len(nearest))  # the frames of a clip stand together
        (height, width), border = x.shape[-2:], self.up.shape[2]
        if 2 * border >= min(height, width):
            raise MissingPlace(
                f"An image of {height}x{width} pixels has no room for a border of {border} on each side."
            )
        up, down = (_stretched(part, (border, width))[nearest] for part in (self.up, self.down))
        left, right = (_stretched(part, (height - 2 * border, border))[nearest] for part in (self.left, self.right))
        inner = left.new_zeros(*left.shape[:3], width - 2 * border)
        frame = torch.cat([up, torch.cat([left, inner, right], dim=3), down], dim=2)
        return x + frame


def _stretched(parts: Tensor, size: tuple[int, int]) -> Tensor:
    """(M, C, h, w) -> (M, C, *size), interpolated."""
    return parts if parts.shape[-2:] == size else F.interpolate(parts, size=size, mode="bilinear")
