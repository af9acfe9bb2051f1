"""From an edit to the operations on the live model: the one place that knows what each verb means."""

from __future__ import annotations

from collections.abc import Callable

from ..backbones.edits import Edit
from ..backbones.places import Place, Projection, ResidualStream
from ..backbones.points import Layout, MissingPlace, Point, StandIn
from ..backbones.rows import Rows
from .hooks import Wiring
from .operations import (
    Add,
    Apply,
    EditCore,
    EditStream,
    EditWeight,
    EnterSpan,
    Hold,
    LeaveSpan,
    ReplaceSkip,
    Slot,
    Tap,
    TokensIn,
    TokensOut,
    channels_of,
)


def carry_out(edit: Edit, adapter: str, wiring: Wiring) -> None:
    """Install one edit for the named adapter."""
    VERBS[edit.verb](edit, adapter, wiring)


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
    """A slot for each thing the edit reads: held where it comes out, handed to the layer channels last."""
    slots = []
    turn = not getattr(edit.layer, "channels_first", False)
    for source in edit.reads:
        if isinstance(source, Edit):
            slot = Slot()
            _maker(source, adapter, wiring).results.append(slot)
        else:
            point = source.exit if source.exit is not None else _enter(source)
            slot = Slot(
                turn and source.layout is Layout.CHANNELS_FIRST,
                _rows(source),
                -1 if turn else channels_of(source.layout),
            )
            wiring.at(point, Hold(adapter, source.nesting, slot, point.overwritten))
        slots.append(slot)
    return slots


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
    wiring.at(_enter(place), operation)


def _after(edit: Edit, adapter: str, wiring: Wiring) -> None:
    assert edit.layer is not None
    place = edit.place
    reads = _read(edit, adapter, wiring)
    if isinstance(place, ResidualStream):
        branch, slot = place.around, Slot()
        assert branch is not None
        # half a step further out on both sides: around everything that acts on the branch itself
        wiring.at(_enter(branch), Hold(adapter, branch.nesting - 0.5, slot))
        wiring.at(_exit(branch), EditStream(adapter, branch.nesting - 0.5, edit.layer, branch.layout, slot, reads))
        return
    wiring.at(_exit(place), Apply(adapter, place.nesting, edit.layer, place.layout, reads, _rows(place)))


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
        slot = Slot()
        # half a step further in: what runs beside a place sees what enters it after every `before`
        wiring.at(_enter(place), Hold(adapter, place.nesting + 0.5, slot))
        inputs = [slot]
    wiring.at(_exit(place), Add(adapter, place.nesting, edit.layer, came, place.layout, inputs, _rows(place)))


def _wrap(edit: Edit, adapter: str, wiring: Wiring) -> None:
    assert edit.layer is not None
    wiring.at(_enter(edit.place), EnterSpan(adapter, edit.place.nesting, edit.layer))
    wiring.at(_exit(edit.place), LeaveSpan(adapter, edit.place.nesting, edit.layer))


def _replace(edit: Edit, adapter: str, wiring: Wiring) -> None:
    assert edit.layer is not None
    place, slot = edit.place, Slot()
    # half a step further out: the shortcut does not pass the branch's `before` edits
    wiring.at(_enter(place), Hold(adapter, place.nesting - 0.5, slot))
    wiring.at(_exit(place), ReplaceSkip(adapter, place.nesting, edit.layer, place.layout, slot))


def _insert_tokens(edit: Edit, adapter: str, wiring: Wiring) -> None:
    assert edit.layer is not None
    assert edit.place.carrier is not None
    place, carrier = edit.place, edit.place.carrier
    for module, kind in place.rewrites.get("insert_tokens", ()):
        wiring.carry(module, kind, adapter, carrier)
    entering = TokensIn(adapter, place.nesting, edit.layer, carrier)
    wiring.at(_enter(place), entering)
    seen = place.pooled if edit.lifetime == "pooled" else None
    wiring.at(seen or _exit(place), TokensOut(entering, seen is not None))


def _tap(edit: Edit, adapter: str, wiring: Wiring) -> None:
    assert edit.layer is not None
    place = edit.place
    point = place.exit if place.exit is not None else _enter(place)
    reads = _read(edit, adapter, wiring)
    wiring.at(point, Tap(adapter, place.nesting, edit.layer, place.layout, reads, point.overwritten))


def _reparametrize(edit: Edit, adapter: str, wiring: Wiring) -> None:
    assert edit.layer is not None
    wiring.express(_enter(edit.place).needs, adapter)
    for module, kind in edit.place.rewrites["reparametrize"]:
        wiring.weight(module, kind, EditWeight(adapter, edit.place.nesting, edit.layer, _rows(edit.place)))


def _extend(edit: Edit, adapter: str, wiring: Wiring) -> None:
    assert edit.layer is not None
    for module, kind in edit.place.rewrites["extend"]:
        wiring.core(module, kind, EditCore(adapter, edit.layer))


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
