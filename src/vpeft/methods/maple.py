"""MaPLe: deep prompts in both towers, those of the images computed from those of the texts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from pydantic import Field
from torch import Tensor, nn

from ..backbones.backbone import Backbone
from ..backbones.edits import Edit
from ..backbones.places import Place
from ..backbones.points import MissingPlace
from ..layers.context_words import ReplaceWords, replaced
from ..method import BadField, Method, register
from .cocoop import image_and_text
from .coop import text_inputs


@register("maple", category="addition", family="prompt", paper="2210.03117", year=2023, venue="CVPR")
class MaPLe(Method):
    """n prompts for each of the first J blocks of the text tower; a linear map makes the image tower's of them.

    Text: the first n words of the input are P_0 (n, D_t), and those that enter block j are P_j, 1 <= j < J. Images:
    F_j(P_j) (n, D_v), F_j linear with a bias, join the patches before the first block (through the norm in front of
    it, where there is one) and take the place of the earlier ones before block j. They pass through the blocks from J.

    P_0 starts at the embeddings of the first n tokens of `words`, which are those of the template, the other P_j at
    N(0, 0.02), F_j as nn.Linear: step 0 is not the frozen model. Put it on all towers together ("*").
    """

    variants = ({"depth": 2, "words": ""},)

    tokens: int = Field(default=2, gt=0)
    """n"""
    depth: int = Field(default=9, gt=0)
    """J; 3 where other data sets are tested"""
    words: str = "a photo of a"
    """whose first n tokens P_0 starts at: those that the template begins with. Empty for N(0, 0.02)"""

    @property
    def starts_as_identity(self) -> bool:
        return False

    def edits(self, backbone: Backbone) -> Iterator[Edit]:
        text_inputs(backbone, type(self).__name__)
        raise MissingPlace(
            "MaPLe makes the prompts of the image tower of those of the text tower, so it needs both:"
            " tune(clip, {'*': MaPLe()}, task=...)."
        )

    def edits_across(self, towers: Mapping[str, Backbone]) -> Iterator[Edit]:
        image, text = image_and_text(towers, type(self).__name__)
        start = text_inputs(text, type(self).__name__).start
        shallow = min(len(image.blocks), len(text.blocks))
        if self.depth > shallow:
            raise BadField(f"MaPLe.depth = {self.depth}, and the towers have {shallow} blocks in common.")
        norm = next((place for place in image.norms if place.name.rpartition(".")[2] == "norm_pre"), None)
        for depth in range(self.depth):
            words, block = ReplaceWords(self._vectors(text, depth), start), image.blocks[depth]
            if depth:
                yield text.blocks[depth].before(words)
                yield block.before(LaterTokens(words.vectors, block.dim, block.prefix))
            else:
                yield text.words.after(words)
                yield image.trunk.insert_tokens(CoupledTokens(words.vectors, block.dim, norm))

    def _vectors(self, text: Backbone, depth: int) -> Tensor:
        if depth or not self.words:
            return 0.02 * torch.randn(self.tokens, text.words.width)
        spec = text_inputs(text, type(self).__name__)
        vectors = spec.embedded(self.words)
        if len(vectors) < self.tokens:
            raise BadField(
                f"The words {self.words!r} are {len(vectors)} tokens, and {self.tokens} prompts start at them."
            )
        return vectors[: self.tokens].clone()


class CoupledTokens(nn.Module):
    """h (B, ...) -> F(P) (B, n, D), through the norm in front of the blocks.

    Args:
        vectors: P (n, D_t), of a layer in the text tower.
        width: D.
        norm: that norm, frozen; None where the tower has none.
    """

    def __init__(self, vectors: nn.Parameter, width: int, norm: Place | None = None) -> None:
        super().__init__()
        self.vectors, self.norm = vectors, norm
        self.map = nn.Linear(vectors.shape[1], width)

    def forward(self, hidden: Tensor) -> Tensor:
        tokens: Tensor = self.map(self.vectors).expand(len(hidden), -1, -1)
        return tokens if self.norm is None else self.norm.run(tokens)


class LaterTokens(CoupledTokens):
    """h (B, prefix + n + N, D) -> h with F(P) in place of the prompts that came from the block before."""

    def __init__(self, vectors: nn.Parameter, width: int, prefix: int) -> None:
        super().__init__(vectors, width)
        self.prefix = prefix

    def forward(self, hidden: Tensor) -> Tensor:
        return replaced(hidden, super().forward(hidden), self.prefix)
