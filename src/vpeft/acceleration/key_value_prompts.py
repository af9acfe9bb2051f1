"""Compute tokens that are inserted before a block and removed after it as keys and values only.

The block's outputs for such tokens are dropped, so their queries, projection and MLP are not computed. The tokens are
the same for every image, so their keys and values are computed once for a batch. Exact up to the rounding of sums in
another order.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from vpeft.acceleration.acceleration import Acceleration, NotApplicable
from vpeft.acceleration.patches import Patches, hooked
from vpeft.backbones.blocks import Block
from vpeft.backbones.rows import Rows
from vpeft.injection.operations import Operation, Slot, TokensIn, TokensOut
from vpeft.injection.tuned_model import TunedModel


class TokensForKeys(Operation):
    """Replaces the insertion: in training it stores the tokens of one image for the attention instead."""

    def __init__(self, entering: TokensIn, slot: Slot, block: nn.Module) -> None:
        super().__init__(entering.adapter, entering.rank)
        self.entering, self.slot, self.block = entering, slot, block
        self.layer = entering.layer

    def act(self, hidden: Tensor) -> Tensor:
        if not self.block.training:
            return self.entering.act(hidden)
        self.slot.value = self.layer(hidden[:1])
        return hidden


class SkipRemoval(Operation):
    """Replaces the removal: in training there are no tokens to remove."""

    leaving = True

    def __init__(self, plain: TokensOut, block: nn.Module) -> None:
        super().__init__(plain.adapter, plain.rank)
        self.plain, self.block = plain, block

    def act(self, hidden: Tensor) -> Tensor:
        return hidden if self.block.training else self.plain.act(hidden)


class PrependedKeys:
    """Edit of the attention: q, k, v -> q, [keys of the tokens; k], [values of the tokens; v]."""

    asking: int | None = None  # all queries are kept

    def __init__(self, adapter: str, block: Block, slot: Slot, before: tuple[nn.Module, ...]) -> None:
        self.adapter, self.slot, self.before = adapter, slot, before
        attn = block.attn
        self.k, self.v, self.heads = (attn.k.module, attn.k.rows), (attn.v.module, attn.v.rows), attn.core.heads
        end = attn.parts["k_norm"].exit if attn.has("k_norm") else None
        self.k_norm = None if end is None else end.module

    def edits(self, step: str) -> bool:
        """Whether it changes the attention map: no."""
        return False

    def act(self, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        if self.slot.value is None:
            return q, k, v
        tokens = self.slot.take()
        for step in self.before:
            tokens = step(tokens)
        first = self.k[0](tokens)
        second = first if self.v[0] is self.k[0] else self.v[0](tokens)
        keys, values = self._split(first, self.k[1]), self._split(second, self.v[1])
        if self.k_norm is not None:
            keys = self.k_norm(keys)
        count = q.shape[0]
        # q is copied, so that the projection's output, whose keys and values are now in longer tensors, can be freed.
        return (
            q.contiguous() if not q.is_contiguous() else q.clone(),
            torch.cat([keys.to(k.dtype).expand(count, -1, -1, -1), k], dim=2),
            torch.cat([values.to(v.dtype).expand(count, -1, -1, -1), v], dim=2),
        )

    def _split(self, made: Tensor, rows: Rows | None) -> Tensor:
        part = made if rows is None else rows.take(made)
        return part.reshape(*part.shape[:2], self.heads, part.shape[2] // self.heads).transpose(1, 2)


class KeyValuePrompts(Acceleration):
    """Compute inserted tokens whose outputs are dropped as keys and values only."""

    name = "key_value_prompts"

    def install(self, tuned: TunedModel, patches: Patches) -> str:
        adapter = tuned.active
        assert adapter is not None
        points = hooked(tuned)
        leaving = {
            id(op.inserted): (hook.listed(op.adapter), op, module)
            for module, hook in points
            for op in hook.operations
            if isinstance(op, TokensOut)
        }
        blocks = {id(block.exit.module): block for block in tuned.description.blocks if block.exit is not None}
        done, reason = 0, "no tokens are inserted before a block and removed after it"
        for module, hook in points:
            block = blocks.get(id(module))
            entering = [op for op in hook.listed(adapter) if isinstance(op, TokensIn)]
            if block is None or hook.side != "input" or len(entering) != 1 or id(entering[0]) not in leaving:
                continue
            listed, out, end = leaving[id(entering[0])]
            if end is not module or out.pooled or out.results:
                reason = "the block's outputs for the tokens are read by an edit or by the pooling"
                continue
            if any(isinstance(part, nn.Dropout) and part.p > 0 for part in entering[0].layer.modules()):
                reason = "with dropout, the tokens differ between images"
                continue
            if not _plain(block):
                reason = f"the attention of {block.name} does not use the keys and values of the whole sequence"
                continue
            steps, attn = block.attn_branch.steps, block.attn
            assert attn.exit is not None
            slot = Slot(switch=tuned._wiring.switch)
            before = steps[: steps.index(attn.exit.module)]
            patches.exchange(hook.listed(adapter), entering[0], TokensForKeys(entering[0], slot, module))
            patches.exchange(listed, out, SkipRemoval(out, module))
            for inner, kind in attn.core.rewrites["extend"]:
                patches.extend_core(inner, kind, PrependedKeys(adapter, block, slot, before))
            done += 1
        if not done:
            raise NotApplicable(reason)
        return f"in {done} blocks"


def _plain(block: Block) -> bool:
    if not all(block.has(part) for part in ("attn.core", "attn.k", "attn.v", "attn_branch")):
        return False
    attn = block.attn
    at = attn.exit.module if attn.exit is not None else None
    return not attn.core.per_window and not attn.has("gate") and at in block.attn_branch.steps
