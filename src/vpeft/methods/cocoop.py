"""CoCoOp: learnt words that a small net moves by what is in the image."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from ..backbones.backbone import Backbone
from ..backbones.edits import Edit
from ..backbones.points import MissingPlace
from ..backbones.texts import TextSpec
from ..layers.context_words import ContextWords, Room
from ..method import Method, register
from .coop import start_vectors, text_inputs


@register("cocoop", category="addition", family="prompt", paper="2203.05557", year=2022, venue="CVPR")
class CoCoOp(Method):
    """CoOp's word vectors plus one bias from the image's own feature: V_m + W2 ReLU(W1 f + b1) + b2 for each m.

    f (E,) is the normalised feature of the image tower, W1 (E / reduction, E), W2 (D, E / reduction). The text tower
    runs over all names for each image, B C texts a step: keep batches small. Put it on all towers together ("*"), with
    the names as their own texts (templates=("{}.",)). V starts at the embeddings of `words`, the net as nn.Linear, so
    that step 0 is not quite CLIP with these words.
    """

    variants = ({"tokens": 2, "words": ""},)

    tokens: int = Field(default=4, gt=0)
    """n"""
    words: str = "a photo of a"
    """where V starts; it must have n tokens. Empty for N(0, 0.02)"""
    reduction: int = Field(default=16, gt=0)
    """E over the hidden width of the net"""

    @property
    def starts_as_identity(self) -> bool:
        return False

    def edits(self, backbone: Backbone) -> Iterator[Edit]:
        text_inputs(backbone, type(self).__name__)
        raise MissingPlace(
            "CoCoOp reads the image's feature in the text tower, so it needs both:"
            " tune(clip, {'*': CoCoOp()}, task=...)."
        )

    def edits_across(self, towers: Mapping[str, Backbone]) -> Iterator[Edit]:
        image, text = image_and_text(towers, type(self).__name__)
        spec = text_inputs(text, type(self).__name__)
        vectors = start_vectors(text, spec, self.tokens, self.words)
        net = MetaNet(image.outlet.width, max(1, image.outlet.width // self.reduction), text.words.width)
        yield text.tokens.after(Room(self.tokens, 0, spec))
        yield text.words.after(ConditionalWords(vectors, spec, net), reads=(text.tokens, image.outlet))


class MetaNet(nn.Module):
    """f (B, E) -> W2 ReLU(W1 f / |f| + b1) + b2, (B, D)."""

    def __init__(self, width_in: int, hidden: int, width: int) -> None:
        super().__init__()
        self.down, self.up = nn.Linear(width_in, hidden), nn.Linear(hidden, width)

    def forward(self, feature: Tensor) -> Tensor:
        bias: Tensor = self.up(F.relu(self.down(F.normalize(feature, dim=-1))))
        return bias


class ConditionalWords(ContextWords):
    """words (B C, L, D), ids (B C, L), features (B, E) -> words with V + net(feature) in their room, image by image."""

    def __init__(self, vectors: Tensor, spec: TextSpec, net: MetaNet) -> None:
        super().__init__(vectors, len(vectors), spec)
        self.net = net

    def forward(self, words: Tensor, ids: Tensor, feature: Tensor) -> Tensor:  # type: ignore[override]
        bias = self.net(feature).repeat_interleave(len(words) // len(feature), dim=0)
        return self.placed(words, ids, self.vectors + bias[:, None])


def image_and_text(towers: Mapping[str, Backbone], method: str) -> tuple[Backbone, Backbone]:
    """The tower for images and the one for texts.

    Raises:
        MissingPlace: the host has other towers.
    """
    if towers.keys() != {"image", "text"}:
        raise MissingPlace(
            f"{method} couples a tower for images with one for texts, and this model has the towers"
            f" {', '.join(towers)}."
        )
    return towers["image"], towers["text"]
