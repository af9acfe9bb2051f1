"""A head for retrieval: a vector of length one for each image, whose angles to others tell how alike they are."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

from torch import Tensor, nn
from torch.nn import functional

from ..backbones.features import Features
from ..head import BadHead, Head, pooled

if TYPE_CHECKING:
    from ..batch import Batch

LOSS = "loss"


class EmbeddingHead(Head):
    """e = g / |g|, g = W norm(f) + b (B, E), for the pooled feature f (B, D).

    A loss that learns tensors of its own (proxies of the classes) keeps them here while it trains: `learn_too`. In
    training the head then gives {"embeddings": e, NAME: tensor, ...}, else e alone. Checkpoints hold these tensors,
    adapter files do not.

    Args:
        width: D.
        outputs: E.
        norm: whether a LayerNorm comes before the linear map, as in VPTSP-G and in hyp_metric.
        start: how W starts: xavier (uniform), or orthogonal as in hyp_metric. b starts at 0.
    """

    kind = "embedding"
    training_only = (LOSS,)

    def __init__(
        self, width: int, outputs: int, norm: bool = True, start: Literal["xavier", "orthogonal"] = "xavier"
    ) -> None:
        super().__init__()
        starts = {"xavier": nn.init.xavier_uniform_, "orthogonal": nn.init.orthogonal_}
        if start not in starts:
            raise BadHead(f"The head 'embedding' starts xavier or orthogonal, not {start!r}.")
        self.norm = nn.LayerNorm(width) if norm else nn.Identity()
        self.linear = nn.Linear(width, outputs)
        starts[start](self.linear.weight)
        nn.init.zeros_(self.linear.bias)
        self.rate_factors: dict[str, float] = {}
        self.dormant: dict[str, str] = {}

    def learn_too(self, tensors: Mapping[str, Tensor], rate: float) -> None:
        """Train these tensors of a loss too, at `rate` times the learning rate of the head."""
        self.add_module(LOSS, nn.ParameterDict({name: nn.Parameter(value) for name, value in tensors.items()}))
        names = [f"{LOSS}.{name}" for name in tensors]
        self.rate_factors = dict.fromkeys(names, rate)
        self.dormant = dict.fromkeys(names, "the loss learns them, and embeddings do not depend on them")

    def forward(self, features: Features | Tensor, batch: Batch | None = None) -> Any:
        """(B, D) -> (B, E), or a mapping; see the class."""
        embeddings = functional.normalize(self.linear(self.norm(pooled(features))), dim=-1)
        learnt = self._modules.get(LOSS)
        if not self.training or learnt is None:
            return embeddings
        return {"embeddings": embeddings, **dict(learnt.named_parameters())}
