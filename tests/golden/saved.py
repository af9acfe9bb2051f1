"""What autograd keeps for the backward pass, and whether it comes from the frozen trunk."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from vpeft.backbones.places import Place
from vpeft.injection.tuned_model import TunedModel


@dataclass
class Saved:
    """Tensors that one forward pass saved.

    Attributes:
        within: for each block, how many tensors were saved while it ran (parameters not counted).
        beyond: shapes of saved activations of the trunk that no edit reads.
        total: bytes of all saved activations, each storage once.
    """

    within: list[int] = field(default_factory=list)
    beyond: list[tuple[int, ...]] = field(default_factory=list)
    total: int = 0


def saved_by(tuned: TunedModel, images: Tensor) -> Saved:
    """Run one forward pass in training mode and look at every tensor that is packed."""
    tuned.train()
    blocks = tuned.description.blocks
    result = Saved(within=[0] * len(blocks))
    own = {_storage(p) for p in tuned.parameters()}
    trunk: dict[int, Tensor] = {}  # kept alive, so that no address is used twice
    read: dict[int, Tensor] = {}
    running: list[int] = []
    finished: list[bool] = []  # what follows the last block (final norm, pooling, head) is no longer the trunk
    packed: list[Tensor] = []
    handles = []

    def pack(tensor: Tensor) -> Tensor:
        if _storage(tensor) not in own and tensor.numel() > 1:
            packed.append(tensor)
            if running:
                result.within[running[-1]] += 1
        return tensor

    def keep(store: dict[int, Tensor], value: Any) -> None:
        for item in value if isinstance(value, tuple) else (value,):
            if isinstance(item, Tensor):
                store[_storage(item)] = item

    def passes(module: nn.Module, args: Any, out: Any) -> None:
        if not finished:
            keep(trunk, args)
            keep(trunk, out)

    for module in tuned.backbone.modules():
        handles.append(module.register_forward_hook(passes))
    for edit in tuned.adapter().edits:
        for source in (*edit.reads, *([edit.place] if edit.verb == "tap" else [])):
            if isinstance(source, Place):
                handles.append(_watch(source, read, keep))
    for block in blocks:
        assert block.exit is not None
        module, index = block.exit.module, block.index
        handles.append(module.register_forward_pre_hook(lambda _m, _a, index=index: running.append(index)))
        handles.append(module.register_forward_hook(lambda _m, _a, _o: running.clear()))
    last = blocks[-1].exit
    assert last is not None
    handles.append(last.module.register_forward_hook(lambda _m, _a, _o: finished.append(True)))
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        out = tuned(images)
    for handle in handles:
        handle.remove()
    assert out.requires_grad
    result.beyond = [tuple(t.shape) for t in packed if _storage(t) in trunk and _storage(t) not in read]
    result.total = sum({_storage(t): t.untyped_storage().nbytes() for t in packed}.values())
    return result


def _watch(place: Place, store: dict[int, Tensor], keep: Any) -> Any:
    point = place.exit if place.exit is not None else place.enter
    assert point is not None
    module: nn.Module = point.module
    if point.side == "input":
        return module.register_forward_pre_hook(lambda _m, args: keep(store, args))
    return module.register_forward_hook(lambda _m, _a, out: keep(store, out))


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()
