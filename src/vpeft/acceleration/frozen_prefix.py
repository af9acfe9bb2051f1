"""Compute everything before the first trained place once per image, and run the rest of the model on the results.

There are two forms. If no gradient enters the trunk, the pooled features are stored, with every tensor that a trained
layer reads from the trunk, and the trunk does not run again. If gradients reach back to block k, the input of block k
is stored; the blocks before it then return their input, and block k receives the stored tensor.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from vpeft.acceleration.acceleration import NotApplicable
from vpeft.acceleration.patches import Patches, hooked
from vpeft.acceleration.prefix_cut import Cut, stem_of
from vpeft.backbones.blocks import Block
from vpeft.batch import Batch
from vpeft.injection.operations import Hold, Operation
from vpeft.injection.tuned_model import TunedModel


class _Reached(Exception):
    """Ends a forward pass at the cut, because nothing after it is needed."""

    def __init__(self, hidden: Tensor) -> None:
        super().__init__()
        self.hidden = hidden


class ReplayableOperation:
    """Replaces an operation before the cut: it runs the operation, logs its input, or does nothing in a replay."""

    def __init__(self, operation: Operation, prefix: Prefix) -> None:
        self.operation, self.prefix = operation, prefix
        self.adapter, self.rank, self.leaving = operation.adapter, operation.rank, operation.leaving

    def act(self, hidden: Tensor) -> Tensor:
        if self.prefix.replaying:
            return hidden
        if self.prefix.log is not None:
            self.prefix.log.append((self.operation, hidden))
        return self.operation.act(hidden)


class SkippedBlock:
    """Mixin of a block before the cut: in a replay it returns its input."""

    vpeft_prefix: Prefix
    vpeft_shape: tuple[int | str, int, tuple[Any, ...] | None]

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        if not self.vpeft_prefix.replaying:
            return super().forward(*args, **kwargs)  # type: ignore[misc]
        item, at, others = self.vpeft_shape
        hidden = kwargs[item] if isinstance(item, str) else args[item]
        if others is None:
            return hidden
        return tuple(hidden if i == at else other for i, other in enumerate(others))


class SkippedStem:
    """Mixin of the stem: in a replay it returns zeros of the right shape."""

    vpeft_prefix: Prefix
    vpeft_like: Tensor

    def forward(self, images: Tensor, *args: Any, **kwargs: Any) -> Any:
        if not self.vpeft_prefix.replaying:
            return super().forward(images, *args, **kwargs)  # type: ignore[misc]
        return self.vpeft_like.new_zeros((len(images), *self.vpeft_like.shape[1:]))


class Prefix:
    """Records the outputs at a cut, and replays the rest of the model on them."""

    def __init__(self, tuned: TunedModel, cut: Cut, patches: Patches) -> None:
        self.tuned, self.cut = tuned, cut
        self.replaying = False
        # channels, height and width of the recorded images; with frames behind the channels for clips
        self.shape: tuple[int, ...] = tuned.description.inputs.shape
        self.log: list[tuple[Operation, Tensor]] | None = None
        self._given: Tensor | None = None
        before = {id(op) for op in cut.before}
        for _, hook in hooked(tuned):
            for op in [op for op in hook.operations if id(op) in before]:
                patches.exchange(hook.listed(op.adapter), op, ReplayableOperation(op, self))
        description = tuned.description
        if cut.trunk:
            anchor = description.outlet_anchor
            handle = anchor.register_forward_pre_hook(lambda _, args: self._arrive(args[0]), prepend=True)
            patches.on_undo(handle.remove)
            return
        for block, others in zip(description.blocks[: cut.blocks], cut.outputs, strict=False):
            assert block.enter is not None and block.exit is not None
            at = block.exit.item if isinstance(block.exit.item, int) else 0
            shape = (block.enter.item, at, others)
            patches.stand_in(block.exit.module, SkippedBlock, vpeft_prefix=self, vpeft_shape=shape)
        stem = stem_of(tuned)
        if stem is not None and cut.stem is not None:
            patches.stand_in(stem, SkippedStem, vpeft_prefix=self, vpeft_like=cut.stem.detach())
        if cut.blocks < len(description.blocks):
            block = description.blocks[cut.blocks]
            assert block.enter is not None
            handle = block.enter.module.register_forward_pre_hook(self._enter(block), with_kwargs=True, prepend=True)
        else:
            block = description.blocks[-1]
            assert block.exit is not None
            handle = block.exit.module.register_forward_hook(self._leave(block))
        patches.on_undo(handle.remove)

    # -- recording --------------------------------------------------------------------------------------------------

    def _arrive(self, hidden: Tensor) -> None:
        if self.log is not None:
            raise _Reached(hidden)

    @torch.no_grad()
    def record(self, images: Tensor) -> list[Tensor]:
        """Return the tensors to store for `images` (B, C, H, W): those that later layers read, then the one at the cut.

        A tensor that several places read is returned once; `groups` maps places to tensors. Where the frames of clips
        pass one by one, (B * T, ...), a row has an axis for the frames: (B, T, ...).
        """
        log: list[tuple[Operation, Tensor]] = []
        self.log, self.shape = log, tuple(images.shape[1:])
        try:
            # all that differs from task to task comes behind the frozen part
            with self.tuned.for_tasks(self.tuned.tasks()[0]):
                self.tuned.features(images)
        except _Reached as end:
            reached = end.hidden
        else:
            raise NotApplicable("the end of the frozen part was not reached")
        finally:
            self.log = None
        needed = {id(op) for op in self.cut.needed}
        values = [hidden for op, hidden in log if id(op) in needed]
        operations = [op for op, _ in log if id(op) in needed]
        if operations != self.cut.needed:
            raise NotApplicable("the frozen part does not run in the same order each time")
        for op in self.cut.needed:
            if isinstance(op, Hold):
                op.slot.value = None
        kept: list[Tensor] = []
        self.groups: list[int] = []
        known: dict[tuple[Any, ...], int] = {}
        for value in map(self._by_clip, (*values, reached), [len(images)] * (len(values) + 1)):
            if len(value) != len(images):
                raise NotApplicable("a tensor that a trained layer reads does not have one row for each image")
            key = (value.data_ptr(), tuple(value.shape), value.stride(), value.dtype)
            if key not in known:
                known[key] = len(kept)
                kept.append(value)
            self.groups.append(known[key])
        return kept

    def _by_clip(self, value: Tensor, count: int) -> Tensor:
        """The rows of each of `count` clips together, where their frames pass one by one."""
        if self.tuned.description.frames_enter is None or len(value) % count:
            return value
        return value.reshape(count, -1, *value.shape[1:])

    # -- replaying --------------------------------------------------------------------------------------------------

    def replay(self, rows: Sequence[Tensor], batch: Batch | None = None) -> Any:
        """Return the model's outputs for the tensors of `record`; the head gets `batch`."""
        return self.tuned._by_task(batch, lambda tasks, part: self._replayed(rows, tasks, part))

    def _replayed(self, rows: Sequence[Tensor], tasks: tuple[str, ...] | None, batch: Batch | None) -> Any:
        count = len(rows[self.groups[-1]])
        by_frame = self.tuned.description.frames_enter is not None
        values = [rows[group].flatten(0, 1) if by_frame else rows[group] for group in self.groups]
        blank = values[-1].new_zeros(1).expand(count, *self.shape)
        self._given = values[-1]
        self.replaying = True
        try:
            with self.tuned._pass((blank,), tasks=tasks) as now:
                for op, value in zip(self.cut.needed, values, strict=False):
                    op.act(value)
                if self.cut.trunk:
                    features = self.tuned.description.outlet_anchor(values[-1])
                    return self.tuned.outputs(self.tuned.description.gathered(features, blank), batch)
                now.handed = True
                return self.tuned._in_pass(tasks, batch, (blank,), {})
        finally:
            self.replaying = False
            self._given = None

    def _enter(self, block: Block) -> Callable[..., Any]:
        assert block.enter is not None
        item = block.enter.item

        def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            if isinstance(item, str) and item in kwargs:
                self._arrive(kwargs[item])
                return (args, {**kwargs, item: self._given}) if self.replaying else None
            at = item if isinstance(item, int) else 0
            self._arrive(args[at])
            if not self.replaying:
                return None
            return (*args[:at], self._given, *args[at + 1 :]), kwargs

        return hook

    def _leave(self, block: Block) -> Callable[..., Any]:
        assert block.exit is not None
        at = block.exit.item if isinstance(block.exit.item, int) else 0

        def hook(_: nn.Module, args: Any, out: Any) -> Any:
            self._arrive(out[at] if isinstance(out, tuple) else out)
            if not self.replaying:
                return None
            return (*out[:at], self._given, *out[at + 1 :]) if isinstance(out, tuple) else self._given

        return hook


@contextmanager
def all_modes(tuned: TunedModel) -> Iterator[None]:
    """A context that restores the mode of each module at its end."""
    before = [(module, module.training) for module in tuned.modules()]
    try:
        yield
    finally:
        for module, mode in before:
            module.training = mode
