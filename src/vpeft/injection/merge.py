"""Fold an adapter into the backbone's weights, if every edit can be expressed exactly as a change of weights.

A layer states its change by one of these methods:
    weight_delta() -> (dW, db or None)     `parallel` on a projection: W + dW, b + db
    affine() -> (scale, shift)             `after` on a projection or norm, or on a branch that a projection
                                           writes: scale * y + shift
    linear_map() -> (M, m)                 `before` a projection, or between a norm and its only readers: x -> M x + m;
                                           `after` a projection: y -> M y + m
`reparametrize` returns the merged weight itself; `unfreeze` needs no merge, nor does a layer that says `keeps_forward`:
it changes the backward pass alone.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from ..backbones.edits import Edit
from ..backbones.places import Norm, Projection, Span, stored_weight
from ..backbones.rows import Rows
from ..errors import VpeftError
from .mixed_precision import HALF


class CannotMerge(VpeftError):
    """An edit cannot be folded into the weights exactly."""


class Merged:
    """The original values of the tensors that an adapter was folded into; `switch` exchanges both values."""

    def __init__(self) -> None:
        self.on = True
        self._other: dict[tuple[int, str], tuple[nn.Module, str, Tensor | None]] = {}
        self._saved: list[tuple[nn.Module, str]] = []  # buffers that the state dict holds while merged

    def change(self, module: nn.Module, attribute: str, value: Tensor) -> None:
        """Set a parameter or buffer to a new value. A missing bias (None) is created.

        A non-persistent buffer (the zeros in place of a key's bias) is in the state dict while merged.
        """
        current = module._buffers[attribute] if attribute in module._buffers else module._parameters[attribute]
        if attribute in module._non_persistent_buffers_set:
            if current is not None and current.equal(value.to(current.dtype)):
                return
            module._non_persistent_buffers_set.discard(attribute)
            self._saved.append((module, attribute))
        key = (id(module), attribute)
        if key not in self._other:
            self._other[key] = (module, attribute, None if current is None else current.detach().clone())
        if current is None:
            like = module._parameters.get("weight")
            made = value.detach().clone() if like is None else value.detach().clone().to(like.dtype)
            module._parameters[attribute] = nn.Parameter(made, requires_grad=False)
        else:
            with torch.no_grad():
                current.copy_(value)

    @torch.no_grad()
    def switch(self, on: bool) -> None:
        """Put the merged tensors (`on`) or the original ones into the backbone; both keep their exact bits."""
        if on == self.on:
            return
        self.on = on
        for module, attribute in self._saved:
            not_saved = module._non_persistent_buffers_set
            (not_saved.discard if on else not_saved.add)(attribute)
        for key, (module, attribute, other) in self._other.items():
            current = getattr(module, attribute)
            self._other[key] = (module, attribute, current)
            if other is None or current is None:  # a bias that only the merged model has
                module._parameters[attribute] = other  # type: ignore[assignment]
                if other is not None:
                    other.data = other.data.to(module._parameters["weight"])
            else:
                self._other[key] = (module, attribute, current.detach().clone())
                current.copy_(other)

    def restore(self) -> None:
        """Restore every original tensor exactly and forget the merged ones."""
        self.switch(False)
        self._other.clear()
        self._saved.clear()


def why_not(edit: Edit) -> str | None:
    """Return the reason why an edit cannot be merged; None if it can."""
    if getattr(edit.layer, "keeps_forward", False):
        return None
    reason = _without_form(edit)
    if reason is None and edit.reads:
        return f"{type(edit.layer).__name__} reads values that depend on the images"
    return reason


def _without_form(edit: Edit) -> str | None:
    """Return the reason why an edit cannot be expressed as a weight, apart from what it reads; None if it can."""
    place, layer = edit.place, edit.layer
    kind = type(layer).__name__
    if edit.verb in ("unfreeze", "reparametrize"):
        return None
    if isinstance(place, Projection) and place.standardised:
        return f"{place.name} standardises its weight, so only a change of the weight itself can be folded in"
    if isinstance(place, Projection) and place.bias_ignored and _shifts(edit):
        return f"the model ignores rows of the bias of {place.name}, so a shift cannot be folded into it"
    if edit.verb == "parallel" and isinstance(place, Projection):
        return None if hasattr(layer, "weight_delta") else f"{kind} is not a linear map"
    if edit.verb == "after" and isinstance(place, (Projection, Norm)):
        if hasattr(layer, "affine"):
            if isinstance(place, Projection) or "weight" in place.own:
                return None
            return f"{place.name} has no weight to fold a scale into"
        if hasattr(layer, "linear_map"):
            absorbed = isinstance(place, Projection) or place.consumers
            return None if absorbed else f"the layers that read {place.name} cannot absorb a linear map"
        return f"{kind} is not an affine map"
    if edit.verb == "after" and isinstance(place, Span) and hasattr(layer, "affine"):
        if place.writer is None:
            return f"the output of {place.name} is not computed by a single projection"
        return None if bool((_gain(place) != 0).all()) else f"{place.name} is scaled by zero"
    if edit.verb == "before" and hasattr(layer, "linear_map"):
        if isinstance(place, Projection):
            return None if not place.is_conv else f"{place.name} is a convolution, whose padding a linear map changes"
        return None if place.consumers else f"the layers that read {place.name} cannot absorb a linear map"
    return f"{edit.verb} with {kind} cannot be expressed as a weight"


@torch.no_grad()
def _shifts(edit: Edit) -> bool:
    """Whether merging this edit of a projection changes its bias."""
    layer: Any = edit.layer
    if edit.verb == "parallel" and hasattr(layer, "weight_delta"):
        return layer.weight_delta()[1] is not None
    return edit.verb in ("before", "after")


@torch.no_grad()
def merge_edits(edits: Iterable[Edit], quantised: str | None = None) -> Merged:
    """Fold edits into the weights; return the original tensors, which can undo it.

    Raises:
        CannotMerge: an edit cannot be folded in exactly, or the weights are quantised. Nothing is changed then.
    """
    if quantised is not None:
        raise CannotMerge(
            f"The frozen weights are {quantised}, and a small change of them would be lost in the rounding. Load the"
            " adapter on the backbone in full precision (check=False) and merge there; its outputs then differ"
            " slightly."
        )
    edits = list(edits)
    refusals = [f"{edit.place.name}: {reason}" for edit in edits if (reason := why_not(edit)) is not None]
    if refusals:
        more = f" and {len(refusals) - 4} more" if len(refusals) > 4 else ""
        raise CannotMerge(f"This adapter cannot be folded into the weights: {'; '.join(refusals[:4])}{more}.")
    merged = Merged()
    # What a layer says about itself may depend on the weights, so everybody speaks before any weight changes.
    speakers: dict[int, Any] = {id(edit): edit.layer for edit in edits if _is_delta(edit)}
    deltas = {number: layer.weight_delta() for number, layer in speakers.items()}
    for edit in edits:  # a pass computes with the edited weight, and what is beside and behind the projection follows
        place, layer = edit.place, edit.layer
        if edit.verb == "reparametrize" and isinstance(place, Projection) and layer is not None:
            if place.rows:
                _add(merged, place, layer(place.weight) - place.weight, None)
            else:
                merged.change(place.module, "weight", layer(_weight(place)))
    upstream: list[tuple[int, Projection, tuple[Tensor, Tensor]]] = []
    mapped: set[str] = set()  # norms whose output a map of an earlier edit has changed
    behind: list[tuple[Span, nn.Module]] = []  # edits of a branch follow the edits inside it
    for edit in edits:
        place, layer = edit.place, edit.layer
        if layer is None or edit.verb == "reparametrize":
            continue
        if isinstance(place, Projection) and id(edit) in deltas:
            _add(merged, place, *deltas[id(edit)])
        elif isinstance(place, Span):
            behind.append((place, layer))
        elif edit.verb == "after" and hasattr(layer, "affine") and place.name in mapped:
            scale, shift = layer.affine()  # type: ignore[operator]
            upstream += [(1, target, (torch.diag(scale), shift)) for target in place.consumers]
        elif edit.verb == "after" and hasattr(layer, "affine"):
            _scale(merged, place.own, place, layer)
        elif edit.verb == "after" and isinstance(place, Projection):
            _compose(merged, place, layer)
        else:
            targets = (place,) if isinstance(place, Projection) else place.consumers
            # the edit nearest to the projection is folded in first
            order = 0 if edit.verb == "before" else 1
            upstream += [(order, target, layer.linear_map()) for target in targets]  # type: ignore[operator]
            mapped |= {place.name} if order else set()
    upstream.reverse()
    for _, target, (matrix, shift) in sorted(upstream, key=lambda entry: entry[0]):
        weight = _weight(target)
        flat = weight.flatten(1)
        _add_bias(merged, target, flat @ shift)
        merged.change(target.module, "weight", (flat @ matrix).reshape(weight.shape))
    for span, layer in behind:
        assert span.writer is not None
        scale, shift = layer.affine()  # type: ignore[operator]
        _rescale(merged, span.writer, scale, shift / _gain(span))
    return merged


def _is_delta(edit: Edit) -> bool:
    """Whether the edit's layer runs beside a projection and states its change of the weight."""
    return edit.verb == "parallel" and isinstance(edit.place, Projection) and edit.layer is not None


def _gain(span: Span) -> Tensor:
    """Return the factor of each channel between the last projection of a branch and the branch's output."""
    if span.gain is None:
        return torch.ones(())
    gain: Tensor = getattr(*span.gain)
    return gain.detach().flatten()


def _weight(place: Projection) -> Tensor:
    return _at_least_single(stored_weight(place.module))


def _at_least_single(value: Tensor) -> Tensor:
    """Weights in 16 bits in single precision, in which what is folded in is added before both are rounded."""
    return value.float() if value.dtype in HALF else value


def _add(merged: Merged, place: Projection, delta: Tensor, shift: Tensor | None) -> None:
    whole = _weight(place)
    merged.change(place.module, "weight", whole + _pad(delta.reshape(-1, *whole.shape[1:]), place.rows, len(whole)))
    if shift is not None:
        _add_bias(merged, place, _pad(shift, place.rows, len(whole)))


def _pad(change: Tensor, rows: Rows | None, total: int) -> Tensor:
    """Pad a change of some output rows with zeros for the others: (rows, ...) -> (total, ...)."""
    return change if rows is None else rows.pad(change, total)


def _bias(place: Projection) -> Tensor | None:
    """Return the bias of all rows of the place's module as one tensor."""
    if place.biases:
        return _at_least_single(torch.cat([getattr(module, attribute) for module, attribute in place.biases]))
    bias = place.module._parameters.get("bias")
    return None if bias is None else _at_least_single(bias)


def _set_bias(merged: Merged, place: Projection, value: Tensor) -> None:
    """Set the bias of all rows, in the parts in which the model stores it."""
    if not place.biases:
        merged.change(place.module, "bias", value)
        return
    sizes = [getattr(module, attribute).numel() for module, attribute in place.biases]
    for (module, attribute), piece in zip(place.biases, torch.split(value, sizes), strict=True):
        merged.change(module, attribute, piece)


def _add_bias(merged: Merged, place: Projection, shift: Tensor) -> None:
    bias = _bias(place)
    _set_bias(merged, place, shift if bias is None else bias + shift)


def _compose(merged: Merged, place: Projection, layer: nn.Module) -> None:
    """Fold y -> M y + m into the projection before it: weight M W and bias M b + m, on its rows."""
    matrix, shift = layer.linear_map()  # type: ignore[operator]
    rows = place.rows or Rows(0, len(_weight(place)))
    whole, bias = _weight(place), _bias(place)
    own = rows.take(whole, 0)
    mapped = (matrix @ own.flatten(1)).reshape(own.shape)
    offset = shift if bias is None else matrix @ rows.take(bias, 0) + shift
    base = whole.new_zeros(len(whole)) if bias is None else bias
    merged.change(place.module, "weight", rows.put(whole, mapped, 0))
    _set_bias(merged, place, rows.put(base, offset, 0))


def _scale(merged: Merged, own: dict[str, tuple[nn.Module, str]], place: object, layer: nn.Module) -> None:
    """Fold scale * y + shift into the weight and bias of a projection or norm."""
    _rescale(merged, place if isinstance(place, Projection) else own["weight"][0], *layer.affine())  # type: ignore[operator]


def _rescale(merged: Merged, place: Projection | nn.Module, scale: Tensor, shift: Tensor) -> None:
    module = place.module if isinstance(place, Projection) else place
    weight = module._parameters["weight"]
    bias = _bias(place) if isinstance(place, Projection) else module._parameters.get("bias")
    assert weight is not None
    rows = place.rows if isinstance(place, Projection) else None
    if rows is not None:
        ones = torch.ones(len(weight), dtype=scale.dtype, device=scale.device)
        scale, shift = rows.put(ones, scale, 0), rows.pad(shift, len(weight))
    merged.change(module, "weight", weight * scale.reshape(-1, *([1] * (weight.dim() - 1))))
    value = shift if bias is None else bias * scale + shift
    if isinstance(place, Projection):
        _set_bias(merged, place, value)
    else:
        merged.change(module, "bias", value)
