"""What a hook does to the tensor that passes it: one small picklable class for each way an edit can act.

Every operation belongs to one adapter and runs only while that adapter is on. Spans nest: `rank` is the nesting of the
place (0 trunk ... 4 site), outer spans act first where they enter and last where they leave.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from math import prod

from torch import Tensor, nn

from ..backbones.features import Feature
from ..backbones.places import Place
from ..backbones.points import Layout, MissingPlace, NothingRead
from ..backbones.rows import Rows
from ..backbones.tokens import TokenCarrier
from .forward_pass import Cell
from .run_time_grid import RunTimeGrid, frames_of, grid_of
from .switch import Switch

QUERY = "query"
"""the name of the read-only place that stands for the frozen model's own pooled feature of the same input"""


class Slot(Cell):
    """Holds one tensor from where it is read to where it is used, within one forward pass.

    Args:
        turn: whether it was read as (B, D, H, W) and is handed on as (B, H, W, D).
        rows: the channels that are handed on, where only some of them were read; None for all.
        dim: where the channels are as they are handed on.
        switch: knows the pass under way; None holds one tensor for all.
        place: where it is read; None for what an edit made.

    Attributes:
        optional: whether the layer takes None where nothing was read, as the model leaves the place out in some passes.
    """

    optional = False

    def __init__(
        self,
        turn: bool = False,
        rows: Rows | None = None,
        dim: int = -1,
        switch: Switch | None = None,
        place: Place | None = None,
    ) -> None:
        self.turn, self.rows, self.dim = turn, rows, dim
        self.switch, self.place = switch, place

    @property
    def value(self) -> Tensor | None:
        """What was read in the present pass and not taken yet."""
        found: Tensor | None = self.plain if self.switch is None else self.switch.present.recall(self)
        return found

    @value.setter
    def value(self, value: Tensor | None) -> None:
        if self.switch is None:
            self.plain = value
        else:
            self.switch.present.keep(self, value)

    def take(self) -> Tensor:
        """The tensor, which the slot gives up so that it keeps no memory alive."""
        now = None if self.switch is None else self.switch.present
        value: Tensor | None = self.plain if now is None else now.recall(self)
        if value is None and self.optional:
            return None  # type: ignore[return-value]  # the layer asked for it
        if value is None:
            raise NothingRead(
                "An edit wanted a tensor that was not read before it in this pass. Under activation checkpointing a"
                " part of the backbone is run again by itself, without what it read from other parts: turn"
                " checkpointing off for this method on this backbone. Without checkpointing, this is a bug."
            )
        if now is None:
            self.plain = None
        else:
            now.keep(self, None)
        if self.turn:
            value = value.movedim(1, -1)
        return value if self.rows is None else self.rows.take(value, self.dim)

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "plain": None}  # a copy or a pickle starts between two forward passes


class QuerySlot(Slot):
    """The frozen model's own pooled feature of the inputs of this pass, (B, D); every reader is given it."""

    def __init__(self, switch: Switch) -> None:
        super().__init__(switch=switch)

    def take(self) -> Tensor:
        assert self.switch is not None
        now = self.switch.present
        if now.query is None:
            raise NothingRead(
                "An edit reads `query`, the frozen model's own feature of the same input, which is computed when the"
                " TunedModel is called. Call it, and not the backbone inside it."
            )
        query, rows = now.query, now.rows
        if rows is None:
            return query
        each = len(query) // now.images  # of a clip whose frames pass one by one there is a feature for each frame
        return query[rows.start * each : rows.stop * each]


def channels_of(layout: Layout) -> int:
    """The axis of the channels."""
    return 1 if layout is Layout.CHANNELS_FIRST else -1


def call(
    layer: nn.Module, came: Layout, goes: Layout, hidden: Tensor, *more: Tensor, ground: RunTimeGrid | None = None
) -> Tensor:
    """layer(hidden, *more) with channels last, unless the layer asks for the library's own order.

    `came` is the layout of `hidden`, `goes` the layout in which the result is wanted, `ground` what tells the layer the
    grid of this pass. Maps of clips, (B, T, H, W, D), are handed on frame by frame, see `FrameByFrame`.
    """
    own_order = getattr(layer, "channels_first", False)
    if came is Layout.CHANNELS_FIRST and not own_order:
        hidden = hidden.movedim(1, -1)
    first = own_order and came is Layout.CHANNELS_FIRST
    frames = FrameByFrame.of(layer, 2 if first else 1, hidden, more)
    if frames is not None:
        hidden, *more = frames.split  # type: ignore[assignment]
    named = {} if ground is None else ground(hidden, more, first)
    out: Tensor = layer(hidden, *more, **named)
    if frames is not None:
        out = frames.joined(out)
    if goes is Layout.CHANNELS_FIRST and not own_order:
        out = out.movedim(-1, 1)
    return out


