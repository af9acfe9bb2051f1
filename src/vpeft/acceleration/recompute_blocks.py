"""Gradient checkpointing: save only the input of a block, and run the block again in the backward pass.

It saves several times as much memory as `low_memory`, and costs a second forward pass of everything after the first
trained place. Gradients are bit-equal: the same kernels receive the same tensors, and dropout draws the same numbers.
If an edit passes a tensor from one block to another, a block cannot run again alone.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from vpeft.acceleration.acceleration import Acceleration, NotApplicable
from vpeft.acceleration.patches import Patches
from vpeft.acceleration.saved_tensors import count_saved
from vpeft.backbones.tokens import TokenCarrier
from vpeft.injection.tuned_model import TunedModel


class CheckpointedBlock:
    """Mixin of a block that runs under torch's `checkpoint`."""

    training: bool
    vpeft_carrier: TokenCarrier | None

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        plain = super().forward  # type: ignore[misc]
        if not (self.training and torch.is_grad_enabled()):
            return plain(*args, **kwargs)
        carrier = self.vpeft_carrier
        before = _state(carrier)

        def run(state: dict[str, Tensor | None], *given: Any, **named: Any) -> tuple[Any, dict[str, Tensor | None]]:
            # Tokens outside the sequence are inputs and outputs of the block, as the sequence is.
            found = _state(carrier)
            _put(carrier, state)
            try:
                return plain(*given, **named), _state(carrier)
            finally:
                _put(carrier, found)

        out, after = checkpoint(run, before, *args, use_reentrant=False, **kwargs)
        _put(carrier, after)
        outputs = (*(out if isinstance(out, tuple) else (out,)), *after.values())
        if any(isinstance(one, Tensor) and one.requires_grad for one in outputs):
            count_saved((*args, *kwargs.values(), *before.values()))
        return out


def _state(carrier: TokenCarrier | None) -> dict[str, Tensor | None]:
    return {} if carrier is None else carrier.state()


def _put(carrier: TokenCarrier | None, state: dict[str, Tensor | None]) -> None:
    if carrier is not None:
        carrier.put(state)


class RecomputeBlocks(Acceleration):
    """Run blocks again in the backward pass: much less memory for a second forward pass."""

    name = "recompute_blocks"
    for_memory = True

    def install(self, tuned: TunedModel, patches: Patches) -> str:
        modules: list[nn.Module] = []
        for block in tuned.description.blocks:
            if block.enter is None or block.exit is None or block.enter.module is not block.exit.module:
                raise NotApplicable(f"{block.name} is not a single module, so it cannot run again")
            modules.append(block.exit.module)
        own = next((m for m in tuned.backbone.modules() if _switched_on(m)), None)
        if own is not None:
            raise NotApplicable("the backbone's own checkpointing is enabled already")
        for module in modules:
            patches.stand_in(module, CheckpointedBlock, vpeft_carrier=tuned.description.trunk.carrier)
        return f"{len(modules)} blocks run again in the backward pass"


def _switched_on(module: nn.Module) -> bool:
    return any(getattr(module, name, False) is True for name in ("grad_checkpointing", "gradient_checkpointing"))
