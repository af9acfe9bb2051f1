"""The attentive probe: learnt queries look at all tokens through one cross-attention block."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..backbones.features import Features
from ..backbones.last_place import last_tokens
from ..head import BadHead, Head
from .linear import HEAD_STD

if TYPE_CHECKING:
    from ..backbones.backbone import Backbone
    from ..batch import Batch

# Channels of one attention head where the number of heads is not stated, as in the vision transformers themselves.
HEAD_WIDTH = 64


class AttentiveHead(Head):
    """q' = q + attention(q, LN(x)); q'' = q' + MLP(LN(q')); y = W mean(q'') + b.

    q are learnt queries, x the tokens behind the final norm and, as one token more, the pooled feature. It costs one
    block and is the strongest of the cheap baselines on a frozen backbone. Where a backbone has maps, their cells are
    the tokens; where the pooled feature has another width than the tokens, a linear layer brings it to theirs.

    Source: the attentive probe of V-JEPA (Bardes et al., arXiv 2404.08471: one cross-attention block with one query,
    without a projection behind the attention, and a linear layer). AIM (El-Nouby et al., arXiv 2401.08541) has no MLP
    and averages several queries. Departure: the pooled feature among the tokens.

    Args:
        width: channels of the tokens.
        outputs: numbers for each sample.
        place: where the tokens are read.
        pooled_width: channels of the pooled feature; 0 leaves it out.
        heads: attention heads; 0 takes one for each 64 channels.
        queries: learnt queries, whose results are averaged.
        mlp_ratio: hidden channels of the MLP for each channel; 0 leaves the MLP out.
        dropout: share of the result's channels that training drops before the last layer.
    """

    kind = "attentive"
    options = ("place", "heads", "queries", "mlp_ratio", "dropout")

    def __init__(
        self,
        width: int,
        outputs: int,
        place: str = "norm",
        pooled_width: int = 0,
        heads: int = 0,
        queries: int = 1,
        mlp_ratio: float = 4.0,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.heads = heads or max(n for n in range(1, max(1, width // HEAD_WIDTH) + 1) if width % n == 0)
        if queries < 1 or mlp_ratio < 0 or self.heads < 1 or width % self.heads:
            raise BadHead(
                f"The head 'attentive' needs at least one query, an mlp_ratio of at least 0, and heads that divide"
                f" {width} channels, not queries={queries}, mlp_ratio={mlp_ratio}, heads={heads}."
            )
        self.place = place
        self.reads = (place, "outlet") if pooled_width else (place,)
        self.queries = nn.Parameter(torch.empty(queries, width))
        self.pooled_in = nn.Linear(pooled_width, width) if pooled_width not in (0, width) else nn.Identity()
        self.norm_tokens = nn.LayerNorm(width)
        self.q = nn.Linear(width, width)
        self.kv = nn.Linear(width, 2 * width)
        hidden = int(width * mlp_ratio)
        self.norm_queries = nn.LayerNorm(width) if hidden else nn.Identity()
        self.mlp = (
            nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width)) if hidden else nn.Identity()
        )
        self.with_mlp = hidden > 0
        self.dropout = nn.Dropout(dropout)
        self.out = nn.Linear(width, outputs)
        nn.init.trunc_normal_(self.queries, std=HEAD_STD)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=HEAD_STD)
                nn.init.zeros_(module.bias)

    @classmethod
    def on(cls, backbone: Backbone, width: int, outputs: int, /, **options: Any) -> Head:
        """The head on the last tokens or map of a backbone, or at the option `place`."""
        rest = dict(options)
        place = last_tokens(backbone, rest.pop("place", None))
        return cls.with_options(rest, width=place.width, outputs=outputs, place=place.name, pooled_width=width)

    def forward(self, features: Features, batch: Batch | None = None) -> Any:
        """Tokens (B, N, D) and the pooled feature (B, P) -> (B, outputs)."""
        tokens = features.tokens(self.place)
        if "outlet" in self.reads:
            tokens = torch.cat((self.pooled_in(features["outlet"])[:, None].to(tokens.dtype), tokens), dim=1)
        queries = self.queries.expand(tokens.shape[0], -1, -1)
        keys, values = self.kv(self.norm_tokens(tokens)).chunk(2, dim=-1)
        seen = functional.scaled_dot_product_attention(
            self._split(self.q(queries)), self._split(keys), self._split(values)
        )
        queries = queries + seen.transpose(1, 2).flatten(2)
        if self.with_mlp:
            queries = queries + self.mlp(self.norm_queries(queries))
        return self.out(self.dropout(queries.mean(dim=1)))

    def _split(self, tokens: Tensor) -> Tensor:
        """(B, N, D) -> (B, heads, N, D / heads)."""
        return tokens.reshape(*tokens.shape[:-1], self.heads, -1).transpose(1, 2)
