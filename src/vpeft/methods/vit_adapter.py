"""ViT-Adapter: a convolutional branch exchanges what it sees with a plain ViT and gives levels of four resolutions."""

from __future__ import annotations

from collections.abc import Iterator

from pydantic import Field

from ..backbones.backbone import Backbone
from ..backbones.blocks import Block
from ..backbones.edits import Edit
from ..backbones.places import Place
from ..backbones.points import MissingPlace
from ..layers.spatial_prior import Extractor, Extractors, Injector, LevelsOut, SpatialPrior
from ..method import BadField, Method, register


@register("vit_adapter", category="addition", family="side", paper="2205.08534", year=2023, venue="ICLR")
class ViTAdapter(Method):
    """A spatial prior c (maps at strides 4 to 32) and groups of blocks take turns, by deformable attention A.

    Before each group: x <- x + gamma A(LN(x); LN(c)), gamma (D) from 0. After it: c <- c + A(LN(c); LN(x)), c <- c +
    ConvFFN(LN(c)), on the last group more than once. At the end the four maps, each with the patch tokens of one group
    added and a BatchNorm behind it, are the levels that dense heads read in place of the ViT's one map.

    Departures: the paper trains the whole ViT; here it is frozen (put full_finetuning beside this method for the
    paper's). Class token and registers stay in the sequence, untouched, where the published code leaves them out, so
    that the ViT computes what it always did while gamma is 0. A head that reads one vector for each image gets the mean
    over the levels; one that reads the last tokens gets the mean of the levels at their resolution.
    """

    groups: int = Field(default=4, gt=0)
    """groups of equally many blocks; as many as there are blocks at most"""
    inner: int = Field(default=64, gt=0)
    """channels of the branch's stem (`conv_inplane`)"""
    heads: int | None = Field(default=None, gt=0)
    """of the deformable attention; None for one for each 64 channels, but at least 6 (as many as divide the values)"""
    points: int = Field(default=4, gt=0)
    """that each head looks at on each level (`n_points`)"""
    value_ratio: float | None = Field(default=None, gt=0.0, le=1.0)
    """channels of the values for each of D (`deform_ratio`); None for 0.5 from D = 768 on, else 1"""
    ffn_ratio: float = Field(default=0.25, gt=0.0)
    """hidden channels of ConvFFN for each of D (`cffn_ratio`)"""
    extra: int = Field(default=2, ge=0)
    """further extractors behind the last group (`use_extra_extractor`)"""
    add_tokens: bool = True
    """add the ViT's patch tokens to the levels (`add_vit_feature`)"""
    drop_path: float = Field(default=0.0, ge=0.0, lt=1.0)
    """of ConvFFN"""
    gamma: float = 0.0
    """of the injectors at the start (`init_values`)"""

    @property
    def starts_as_identity(self) -> bool:
        return False

    def edits(self, backbone: Backbone) -> Iterator[Edit]:
        backbone.require_images("ViT-Adapter")
        groups = self._groups(backbone)
        width = groups[0][0].dim
        ratio = self.value_ratio or (0.5 if width >= 768 else 1.0)
        heads = self._heads(width, ratio)
        state = backbone.pixels.tap(SpatialPrior(backbone.pixels.width, width, self.inner))
        yield state
        for number, group in enumerate(groups):
            yield group[0].before(Injector(width, heads, self.points, ratio, self.gamma), reads=(state,))
            count = 1 + (self.extra if number == len(groups) - 1 else 0)
            steps = [Extractor(width, heads, self.points, ratio, self.ffn_ratio, self.drop_path) for _ in range(count)]
            state = group[-1].tap(Extractors(steps), reads=(state,))
            yield state
        read: tuple[Place | Edit, ...] = (*(group[-1] for group in groups), state)
        yield backbone.outlet.after(LevelsOut(width, len(groups), self.add_tokens), reads=read)

    def _groups(self, backbone: Backbone) -> list[list[Block]]:
        """The blocks in groups of equal size, an odd rest spread over the last ones."""
        blocks = list(backbone.blocks)
        if len(backbone.stages) != 1 or len({block.dim for block in blocks}) != 1 or blocks[0].grid is None:
            raise MissingPlace(
                "ViT-Adapter makes levels of several resolutions for a plain ViT, whose blocks all have one, with"
                f" tokens on a grid; {backbone.facts.architecture} is built otherwise. Where a backbone has stages,"
                " heads read them without it."
            )
        count = min(self.groups, len(blocks))
        return [blocks[number * len(blocks) // count : (number + 1) * len(blocks) // count] for number in range(count)]

    def _heads(self, width: int, ratio: float) -> int:
        inner = int(width * ratio)
        if self.heads is not None:
            if inner % self.heads:
                raise BadField(f"ViTAdapter.heads = {self.heads} does not divide {inner} channels of values.")
            return self.heads
        most = min(max(6, width // 64), inner)
        return next(count for count in range(most, 0, -1) if inner % count == 0)
