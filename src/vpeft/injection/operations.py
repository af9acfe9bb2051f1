"""What a hook does to the tensor that passes it: one small picklable class for each way an edit can act.

Every operation belongs to one adapter and runs only while that adapter is on. Spans nest: `rank` is the nesting of the
place (0 trunk ... 4 site), outer spans act first where they enter and last where they leave.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor, nn

from ..backbones.points import Layout, NothingRead
from ..backbones.rows import Rows
from ..backbones.tokens import TokenCarrier


class Slot:
    """Holds one tensor from where it is read to where it is used, within one forward pass.

    Args:
        turn: whether it was read as (B, D, H, W) and is handed on as (B, H, W, D).
        rows: the channels that are handed on, where only some of them were read; None for all.
        dim: where the channels are as they are handed on.
    """

    def __init__(self, turn: bool = False, rows: Rows | None = None, dim: int = -1) -> None:
        self.value: Tensor | None = None
        self.turn, self.rows, self.dim = turn, rows, dim

    def take(self) -> Tensor:
        """The tensor, which the slot gives up so that it keeps no memory alive."""
        value = self.value
        if value is None:
            raise NothingRead(
                "An edit wanted a tensor that was not read before it in this pass. Under activation checkpointing a"
                " part of the backbone is run again by itself, without what it read from other parts: turn"
                " checkpointing off for this method on this backbone. Without checkpointing, this is a bug."
            )
        self.value = None
        if self.turn:
            value = value.permute(0, 2, 3, 1)
        return value if self.rows is None else self.rows.take(value, self.dim)

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "value": None}  # a copy or a pickle starts between two forward passes


def channels_of(layout: Layout) -> int:
    """The axis of the channels."""
    return 1 if layout is Layout.CHANNELS_FIRST else -1


def call(layer: nn.Module, came: Layout, goes: Layout, hidden: Tensor, *more: Tensor) -> Tensor:
    """layer(hidden, *more) with channels last, unless the layer asks for the library's own order.

    `came` is the layout of `hidden`, `goes` the layout in which the result is wanted.
    """
    own_order = getattr(layer, "channels_first", False)
    if came is Layout.CHANNELS_FIRST and not own_order:
        hidden = hidden.permute(0, 2, 3, 1)
    out: Tensor = layer(hidden, *more)
    if goes is Layout.CHANNELS_FIRST and not own_order:
        out = out.permute(0, 3, 1, 2)
    return out


class Operation(ABC):
    """One step at a point: `act` receives the tensor that passes and returns the one that goes on."""

    leaving = False

    def __init__(self, adapter: str, rank: float) -> None:
        self.adapter = adapter
        self.rank = rank

    @abstractmethod
    def act(self, hidden: Tensor) -> Tensor: ...

    def into(self, hidden: Tensor) -> Tensor:
        """`act`, where nobody else holds `hidden`: it may be written to."""
        return self.act(hidden)


class Apply(Operation):
    """h -> layer(h, *reads)."""

    def __init__(
        self,
        adapter: str,
        rank: float,
        layer: nn.Module,
        layout: Layout,
        reads: list[Slot],
        rows: Rows | None = None,
    ) -> None:
        super().__init__(adapter, rank)
        self.layer, self.layout, self.reads, self.rows = layer, layout, reads, rows

    def act(self, hidden: Tensor) -> Tensor:
        values = [slot.take() for slot in self.reads]
        if self.rows is None:
            return call(self.layer, self.layout, self.layout, hidden, *values)
        dim = channels_of(self.layout)
        part = call(self.layer, self.layout, self.layout, self.rows.take(hidden, dim), *values)
        return self.rows.put(hidden, part.to(hidden.dtype), dim)


class Hold(Operation):
    """Keep the tensor for a later operation; it passes unchanged. `copy` where the model will write into it."""

    def __init__(self, adapter: str, rank: float, slot: Slot, copy: bool = False) -> None:
        super().__init__(adapter, rank)
        self.slot, self.copy = slot, copy

    def act(self, hidden: Tensor) -> Tensor:
        self.slot.value = hidden.clone() if self.copy else hidden
        return hidden


class Add(Operation):
    """h -> h + layer(*inputs), on the given output rows."""

    def __init__(
        self,
        adapter: str,
        rank: float,
        layer: nn.Module,
        came: Layout,
        goes: Layout,
        inputs: list[Slot],
        rows: Rows | None,
    ) -> None:
        super().__init__(adapter, rank)
        self.layer, self.came, self.goes, self.inputs, self.rows = layer, came, goes, inputs, rows

    def act(self, hidden: Tensor) -> Tensor:
        return self._added(hidden, self._change())

    def into(self, hidden: Tensor) -> Tensor:
        change = self._change()
        if change.dtype != hidden.dtype or (self.rows is not None and self.rows.groups > 1):
            return self._added(hidden, change)
        own = hidden if self.rows is None else self.rows.take(hidden, channels_of(self.goes))
        own.add_(change)
        return hidden

    def _change(self) -> Tensor:
        first, *more = (slot.take() for slot in self.inputs)
        return call(self.layer, self.came, self.goes, first, *more)

    def _added(self, hidden: Tensor, change: Tensor) -> Tensor:
        if self.rows is None:
            return hidden + change
        dim = channels_of(self.goes)
        return self.rows.put(hidden, (self.rows.take(hidden, dim) + change).to(hidden.dtype), dim)


class ReplaceSkip(Operation):
    """The shortcut x becomes layer(x): the branch gains layer(x) - x."""

    def __init__(self, adapter: str, rank: float, layer: nn.Module, layout: Layout, slot: Slot) -> None:
        super().__init__(adapter, rank)
        self.layer, self.layout, self.slot = layer, layout, slot

    def act(self, hidden: Tensor) -> Tensor:
        shortcut = self.slot.take()
        return hidden + (call(self.layer, self.layout, self.layout, shortcut) - shortcut)


class EditStream(Operation):
    """The stream s = x + h after the branch becomes layer(s, *reads): the branch gains layer(s) - s."""

    def __init__(
        self, adapter: str, rank: float, layer: nn.Module, layout: Layout, slot: Slot, reads: list[Slot]
    ) -> None:
        super().__init__(adapter, rank)
        self.layer, self.layout, self.slot, self.reads = layer, layout, slot, reads

    def act(self, hidden: Tensor) -> Tensor:
        before = self.slot.take()
        values = [slot.take() for slot in self.reads]
        return call(self.layer, self.layout, self.layout, before + hidden, *values) - before


class EnterSpan(Operation):
    """h -> layer.enter(h)."""

    def __init__(self, adapter: str, rank: float, layer: nn.Module) -> None:
        super().__init__(adapter, rank)
        self.layer = layer

    def act(self, hidden: Tensor) -> Tensor:
        out: Tensor = self.layer.enter(hidden)  # type: ignore[operator]
        return out


class LeaveSpan(Operation):
    """h -> layer.leave(h)."""

    leaving = True

    def __init__(self, adapter: str, rank: float, layer: nn.Module) -> None:
        super().__init__(adapter, rank)
        self.layer = layer

    def act(self, hidden: Tensor) -> Tensor:
        out: Tensor = self.layer.leave(hidden)  # type: ignore[operator]
        return out


class TokensIn(Operation):
    """Insert layer(h), (B, n, D), through the carrier; how many were inserted is remembered for the way out."""

    def __init__(self, adapter: str, rank: float, layer: nn.Module, carrier: TokenCarrier) -> None:
        super().__init__(adapter, rank)
        self.layer, self.carrier = layer, carrier
        self.count = 0

    def act(self, hidden: Tensor) -> Tensor:
        tokens: Tensor = self.layer(hidden)
        self.count = tokens.shape[1]
        return self.carrier.enter(hidden, tokens)


class TokensOut(Operation):
    """Take the tokens out again; `results` are the slots of later edits that read them."""

    leaving = True

    def __init__(self, inserted: TokensIn, pooled: bool) -> None:
        super().__init__(inserted.adapter, inserted.rank)
        self.inserted, self.pooled = inserted, pooled
        self.layer = inserted.layer
        self.results: list[Slot] = []

    def act(self, hidden: Tensor) -> Tensor:
        for slot in self.results:
            slot.value = self.inserted.carrier.carried(hidden, self.inserted.count)
        return self.inserted.carrier.leave(hidden, self.inserted.count, self.pooled)


class Tap(Operation):
    """layer(h, *reads) is called; h passes unchanged. `results` are the slots of later edits that read what it gave."""

    def __init__(
        self, adapter: str, rank: float, layer: nn.Module, layout: Layout, reads: list[Slot], copy: bool = False
    ) -> None:
        super().__init__(adapter, rank)
        self.layer, self.layout, self.reads, self.copy = layer, layout, reads, copy
        self.results: list[Slot] = []

    def act(self, hidden: Tensor) -> Tensor:
        passes, hidden = hidden, hidden.clone() if self.copy else hidden
        turn = self.layout is Layout.CHANNELS_FIRST and not getattr(self.layer, "channels_first", False)
        values = [slot.take() for slot in self.reads]
        result = self.layer(hidden.permute(0, 2, 3, 1) if turn else hidden, *values)
        for slot in self.results:
            slot.value = result
        return passes


class EditWeight(Operation):
    """W -> layer(W), on the given rows."""

    def __init__(self, adapter: str, rank: float, layer: nn.Module, rows: Rows | None) -> None:
        super().__init__(adapter, rank)
        self.layer, self.rows = layer, rows

    def act(self, hidden: Tensor) -> Tensor:
        if self.rows is None:
            whole: Tensor = self.layer(hidden)
            return whole
        return self.rows.put(hidden, self.layer(self.rows.take(hidden, 0)), 0)


class EditCore:
    """q, k, v -> layer(q, k, v) inside a re-expressed attention, and the attention map where the layer edits that."""

    asking: int | None = None
    """how many leading tokens' queries it keeps; None for all"""

    def __init__(self, adapter: str, layer: nn.Module) -> None:
        self.adapter, self.layer = adapter, layer

    def edits(self, step: str) -> bool:
        """Whether the layer has a say in this step, "scores" or "weights"."""
        return callable(getattr(self.layer, step, None))

    def act(self, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v = self.layer(q, k, v)
        return q, k, v
