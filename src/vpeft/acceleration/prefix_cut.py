"""Find where the frozen part of a tuned model ends, with one forward pass and autograd.

The cut is the last block input, or the pooled feature, that needs no gradient and has no trained layers before it,
except for layers that only read. The tensors that those layers and later places read before the cut are listed too.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from vpeft.acceleration.acceleration import NotApplicable
from vpeft.acceleration.patches import Patches, hooked
from vpeft.backbones.blocks import Block
from vpeft.injection.operations import Hold, Operation, ReadForHead, Tap, TokensIn, TokensOut
from vpeft.injection.tuned_model import TunedModel
from vpeft.method import Method


@dataclass
class Cut:
    """The end of the frozen part.

    Attributes:
        blocks: number of blocks before it.
        trunk: whether the whole trunk, up to the pooled features, is before it.
        before: operations that act before it.
        needed: those of them whose input must be stored, in order: later places read it, or their layer trains.
        outputs: for each block before it, the tuple that it returns, with None for each tensor; or None if the block
            returns a tensor.
        stem: the stem's output.
    """

    blocks: int
    trunk: bool
    before: list[Operation]
    needed: list[Operation]
    outputs: list[tuple[Any, ...] | None]
    stem: Tensor | None

    @property
    def words(self) -> str:
        return "the whole trunk" if self.trunk else f"everything before blocks.{self.blocks}"


@dataclass
class _Seen:
    """The observations of one forward pass."""

    fired: list[Operation] = field(default_factory=list)
    at: list[tuple[int, bool, int, list[Operation]]] = field(default_factory=list)  # k, needs gradient, fired, waiting
    outputs: list[tuple[Any, ...] | None] = field(default_factory=list)
    stem: Tensor | None = None


class _Watch:
    """An operation that notes when it runs."""

    def __init__(self, operation: Operation, seen: _Seen) -> None:
        self.operation, self.seen = operation, seen
        self.adapter, self.rank, self.leaving = operation.adapter, operation.rank, operation.leaving

    def act(self, hidden: Tensor) -> Tensor:
        self.seen.fired.append(self.operation)
        return self.operation.act(hidden)


def find_cut(tuned: TunedModel, images: Tensor) -> Cut:
    """Run `images` (2, C, H, W) forward in the present mode and find the end of the frozen part.

    Raises:
        NotApplicable: there is no frozen part to cache; the message gives the reason.
    """
    blocks, seen, patches = tuned.description.blocks, _Seen(), Patches(tuned)
    if any(type(m).advance is not Method.advance or m.follows_data for m in tuned.methods()):
        raise NotApplicable("the method changes the model during training")
    if tuned.active in tuned._wiring.switch.asks_query:
        raise NotApplicable("the method reads the frozen model's own feature of each image")
    for block in blocks:
        if block.enter is None or block.exit is None or block.enter.module is not block.exit.module:
            raise NotApplicable(f"{block.name} cannot be skipped in the forward pass")
    handles: list[Any] = []
    for _, hook in hooked(tuned):
        for op in list(hook.operations):
            patches.exchange(hook.listed(op.adapter), op, _Watch(op, seen))
    for k, block in enumerate(blocks):
        assert block.enter is not None
        watch = _entering(block, partial(_note, seen, k))
        handles.append(block.enter.module.register_forward_pre_hook(watch, with_kwargs=True, prepend=True))
        handles.append(block.enter.module.register_forward_hook(_leaving(block, seen, k == len(blocks) - 1)))
    anchor = tuned.description.outlet_anchor
    outlet = anchor.register_forward_pre_hook(lambda _, args: _note(seen, len(blocks) + 1, args[0]), prepend=True)
    stem = stem_of(tuned)
    if stem is not None:
        handles.append(stem.register_forward_hook(lambda _, args, out: setattr(seen, "stem", out)))
    try:
        with torch.enable_grad(), torch.random.fork_rng(devices=[]):
            tuned(images)
    finally:
        patches.undo()
        for handle in (*handles, outlet):
            handle.remove()
    good = [entry for entry in seen.at if entry[0] > 0 and not entry[1] and _harmless(seen.fired[: entry[2]])]
    if not good:
        raise NotApplicable("trained places begin before or in the first block")
    k, _, count, needed = max(good, key=lambda entry: entry[0])
    trunk = k == len(blocks) + 1
    still = seen.stem if isinstance(seen.stem, Tensor) and len(seen.stem) == len(images) else None
    return Cut(min(k, len(blocks)), trunk, seen.fired[:count], needed, seen.outputs, still)


def stem_of(tuned: TunedModel) -> nn.Module | None:
    """Return the module that receives the images, if it contains no block; otherwise None."""
    entry = tuned.description.pixels.enter
    module = None if entry is None else entry.module
    inside = {id(m) for m in module.modules()} if module is not None else set()
    blocks = [block.exit.module for block in tuned.description.blocks if block.exit is not None]
    return None if module is None or any(id(block) in inside for block in blocks) else module


def _entering(block: Block, see: Callable[[Tensor], None]) -> Callable[..., None]:
    assert block.enter is not None
    item = block.enter.item

    def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        see(kwargs[item] if isinstance(item, str) and item in kwargs else args[item if isinstance(item, int) else 0])

    return hook


def _leaving(block: Block, seen: _Seen, last: bool) -> Callable[..., None]:
    assert block.exit is not None
    item = block.exit.item

    def hook(_: nn.Module, args: Any, out: Any) -> None:
        several = isinstance(out, tuple)
        seen.outputs.append(tuple(None if isinstance(one, Tensor) else one for one in out) if several else None)
        if last:
            _note(seen, len(seen.outputs), out[item] if several else out)

    return hook


def _note(seen: _Seen, k: int, hidden: Tensor) -> None:
    waiting = [op for op in seen.fired if _is_needed(op)]
    seen.at.append((k, hidden.requires_grad, len(seen.fired), waiting))


def _is_needed(operation: Operation) -> bool:
    """Whether a later layer reads the value of this operation, or its own layer trains."""
    if isinstance(operation, ReadForHead):
        return True
    if isinstance(operation, Hold):
        return operation.slot.value is not None
    if isinstance(operation, Tap):
        wanted = any(slot.value is not None for slot in operation.results)
        return wanted or any(p.requires_grad for p in operation.layer.parameters())
    return False


def _harmless(operations: Sequence[Operation]) -> bool:
    """Whether none of the operations trains, except for those that only read."""
    return all(
        isinstance(op, (Hold, ReadForHead, Tap))
        or not (
            isinstance(op, (TokensIn, TokensOut))
            or any(p.requires_grad for layer in [getattr(op, "layer", None)] if layer for p in layer.parameters())
        )
        for op in operations
    )


def drawing_layer(tuned: TunedModel, cut: Cut) -> str | None:
    """Return the name of a layer before the cut that is random or gathers statistics in the present mode; or None."""
    blocks = [b.exit.module for b in tuned.description.blocks[cut.blocks :] if b.exit is not None]
    behind = {id(m) for block in blocks for m in block.modules()}
    if not cut.trunk:
        final = tuned.description.norm.exit if tuned.description.has_norm else None
        behind |= {id(m) for m in final.module.modules()} if final is not None else set()
    modules: list[tuple[str, Any]] = list(tuned.backbone.named_modules())
    for name, module in modules:
        if id(module) in behind or not module.training:
            continue
        rate = getattr(module, "drop_prob", getattr(module, "p", 0.0)) if "Drop" in type(module).__name__ else 0.0
        if (isinstance(rate, float) and rate > 0) or isinstance(module, _BatchNorm):
            return name
    return None
