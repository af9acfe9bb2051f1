"""Use the faster of two attention kernels; both are measured once on tensors of the model's own shape.

In 16 bits on a CPU, the fused kernel can take several times as long as plain matrix products. torch computes these in
fp32 internally, so they are also more accurate; they save the attention map for the backward pass.
"""

from __future__ import annotations

import time
from functools import lru_cache
from typing import Any

import torch
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from vpeft.acceleration.acceleration import Acceleration, NotApplicable
from vpeft.acceleration.patches import Patches
from vpeft.injection.tuned_model import TunedModel

ROUNDS = 3
# Far below one, so that a busy machine makes the same choice again: a resumed run needs the same kernel.
CLEARLY = 0.7
IMAGES = 4


@lru_cache(maxsize=16)
def plain_against_fused(heads: int, tokens: int, width: int, dtype: torch.dtype) -> float:
    """Return the processor time of plain products divided by that of torch's own choice, for forward and backward."""
    generator = torch.Generator().manual_seed(0)
    q, k, v = (
        torch.randn(IMAGES, heads, tokens, width, generator=generator).to(dtype).requires_grad_() for _ in range(3)
    )
    best = {True: float("inf"), False: float("inf")}
    for _ in range(ROUNDS):
        for plain in best:
            start = time.process_time()
            if plain:
                with sdpa_kernel(SDPBackend.MATH):
                    out = F.scaled_dot_product_attention(q, k, v)
            else:
                out = F.scaled_dot_product_attention(q, k, v)
            torch.autograd.grad(out, (q, k, v), out)
            best[plain] = min(best[plain], time.process_time() - start)
    return best[True] / best[False]


class PlainProducts:
    """Mixin of a block: in training, its attention uses plain matrix products."""

    training: bool

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        if not self.training:
            return super().forward(*args, **kwargs)  # type: ignore[misc]
        with sdpa_kernel(SDPBackend.MATH):
            return super().forward(*args, **kwargs)  # type: ignore[misc]


class AttentionKernel(Acceleration):
    """Use the attention kernel that measures as the faster one."""

    name = "attention_kernel"

    def install(self, tuned: TunedModel, patches: Patches) -> str:
        like = next(p for p in tuned.backbone.parameters() if p.is_floating_point())
        if like.device.type != "cpu":
            raise NotApplicable("torch's own choice is kept on an accelerator")
        if not torch.is_autocast_enabled("cpu"):
            raise NotApplicable("in fp32 torch's own choice is the faster one")
        blocks = [block for block in tuned.description.blocks if block.has("attn.core") and block.grid is not None]
        if not blocks or blocks[0].attn.core.per_window:
            raise NotApplicable("no block attends over the whole sequence")
        core, grid = blocks[0].attn.core, blocks[0].grid
        assert grid is not None
        tokens = blocks[0].prefix + grid[0] * grid[1]
        ratio = plain_against_fused(core.heads, tokens, core.head_width, torch.get_autocast_dtype("cpu"))
        if ratio > CLEARLY:
            raise NotApplicable(f"plain products take {ratio:.2f} times as long as the fused kernel here")
        for block in blocks:
            assert block.exit is not None
            patches.stand_in(block.exit.module, PlainProducts)
        return f"plain products with fp32 inside, measured at {ratio:.2f} of the fused kernel's time"
