"""Where the feature is the first token of the last block, that block computes its other tokens as keys and values only.

Their queries, the projection behind the attention, the second norm and the MLP lead nowhere. Exact up to the rounding
of smaller matrix products.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from vpeft.acceleration.acceleration import Acceleration, NotApplicable
from vpeft.acceleration.patches import Patches
from vpeft.injection.tuned_model import TunedModel


class FirstQuery:
    """q, k, v -> the first query alone, k, v; runs like any edit of an attention, while `block` is in training mode."""

    def __init__(self, adapter: str, block: nn.Module) -> None:
        self.adapter, self.block = adapter, block

    @property
    def asking(self) -> int | None:
        """How many tokens' queries are wanted; where nothing else acts here, no others are computed."""
        return 1 if self.block.training else None

    def edits(self, step: str) -> bool:
        """The attention map is left alone."""
        return False

    def act(self, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        if not self.block.training:
            return q, k, v
        # A copy, because a view would keep the projection's whole output for the backward pass.
        return q[:, :, :1].clone(), k, v


class ClassTokenOnly(Acceleration):
    """The last block works for its first token alone."""

    name = "class_token_only"

    def install(self, tuned: TunedModel, changes: Patches) -> str:
        assert tuned.active is not None
        return self.install_for(tuned, changes, [tuned.active])

    def install_for(self, tuned: TunedModel, changes: Patches, adapters: Sequence[str]) -> str:
        """`install`, for several adapters that are on at once, each for its own images."""
        facts = tuned.description.facts
        if facts.pooling != "token":
            raise NotApplicable(f"the feature is pooled by {facts.pooling!r} and not read from the class token")
        block = tuned.description.blocks[-1]
        if not block.leading or not block.has("attn.core") or block.has("attn.gate"):
            raise NotApplicable(f"{block.name} has no form that computes its first token alone")
        for module, kind in block.leading:
            if not issubclass(kind, type(module)):
                raise NotApplicable(f"{block.name} is already expressed in another way")
            changes.become(module, kind)
        for module, kind in block.attn.core.rewrites["extend"]:
            if not issubclass(kind, type(module)):
                raise NotApplicable(f"the attention of {block.name} is already expressed in another way")
            assert block.exit is not None
            for adapter in adapters:
                changes.extend_core(module, kind, FirstQuery(adapter, block.exit.module))
        return f"{block.name} works for one token"