class FrameByFrame:
    """Maps of clips (B, T, H, W, D) as maps of their frames (B * T, H, W, D), for a layer that knows no time.

    What a clip has once, such as a pooled feature (B, D), is given to each of its frames, and what becomes of it is
    averaged; what each frame has already stays. Layers with `takes_time = True` are given the maps as they are.

    Args:
        hidden: what the layer acts on.
        more: what it reads.
        at: the time axis of maps.
        batch, frames: B and T of the maps.
    """

    def __init__(self, hidden: Tensor, more: Sequence[Tensor], at: int, batch: int, frames: int) -> None:
        self.at, self.batch, self.frames = at, batch, frames
        self.map, self.once = hidden.dim() == 5, len(hidden) == batch and frames > 1
        self.split = [self._apart(one) for one in (hidden, *more)]

    @classmethod
    def of(cls, layer: nn.Module, at: int, hidden: Tensor, more: Sequence[Tensor]) -> FrameByFrame | None:
        """What a layer is given; None where there is no map of a clip, or the layer takes these.

        Raises:
            MissingPlace: the maps have several numbers of steps in time, or meet the tokens of whole clips.
        """
        if getattr(layer, "takes_time", False):
            return None
        maps = [one for one in (hidden, *more) if isinstance(one, Tensor) and one.dim() == 5]
        if not maps:
            return None
        steps, batch = {int(one.shape[at]) for one in maps}, len(maps[0])
        if len(steps) > 1:
            raise MissingPlace(
                f"{type(layer).__name__} works frame by frame and reads maps of"
                f" {' and '.join(map(str, sorted(steps)))} steps in time. Use a method that acts at one place at a"
                " time."
            )
        if any(isinstance(one, Tensor) and one.dim() == 3 and len(one) == batch for one in (hidden, *more)):
            raise MissingPlace(
                f"{type(layer).__name__} reads the frames of a clip beside tokens of the whole clip, and is made for"
                " images. Let an image model read frames: create_backbone(name, frames=8)."
            )
        return cls(hidden, more, at, batch, steps.pop())

    def _apart(self, tensor: Tensor) -> Tensor:
        if not isinstance(tensor, Tensor) or tensor.dim() < 2:
            return tensor
        if tensor.dim() == 5:
            return tensor.movedim(self.at, 1).flatten(0, 1)
        return tensor.repeat_interleave(self.frames, dim=0) if len(tensor) == self.batch else tensor

    def joined(self, out: Tensor) -> Tensor:
        """What the layer made of the frames, as of the clips."""
        if not self.map and not self.once:
            return out
        clips = out.reshape(self.batch, self.frames, *out.shape[1:])
        return clips.movedim(1, self.at) if self.map else clips.mean(dim=1)

    def sequence(self, tokens: Tensor) -> Tensor:
        """Tokens (B * T, N, D) or maps (B * T, H, W, D) of frames as one sequence or map of each clip."""
        clips = tokens.reshape(self.batch, self.frames, *tokens.shape[1:])
        return clips.flatten(1, 2) if clips.dim() == 4 else clips


class Operation(ABC):
    """One step at a point: `act` receives the tensor that passes and returns the one that goes on."""

    leaving = False
    ground: RunTimeGrid | None = None
    """what tells the layer the grid of a pass, where it asks"""

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
        self.sequence: SequenceForHead | None = None

    def act(self, hidden: Tensor) -> Tensor:
        values = [slot.take() for slot in self.reads]
        if self.sequence is not None:
            return self.sequence(self.layer, self.ground, hidden, values)
        if self.rows is None:
            return call(self.layer, self.layout, self.layout, hidden, *values, ground=self.ground)
        dim = channels_of(self.layout)
        part = call(self.layer, self.layout, self.layout, self.rows.take(hidden, dim), *values, ground=self.ground)
        return self.rows.put(hidden, part.to(hidden.dtype), dim)


