"""A tower of which a host reads what an earlier block gives, such as a language model the block before the last."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn

from .backbone import Backbone, Blocks
from .hf_model import HfPooling, with_hidden_states


@dataclass
class MeanOfLayer:
    """The mean over the tokens behind all prefix tokens, as a layer of transformers leaves them.

    Attributes:
        layer: of `hidden_states`: 0 for the embedding, 1 for the first block.
        prefix: tokens that are not averaged.
    """

    layer: int
    prefix: int

    def __call__(self, model: Any, outputs: Any) -> Tensor:
        mean: Tensor = outputs.hidden_states[self.layer][:, self.prefix :].mean(dim=1)
        return mean


def shorten(backbone: Backbone, count: int) -> Backbone:
    """Let a description end behind its first `count` blocks, as what comes later changes nothing; return it.

    The later blocks, the norm behind them and what pools them are no places any longer, and their parameters are
    `unused`. The pooled feature is the mean over the tokens that the last kept block gives.

    Args:
        backbone: of a model of transformers with one stage, pooled by `HfPooling`.
        count: of the blocks that stay, at least one.
    """
    kept, later = list(backbone.blocks[:count]), list(backbone.blocks[count:])
    gone = {id(place) for block in later for place in block.walk()}
    gone |= {
        id(place) for place in backbone.places() if place.depth >= count and place.name not in ("outlet", "logits")
    }
    last, parts = kept[-1], {id(place): place for block in kept for place in block.walk()}
    (stage,) = backbone.stages
    ending = [stage, backbone.trunk]
    for span in ending:
        span.exit, span.pooled = last.exit, None
    last.pooled = None
    stage.blocks = kept
    stage.parts = {name: place for name, place in stage.parts.items() if id(place) in parts or id(place) not in gone}
    gone -= {id(span) for span in ending}
    dropped: list[nn.Parameter] = []
    for place in backbone._index.values():
        if id(place) in gone:
            dropped += [p for module, key in place.own.values() if (p := module._parameters[key]) is not None]
    backbone.unused = (*backbone.unused, *dropped)
    backbone._index = {name: place for name, place in backbone._index.items() if id(place) not in gone}
    whole = backbone.whole
    whole.parts = {name: place for name, place in whole.parts.items() if id(place) not in gone}
    if backbone._norm is not None and id(backbone._norm) in gone:
        backbone._norm = None
    backbone._end = None
    backbone.blocks = Blocks(backbone.facts.architecture, kept)
    backbone.outlet.depth = backbone.logits.depth = count
    pooling: Callable[[nn.Module, Tensor], Tensor] = backbone._pooled
    assert isinstance(pooling, HfPooling)
    read = MeanOfLayer(count, backbone.facts.prefix_tokens)
    backbone._pooled = replace(pooling, prepare=with_hidden_states, read=read)
    backbone.facts = replace(backbone.facts, depth=count, pooling="avg", width=last.width)
    backbone.outlet.width = backbone.outlet.width_in = last.width
    return backbone
