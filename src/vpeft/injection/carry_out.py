"""From an edit to the operations on the live model: the one place that knows what each verb means."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ..backbones.edits import Edit
from ..backbones.places import Place, Projection, ResidualStream
from ..backbones.points import Layout, MissingPlace, Point, StandIn
from ..backbones.rows import Rows
from .hooks import Wiring
from .operations import (
    QUERY,
    Add,
    Apply,
    EditCore,
    EditStream,
    EditWeight,
    EnterSpan,
    Hold,
    LeaveSpan,
    QuerySlot,
    ReadForHead,
    ReplaceSkip,
    SequenceForHead,
    Slot,
    Tap,
    TokensIn,
    TokensOut,
    channels_of,
)
from .run_time_grid import RunTimeGrid, run_time_grid


def carry_out(edit: Edit, adapter: str, wiring: Wiring) -> None:
    """Install one edit for the named adapter."""
    VERBS[edit.verb](edit, adapter, wiring)


def read_for_head(places: Sequence[Place], adapter: str, wiring: Wiring) -> None:
    """Let the head of an adapter read places: call it after every `carry_out` of that adapter.

    Each place is then in the features of a pass, by its canonical name, channels last and as it is after the adapter's
    own edits there: `with tuned._pass(inputs) as now: ...; now.features["norm"]` is a `Feature`. A head is given
    `Features(now.features, now.size)`; the pooled feature (`outlet`) is added by the caller, as
    `now.features["outlet"] = Feature(pooled)`.

    Args:
        places: without the outlet.
        adapter: the name.
        wiring: of the TunedModel.

    Raises:
        MissingPlace: nothing can be read at a place.
    """
    for place in places:
        point = place.exit if place.exit is not None else _enter(place)
        # a quarter of a step further out: after every edit at the place itself
        rank = place.nesting - 0.25 if point.side == "output" else place.nesting + 0.75
        wiring.at(point, ReadForHead(adapter, rank, place, wiring.switch, point.overwritten))


def sequence_for_head(
    places: Sequence[Place], levels: Sequence[Place], edits: Sequence[Edit], adapter: str, wiring: Wiring
) -> None:
    """Let a head see the last tokens and the levels of a layer at the outlet; see `SequenceForHead`.

    Args:
        places: of the backbone that the head reads, without the outlet.
        levels: of the layer that it reads; none, or all that there are.
        edits: of the adapter, carried out.
        adapter: its name.
        wiring: of the TunedModel.
    """
    for edit in edits:
        sources = [source for source in edit.reads if isinstance(source, Place)]
        if not getattr(edit.layer, "gives_sequence", False) or not sources:
            continue
        behind = [place for place in places if place.depth >= sources[-1].depth]
        own = levels if getattr(edit.layer, "gives_levels", ()) else ()
        for operation in wiring.operations(adapter):
            if (behind or own) and isinstance(operation, Apply) and operation.layer is edit.layer:
                operation.sequence = SequenceForHead(adapter, wiring.switch, behind, sources[-1], own)


def _enter(place: Place) -> Point:
    if place.enter is None:
        raise MissingPlace(f"What enters {place.name} of this backbone is no tensor that an edit could read or change.")
    return place.enter


def _exit(place: Place) -> Point:
    if place.exit is None:
        raise MissingPlace(f"What leaves {place.name} of this backbone is no tensor that an edit could read or change.")
    return place.exit


def _rows(place: Place) -> Rows | None:
    return place.rows if isinstance(place, Projection) else None


def _read(edit: Edit, adapter: str, wiring: Wiring) -> list[Slot]:
    """A slot for each thing the edit reads: held where it comes out, handed to the layer channels last.

    A layer that names reads in `optional_reads`, by their numbers, is given None for those that a pass leaves out.
    """
    slots: list[Slot] = []
    turn = not getattr(edit.layer, "channels_first", False)
    for number, source in enumerate(edit.reads):
        if isinstance(source, Edit):
            slot = Slot(switch=wiring.switch)
            _maker(source, adapter, wiring).results.append(slot)
        elif source.name == QUERY:
            slot = QuerySlot(wiring.switch)
            wiring.switch.asks_query.add(adapter)
        else:
            point = source.exit if source.exit is not None else _enter(source)
            slot = Slot(
                turn and source.layout is Layout.CHANNELS_FIRST,
                _rows(source),
                -1 if turn else channels_of(source.layout),
                wiring.switch,
                source,
            )
            wiring.at(point, Hold(adapter, source.nesting, slot, point.overwritten))
        slot.optional = number in getattr(edit.layer, "optional_reads", ())
        slots.append(slot)
    return slots


def _ground(edit: Edit, wiring: Wiring, *, reads_first: bool = False) -> RunTimeGrid | None:
    """What tells the edit's layer the grid of a pass, if it asks.

    `reads_first` for a layer that is given what it reads in place of what enters its place.
    """
    sources = [source if isinstance(source, Place) else None for source in edit.reads]
    place = (sources[0] if reads_first and sources else None) or edit.place
    return run_time_grid(edit.layer, wiring.switch, place, sources[1:] if reads_first else sources)


def _maker(edit: Edit, adapter: str, wiring: Wiring) -> Tap | TokensOut:
    """The operation of an earlier edit whose result another one reads."""
    for operation in wiring.operations(adapter):
        if isinstance(operation, (Tap, TokensOut)) and operation.layer is edit.layer:
            return operation
    raise MissingPlace(
        f"An edit reads what `{edit.verb}` at {edit.place.name} makes, but that edit was not given before it."
    )


def _layout_in(place: Place) -> Layout:
    return Layout.CHANNELS_FIRST if isinstance(place, Projection) and place.is_conv else place.layout


def _before(edit: Edit, adapter: str, wiring: Wiring) -> None:
    assert edit.layer is not None
    place = edit.place
    operation = Apply(adapter, place.nesting, edit.layer, _layout_in(place), _read(edit, adapter, wiring))
    operation.ground = _ground(edit, wiring)
    wiring.at(_enter(place), operation)


def _after(edit: Edit, adapter: str, wiring: Wiring) -> None:
    assert edit.layer is not None
    place = edit.place
    reads = _read(edit, adapter, wiring)
    if isinstance(place, ResidualStream):
        branch, slot = place.around, Slot(switch=wiring.switch)
        assert branch is not None
        # half a step further out on both sides: around everything that acts on the branch itself
        wiring.at(_enter(branch), Hold(adapter, branch.nesting - 0.5, slot))
        stream = EditStream(adapter, branch.nesting - 0.5, edit.layer, branch.layout, slot, reads)
        stream.ground = _ground(edit, wiring)
        wiring.at(_exit(branch), stream)
        return
    operation = Apply(adapter, place.nesting, edit.layer, place.layout, reads, _rows(place))
    operation.ground = _ground(edit, wiring)
    wiring.at(_exit(place), operation)


def _parallel(edit: Edit, adapter: str, wiring: Wiring) -> None:
    assert edit.layer is not None
    place = edit.place
    inputs = _read(edit, adapter, wiring)
    came = _layout_in(place)
    if edit.reads and not isinstance(edit.reads[0], Edit):
        came = edit.reads[0].layout
        if {came, place.layout} == {Layout.TOKENS, Layout.MAP}:
            raise MissingPlace(
                f"{place.name} is {place.layout.value}, but {edit.reads[0].name}, which is read, is {came.value}."
            )
    if edit.reads and came is Layout.CHANNELS_FIRST and not getattr(edit.layer, "channels_first", False):
        came = Layout.MAP  # as the slots hand it on
    if not inputs:
        slot = Slot(switch=wiring.switch)
        # half a step further in: what runs beside a place sees what enters it after every `before`
        wiring.at(_enter(place), Hold(adapter, place.nesting + 0.5, slot))
        inputs = [slot]
    operation = Add(adapter, place.nesting, edit.layer, came, place.layout, inputs, _rows(place))
    operation.ground = _ground(edit, wiring, reads_first=True)
    wiring.at(_exit(place), operation)


def _wrap(edit: Edit, adapter: str, wiring: Wiring) -> None:
    assert edit.layer is not None
    entering = EnterSpan(adapter, edit.place.nesting, edit.layer, _read(edit, adapter, wiring))
    leaving = LeaveSpan(adapter, edit.place.nesting, edit.layer)
    entering.ground = leaving.ground = _ground(edit, wiring)
    wiring.at(_enter(edit.place), entering)
    wiring.at(_exit(edit.place), leaving)


def _replace(edit: Edit, adapter: str, wiring: Wiring) -> None:
    assert edit.layer is not None
    place, slot = edit.place, Slot(switch=wiring.switch)
    reads = _read(edit, adapter, wiring)
    # half a step further out: the shortcut does not pass the branch's `before` edits
    wiring.at(_enter(place), Hold(adapter, place.nesting - 0.5, slot))
    operation = ReplaceSkip(adapter, place.nesting, edit.layer, place.layout, slot, reads)
    operation.ground = _ground(edit, wiring)
    wiring.at(_exit(place), operation)


def _insert_tokens(edit: Edit, adapter: str, wiring: Wiring) -> None:
    assert edit.layer is not None
    assert edit.place.carrier is not None
    place, carrier = edit.place, edit.place.carrier
    for module, kind in place.rewrites.get("insert_tokens", ()):
        wiring.carry(module, kind, adapter, carrier)
    carrier.memory = wiring.switch
    if carrier not in wiring.switch.carriers:
        wiring.switch.carriers.append(carrier)
    reads = _read(edit, adapter, wiring)
    entering = TokensIn(adapter, place.nesting, edit.layer, carrier, wiring.switch, reads)
    entering.ground = _ground(edit, wiring)
    wiring.at(_enter(place), entering)
    seen = place.pooled if edit.lifetime == "pooled" else None
    wiring.at(seen or _exit(place), TokensOut(entering, seen is not None))


def _tap(edit: Edit, adapter: str, wiring: Wiring) -> None:
    assert edit.layer is not None
    place = edit.place
    point = place.exit if place.exit is not None else _enter(place)
    reads = _read(edit, adapter, wiring)
    operation = Tap(adapter, place.nesting, edit.layer, place.layout, reads, point.overwritten)
    operation.timed = place.frames is not None
    if getattr(edit.layer, "gives_task_features", False):
        operation.heads = (place, wiring.switch)
    operation.ground = _ground(edit, wiring)
    wiring.at(point, operation)


def _reparametrize(edit: Edit, adapter: str, wiring: Wiring) -> None:
    assert edit.layer is not None
    wiring.express(_enter(edit.place).needs, adapter)
    for module, kind in edit.place.rewrites["reparametrize"]:
        reads = _read(edit, adapter, wiring)
        operation = EditWeight(adapter, edit.place.nesting, edit.layer, _rows(edit.place), reads)
        # a weight lies on no grid; what can be asked for there is the task
        operation.ground = _ground(edit, wiring) if getattr(edit.layer, "wants_tasks", False) else None
        wiring.weight(module, kind, operation)


def _extend(edit: Edit, adapter: str, wiring: Wiring) -> None:
    assert edit.layer is not None
    for module, kind in edit.place.rewrites["extend"]:
        operation = EditCore(adapter, edit.layer, _read(edit, adapter, wiring))
        operation.ground = _ground(edit, wiring)
        wiring.core(module, kind, operation)


def _unfreeze(edit: Edit, adapter: str, wiring: Wiring) -> None:
    """The adapter puts its own parameters into the backbone while it is on; here only what they need, if anything."""
    for part in edit.place.walk():
        needs = tuple(StandIn(module, kind) for module, kind in part.rewrites.get("unfreeze", ()))
        wiring.express(needs, adapter)


VERBS: dict[str, Callable[[Edit, str, Wiring], None]] = {
    "before": _before,
    "after": _after,
    "parallel": _parallel,
    "wrap": _wrap,
    "replace": _replace,
    "insert_tokens": _insert_tokens,
    "tap": _tap,
    "reparametrize": _reparametrize,
    "extend": _extend,
    "unfreeze": _unfreeze,
}