class SequenceForHead:
    """Lets a head see the last tokens of a layer at the outlet, such as a side network's, or its levels.

    Such a layer says `gives_sequence = True`: called with `sequence=True` it returns the pooled feature and its last
    tokens or map, channels last, which lie as the last thing that it reads. One with `gives_levels`, the channels and
    the stride of each, called with `levels=True` returns behind these a list of maps (B, H, W, D). A level may be a
    mapping from tasks to maps instead, of which the head of a task reads its own.

    Args:
        adapter: whose head it is.
        switch: knows the pass.
        places: what the head reads that comes behind everything the layer reads.
        source: the last place that the layer reads.
        levels: the layer's own levels, where the head reads them.
    """

    def __init__(
        self, adapter: str, switch: Switch, places: Sequence[Place], source: Place, levels: Sequence[Place] = ()
    ) -> None:
        self.adapter, self.switch, self.places, self.source = adapter, switch, tuple(places), source
        self.levels = tuple(levels)

    def __call__(
        self, layer: nn.Module, ground: RunTimeGrid | None, hidden: Tensor, values: Sequence[Tensor]
    ) -> Tensor:
        """The layer's pooled feature; its tokens and levels become what the head reads."""
        frames = FrameByFrame.of(layer, 1, hidden, values)
        if frames is not None:
            hidden, *values = frames.split
        named = {} if ground is None else ground(hidden, values, False)
        asked = {"sequence": bool(self.places), **({"levels": True} if self.levels else {})}
        pooled, *given = layer(hidden, *values, **asked, **named)
        if frames is not None:
            pooled = frames.joined(pooled)
            given = [frames.sequence(one) if isinstance(one, Tensor) else one for one in given]
        now, place = self.switch.present, self.source
        features = now.features_of(self.adapter)
        if self.places:
            tokens = given.pop(0)
            grid = grid_of(place, tokens, False, now.size)
            for read in self.places:
                features[read.name] = Feature(tokens, place.prefix, grid, place.stride)
        for read, level in zip(self.levels, given[0] if self.levels else (), strict=True):
            if isinstance(level, Mapping):
                for task, own in level.items():
                    of_task = now.features_of_tasks(self.adapter).setdefault(task, {})
                    of_task[read.name] = Feature(own, 0, tuple(own.shape[1:3]), read.stride)
                continue
            features[read.name] = Feature(level, 0, tuple(level.shape[1:3]), read.stride)
        out: Tensor = pooled
        return out


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
        return call(self.layer, self.came, self.goes, first, *more, ground=self.ground)

    def _added(self, hidden: Tensor, change: Tensor) -> Tensor:
        if self.rows is None:
            return hidden + change
        dim = channels_of(self.goes)
        return self.rows.put(hidden, (self.rows.take(hidden, dim) + change).to(hidden.dtype), dim)


class ReplaceSkip(Operation):
    """The shortcut x becomes layer(x, *reads): the branch gains layer(x, *reads) - x."""

    def __init__(
        self, adapter: str, rank: float, layer: nn.Module, layout: Layout, slot: Slot, reads: list[Slot]
    ) -> None:
        super().__init__(adapter, rank)
        self.layer, self.layout, self.slot, self.reads = layer, layout, slot, reads

    def act(self, hidden: Tensor) -> Tensor:
        shortcut = self.slot.take()
        values = [slot.take() for slot in self.reads]
        replaced = call(self.layer, self.layout, self.layout, shortcut, *values, ground=self.ground)
        return hidden + (replaced - shortcut)


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
        return call(self.layer, self.layout, self.layout, before + hidden, *values, ground=self.ground) - before


class EnterSpan(Operation):
    """h -> layer.enter(h, *reads)."""

    def __init__(self, adapter: str, rank: float, layer: nn.Module, reads: list[Slot]) -> None:
        super().__init__(adapter, rank)
        self.layer, self.reads = layer, reads

    def act(self, hidden: Tensor) -> Tensor:
        values = [slot.take() for slot in self.reads]
        named = {} if self.ground is None else self.ground(hidden, values, False)
        out: Tensor = self.layer.enter(hidden, *values, **named)  # type: ignore[operator]
        return out


