"""The pattern of edits: what their layers are made of, with the sizes of a backbone replaced by letters.

A tensor (8, 768) of a layer on a projection with 768 inputs and outputs is `r x D`. The letters: D the width of the
place, or D_in and D_out where inputs and outputs differ; 2D to 4D a multiple of it; N the tokens of the place; k the
side of a small convolution kernel; r any other size. Two methods with one pattern differ in formulas alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from vpeft.backbones.edits import Edit

if TYPE_CHECKING:
    from torch import Tensor

    from vpeft.backbones.places import Place

_KERNEL = 7  # the largest side of a kernel in any of the layers
_MULTIPLES = (2, 3, 4)


def trained_shapes(edits: Sequence[Edit]) -> tuple[str, ...]:
    """The distinct shapes of the tensors that train, in letters; of `unfreeze` the names of the parameters."""
    found: list[str] = []
    for edit in edits:
        if edit.layer is None:
            found += [f"own {name.rsplit('.', 1)[-1]}" for name in edit.parameters]
        else:
            found += [shape_of(p, edit.place) for p in edit.layer.parameters() if p.requires_grad]
    return tuple(sorted(set(found)))


def kept_shapes(edits: Sequence[Edit]) -> tuple[str, ...]:
    """The distinct shapes of the matrices that layers keep frozen, in letters; vectors and single numbers are left out.

    They are drawn at random, as VeRA's, or taken from the weight, as singular vectors are.
    """
    layers = [(edit.layer, edit.place) for edit in edits if edit.layer is not None]
    tensors = [
        (tensor, place)
        for layer, place in layers
        for tensor in (*layer.buffers(), *(p for p in layer.parameters() if not p.requires_grad))
    ]
    return tuple(sorted({shape_of(tensor, place) for tensor, place in tensors if tensor.dim() > 1}))


def shares_tensors(edits: Iterable[Edit]) -> bool:
    """Whether a tensor that trains serves more than one edit."""
    seen: set[int] = set()
    for edit in edits:
        own = {id(p) for p in edit.layer.parameters() if p.requires_grad} if edit.layer is not None else set()
        if own & seen:
            return True
        seen |= own
    return False


def shape_of(tensor: Tensor, place: Place) -> str:
    """The shape of a tensor in letters, for instance `r x D`; `1` for a single number."""
    sizes = list(tensor.shape)
    if tensor.numel() == 1:
        return "1"
    convolves = len(sizes) > 2 and max(sizes[-2:]) <= _KERNEL
    plain = sizes[:-2] if convolves else sizes
    return " x ".join([*(_letter(size, place) for size in plain), *(["k", "k"] if convolves else [])])


def _letter(size: int, place: Place) -> str:
    width, width_in = place.width, place.width_in
    if size in (width, width_in):
        return "D" if width == width_in else "D_out" if size == width else "D_in"
    if place.grid is not None and size == place.grid[0] * place.grid[1] + place.prefix:
        return "N"
    narrow = min(width, width_in)
    return next((f"{times}D" for times in _MULTIPLES if size == times * narrow), "1" if size == 1 else "r")
