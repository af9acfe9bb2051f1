"""If the pooled feature is the class token, the last block computes its other tokens as keys and values only.

Nothing reads their queries, their attention projection, their second norm and their MLP. Exact up to the rounding of
smaller matrix products.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from vpeft.acceleration.acceleration import Acceleration, NotApplicable
from vpeft.acceleration.patches import Patches
from vpeft.backbones.edits import Edit
from vpeft.backbones.points import MissingPlace
from vpeft.injection.heads import reads_of
from vpeft.injection.tuned_model import TunedModel


class FirstQuery:
    """An edit of the attention that keeps the first query only, while `block` is in training mode."""

    def __init__(self, adapter: str, block: nn.Module) -> None:
        self.adapter, self.block = adapter, block

    @property
    def asking(self) -> int | None:
        """The number of queries that are needed; None for all."""
        return 1 if self.block.training else None

    def edits(self, step: str) -> bool:
        """Whether it changes the attention map: no."""
        return False

    def act(self, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        if not self.block.training:
            return q, k, v
        # A copy, because a view would keep the projection's whole output for the backward pass.
        return q[:, :, :1].clone(), k, v


class ClassTokenOnly(Acceleration):
    """Compute the outputs of the last block for its first token only."""

    name = "class_token_only"

    def install(self, tuned: TunedModel, patches: Patches) -> str:
        assert tuned.active is not None
        return self.install_for(tuned, patches, [tuned.active])

    def install_for(self, tuned: TunedModel, patches: Patches, adapters: Sequence[str]) -> str:
        """Install it for several adapters that are enabled at once, each for its own images."""
        facts = tuned.description.facts
        if facts.pooling != "token":
            raise NotApplicable(f"the feature is pooled by {facts.pooling!r}, not read from the class token")
        block = tuned.description.blocks[-1]
        for name in {name for adapter in adapters for name in reads_of(tuned.adapter(adapter).head)} - {"outlet"}:
            try:
                last = tuned.description.place(name).depth >= block.depth
            except MissingPlace:  # a level that an edit at the outlet makes, of all tokens
                last = True
            if last:
                raise NotApplicable(f"the head reads {name}, and all of its tokens")
        for adapter in adapters:
            # Where what is read changes the output, the trial finds it; a loss of the method's own is not tried.
            for edit in tuned.adapter(adapter).edits:
                inserted = any(isinstance(source, Edit) for source in edit.reads)
                if inserted and edit.place.depth >= block.depth:
                    raise NotApplicable(f"an edit at {edit.place.name} reads tokens that were inserted")
        if not block.leading or not block.has("attn.core") or block.has("attn.gate"):
            raise NotApplicable(f"{block.name} cannot compute its first token only")
        for module, kind in block.leading:
            if not issubclass(kind, type(module)):
                raise NotApplicable(f"{block.name} is already rewritten in another way")
            patches.become(module, kind)
        for module, kind in block.attn.core.rewrites["extend"]:
            if not issubclass(kind, type(module)):
                raise NotApplicable(f"the attention of {block.name} is already rewritten in another way")
            assert block.exit is not None
            for adapter in adapters:
                patches.extend_core(module, kind, FirstQuery(adapter, block.exit.module))
        return f"{block.name} works for one token"