class LeaveSpan(Operation):
    """h -> layer.leave(h)."""

    leaving = True

    def __init__(self, adapter: str, rank: float, layer: nn.Module) -> None:
        super().__init__(adapter, rank)
        self.layer = layer

    def act(self, hidden: Tensor) -> Tensor:
        named = {} if self.ground is None else self.ground(hidden, (), False)
        out: Tensor = self.layer.leave(hidden, **named)  # type: ignore[operator]
        return out


class TokensIn(Operation):
    """Insert layer(h, *reads), (B, n, D), through the carrier; how many they are is remembered for the way out."""

    def __init__(
        self, adapter: str, rank: float, layer: nn.Module, carrier: TokenCarrier, switch: Switch, reads: list[Slot]
    ) -> None:
        super().__init__(adapter, rank)
        self.layer, self.carrier, self.switch, self.reads = layer, carrier, switch, reads
        self.inserted = Cell()

    def act(self, hidden: Tensor) -> Tensor:
        values = [slot.take() for slot in self.reads]
        named = {} if self.ground is None else self.ground(hidden, values, False)
        tokens: Tensor = self.layer(hidden, *values, **named)
        self.switch.present.count(self.inserted, tokens.shape[1])
        return self.carrier.enter(hidden, tokens)

    @property
    def count(self) -> int:
        """How many tokens were inserted in this pass."""
        found = self.switch.present.counted(self.inserted)
        if found is None:
            raise NothingRead(
                "Inserted tokens were to leave, but none came in in this pass. Under activation checkpointing a part of"
                " the backbone is run again by itself: turn checkpointing off for this method on this backbone. Without"
                " checkpointing, this is a bug."
            )
        return found


class TokensOut(Operation):
    """Take the tokens out again; `results` are the slots of later edits that read them."""

    leaving = True

    def __init__(self, inserted: TokensIn, pooled: bool) -> None:
        super().__init__(inserted.adapter, inserted.rank)
        self.inserted, self.pooled = inserted, pooled
        self.layer = inserted.layer
        self.results: list[Slot] = []

    def act(self, hidden: Tensor) -> Tensor:
        count = self.inserted.count
        for slot in self.results:
            slot.value = self.inserted.carrier.carried(hidden, count)
        return self.inserted.carrier.leave(hidden, count, self.pooled)


class Tap(Operation):
    """layer(h, *reads) is called; h passes unchanged. `results` are the slots of later edits that read what it gave.

    `timed` tells whether the place has an axis of time of its own, as the pixels of a clip do not.

    A layer with `gives_task_features = True` gives a mapping from tasks to tensors that lie as `h` does. The head of a
    task reads its own in place of what everyone reads here; `heads` is then the place and what knows the pass.
    """

    timed = True
    heads: tuple[Place, Switch] | None = None

    def __init__(
        self, adapter: str, rank: float, layer: nn.Module, layout: Layout, reads: list[Slot], copy: bool = False
    ) -> None:
        super().__init__(adapter, rank)
        self.layer, self.layout, self.reads, self.copy = layer, layout, reads, copy
        self.results: list[Slot] = []

    def act(self, hidden: Tensor) -> Tensor:
        passes, hidden = hidden, hidden.clone() if self.copy else hidden
        first = self.layout is Layout.CHANNELS_FIRST
        turn = first and not getattr(self.layer, "channels_first", False)
        values = [slot.take() for slot in self.reads]
        if hidden.dim() == 5 and not self.timed and not getattr(self.layer, "takes_time", False):
            raise MissingPlace(
                f"{type(self.layer).__name__} reads the pixels of an image, and here they are a clip's. Let an image"
                " model read frames: create_backbone(name, frames=8)."
            )
        hidden = hidden.movedim(1, -1) if turn else hidden
        named = {} if self.ground is None else self.ground(hidden, values, first and not turn)
        result = self.layer(hidden, *values, **named)
        if self.heads is not None:
            place, switch = self.heads
            now = switch.present
            for task, own in result.items():
                own = own.movedim(1, -1) if first and not turn else own
                of_task = now.features_of_tasks(self.adapter).setdefault(task, {})
                feature = feature_at(place, own, switch)
                if (
                    own.dim() == 2 and feature.value.dim() == 3
                ):  # the pooled feature of a clip is the mean of its frames'
                    feature = Feature(feature.value.mean(1))
                of_task[place.name] = feature
        for slot in self.results:
            slot.value = result
        return passes


class ReadForHead(Operation):
    """The tensor is put among the features of this pass that the adapter's head reads; it passes unchanged."""

    def __init__(self, adapter: str, rank: float, place: Place, switch: Switch, copy: bool) -> None:
        super().__init__(adapter, rank)
        self.place, self.switch, self.copy = place, switch, copy

    def act(self, hidden: Tensor) -> Tensor:
        now, place = self.switch.present, self.place
        value = hidden.clone() if self.copy else hidden
        if place.layout is Layout.CHANNELS_FIRST:
            value = value.movedim(1, -1)
        now.features_of(self.adapter)[place.name] = feature_at(place, value, self.switch)
        return hidden


def feature_at(place: Place, value: Tensor, switch: Switch) -> Feature:
    """What a head reads of a tensor, channels last, that lies as that of a place does."""
    if place.arrangement is not None:
        value = _arranged(value, place)
    grid, prefix = grid_of(place, value, False, switch.present.size), place.prefix
    if place.per_frame:
        value, prefix, grid = _of_clips(value, grid, frames_of(place, switch))
    return Feature(value, prefix, grid, place.stride)


def _of_clips(value: Tensor, grid: tuple[int, ...] | None, frames: int) -> tuple[Tensor, int, tuple[int, ...] | None]:
    """What passed frame by frame, as one sequence or map of each clip, without what stands before the grid.

    (B * T, P + N, D) -> (B, T * N, D), or (B, T * (P + N), D) if the tokens lie on no grid; (B * T, H, W, D) ->
    (B, T, H, W, D); (B * T, D) -> (B, T, D). Also the number of prefix tokens and the grid.
    """
    if value.dim() == 3 and grid is not None:
        value = value[:, value.shape[1] - prod(grid) :]
    value = value.reshape(-1, frames, *value.shape[1:])
    if value.dim() == 4:
        value = value.flatten(1, 2)
    return value, 0, None if grid is None else (frames, *grid)


def _arranged(value: Tensor, place: Place) -> Tensor:
    """Tokens (B, N, D) in an order of their own as a map (B, H, W, D)."""
    order = place.arrangement
    assert order is not None
    if value.shape[1] != order.numel():
        raise MissingPlace(
            f"The {order.numel()} tokens of {place.name} are in an order of their own, which is known for images of the"
            f" backbone's own size alone, and here there are {value.shape[1]}."
        )
    laid = value[:, order.to(value.device).flatten()]
    return laid.view(len(laid), *order.shape, *laid.shape[2:])


class EditWeight(Operation):
    """W -> layer(W, *reads), on the given rows."""

    def __init__(self, adapter: str, rank: float, layer: nn.Module, rows: Rows | None, reads: list[Slot]) -> None:
        super().__init__(adapter, rank)
        self.layer, self.rows, self.reads = layer, rows, reads

    def act(self, hidden: Tensor) -> Tensor:
        values = [slot.take() for slot in self.reads]
        named = {} if self.ground is None else self.ground(hidden, values, False)
        if self.rows is None:
            whole: Tensor = self.layer(hidden, *values, **named)
            return whole
        return self.rows.put(hidden, self.layer(self.rows.take(hidden, 0), *values, **named), 0)


class EditCore:
    """q, k, v -> layer(q, k, v, *reads) inside a re-expressed attention, and its map where the layer edits that."""

    asking: int | None = None
    """how many leading tokens' queries it keeps; None for all"""
    ground: RunTimeGrid | None = None

    def __init__(self, adapter: str, layer: nn.Module, reads: list[Slot]) -> None:
        self.adapter, self.layer, self.reads = adapter, layer, reads

    def edits(self, step: str) -> bool:
        """Whether the layer has a say in this step, "scores" or "weights"."""
        return callable(getattr(self.layer, step, None))

    def act(self, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        values = [slot.take() for slot in self.reads]
        named = {} if self.ground is None else self.ground(q.transpose(1, 2).flatten(2), values, False)
        q, k, v = self.layer(q, k, v, *values, **named)
        return q, k, v
