"""The places of a backbone, the verbs that each offers, and the edits that the verbs return.

A place knows its name, width, layout, grid, stride and prefix tokens. They differ between the places of a model: in
Swin, the attention branch receives (B, H, W, D) and the MLP branch of the same block (B, H*W, D). Place names are the
same for every library, so adapter files stay valid when a library renames its modules.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from ..errors import nearest
from .grids import Scale, fitting
from .points import Layout, MissingPlace, Point
from .rows import Rows
from .tokens import TokenCarrier
from .verbs import Lifetime, Verb

WHOLE = "backbone"

Rewrites = Mapping[Verb, tuple[tuple[nn.Module, type[nn.Module]], ...]]


@dataclass(eq=False)
class Place:
    """A named position in the computation.

    Attributes:
        name: canonical, for instance `blocks.3.attn.q`.
        width: channels of the tensor at the exit.
        layout: of the tensor at the exit.
        enter: the point where the input of the place can be read or replaced; None if there is none.
        exit: the same for the output.
        verbs: the verbs that the place offers.
        depth: order in the forward pass: -1 before the first block, the block's index, or the number of blocks.
        width_in: channels of the input.
        grid: rows and columns of the tokens or the map for inputs of the backbone's own size; None without a grid.
        arrangement: (H, W), the number of the token at each cell, for a sequence that is not in the order of rows;
            heads read it as a map, and layers are told no grid. None for any other.
        local: True if the grid is that of a window or a pooled map and does not grow with the image.
        frames: time steps of the grid, for clips of the backbone's own length; None without a time axis.
        per_frame: True if the frames of a clip pass one by one, as the images of a batch: (B * T, ...). The grid is
            then that of one frame, and `frames` is T.
        prefix: tokens before the grid (class token, registers).
        stride: pixels per grid cell.
        own: the place's own parameters: name -> (module, attribute).
        rewrites: for each verb that hooks cannot express, (module, class) pairs: the module gets this class while an
            edit with the verb is attached.
        consumers: the projections that read this place's output, if nothing else reads it; a linear layer here can be
            merged into them.
        carrier: carries inserted tokens through the blocks, where `insert_tokens` is offered.
        pooled: where tokens with the lifetime "pooled" are removed: after the final norm. None if no mean over the
            tokens follows this place.
        parts: the places inside this one, by name.
        refusals: for messages: verb -> the reason why it is not offered.
        scale: the image size and rounding from which grids are computed; `Backbone` sets it.
        nesting: 0 trunk, 1 stage, 2 block, 3 branch, 4 site. Edits of outer spans act first at the input and last at
            the output.
    """

    name: str
    width: int
    layout: Layout
    enter: Point | None
    exit: Point | None
    verbs: frozenset[Verb]
    depth: int
    width_in: int = 0
    grid: tuple[int, int] | None = None
    arrangement: Tensor | None = None
    local: bool = False
    frames: int | None = None
    per_frame: bool = False
    prefix: int = 0
    stride: int = 1
    own: dict[str, tuple[nn.Module, str]] = field(default_factory=dict)
    rewrites: Rewrites = field(default_factory=dict)
    consumers: tuple[Projection, ...] = ()
    carrier: TokenCarrier | None = None
    pooled: Point | None = None
    parts: dict[str, Place] = field(default_factory=dict)
    refusals: Mapping[Verb, str] = field(default_factory=dict)
    scale: Scale | None = None
    nesting: int = 4

    def __post_init__(self) -> None:
        self.width_in = self.width_in or self.width

    def walk(self) -> Iterator[Place]:
        """Yield this place and every place inside it, in a fixed order."""
        yield self
        for part in self.parts.values():
            yield from part.walk()

    @property
    def input(self) -> Site:
        """The input of this place, as a place that can be read."""
        return Site(
            name=f"{self.name}.input",
            width=self.width_in,
            layout=self.layout,
            enter=None,
            exit=self.enter,
            verbs=frozenset({"tap"}) if self.enter is not None else frozenset(),
            depth=self.depth,
            grid=self.grid,
            local=self.local,
            frames=self.frames,
            per_frame=self.per_frame,
            prefix=self.prefix,
            stride=self.stride,
            scale=self.scale,
            nesting=self.nesting,
        )

    def run(self, hidden: Tensor) -> Tensor:
        """Return what the frozen module of this place makes of another tensor (B, N, D), of any B and N.

        Edits inside the module act, as they do where its weights were changed; edits at its two ends do not.

        Raises:
            MissingPlace: no single module runs from the input to the output of this place.
        """
        enter, exit = self.enter, self.exit
        if enter is None or exit is None or enter.module is not exit.module:
            raise MissingPlace(f"{self.name} is no single module that could run on another tensor.")
        module: Any = enter.module
        if isinstance(module, nn.MultiheadAttention):
            out: Any = module.forward(hidden, hidden, hidden, need_weights=False)
        elif isinstance(enter.item, str):
            out = module.forward(**{enter.item: hidden})
        else:
            out = module.forward(hidden)
        at: Any = exit.item
        found: Tensor = out[at] if isinstance(out, tuple) else out
        return found

    @property
    def cells(self) -> tuple[int, int]:
        """Rows and columns of the grid for inputs of the backbone's own size.

        Raises:
            MissingPlace: the tokens do not form a grid (a clip, windows out of order).
        """
        if self.grid is None:
            raise MissingPlace(
                f"This method needs a grid of rows and columns, and the tokens of {self.name} do not form one."
            )
        return self.grid

    def grid_at(self, size: tuple[int, ...], count: int | None = None) -> tuple[int, ...] | None:
        """Return the grid of this place for inputs of any size: (H, W), or (T, H, W) for clips; None without a grid.

        Where the frames of a clip pass one by one, it is the grid (H, W) of a frame.

        Args:
            size: height and width of the images in pixels, or frames, height and width of the clips.
            count: number of tokens at this place, without prefix tokens. It selects the grid if the size allows
                several, as for image sides that are not a multiple of the stride.

        Raises:
            MissingPlace: no grid for this size has `count` tokens, or none can be computed.
        """
        if self.grid is None:
            return None
        if len(size) not in (2, 3):
            raise MissingPlace(f"The grid of {self.name} needs a size (H, W) or (T, H, W), not {size}.")
        spatial = size[-2:]
        grids = [self.grid] if self.local or self.scale is None else self.scale.grids(spatial, self.stride, self.grid)
        whole: list[tuple[int, ...]] = list(grids)
        if self.frames is not None and not self.per_frame:
            timed = len(size) == 3 and self.scale is not None and not self.local
            steps = self.scale.times(size[0], self.frames) if timed and self.scale is not None else self.frames
            whole = [(steps, *grid) for grid in grids]
        found = fitting(whole, count)
        if found is None:
            own = self.scale.size if self.scale is not None else spatial
            can = " or ".join(" x ".join(map(str, grid)) for grid in whole) or "none that fits its stride"
            raise MissingPlace(
                f"{self.name} has no grid of {count if count is not None else 'any'} tokens for inputs of"
                f" {' x '.join(map(str, size))}: the grid can be {can}. For {own[0]} x {own[1]} pixels it is"
                f" {self.grid[0]} x {self.grid[1]}."
            )
        return found

    @property
    def maps(self) -> bool:
        """Whether a head can read a map of rows and columns here; the grid of a clip has an axis of time besides."""
        if self.frames is not None:
            return False
        in_rows = self.grid is not None or self.arrangement is not None
        return self.layout in (Layout.MAP, Layout.CHANNELS_FIRST) or (self.layout is Layout.TOKENS and in_rows)

    def require_grid(self) -> None:
        """Raise `MissingPlace` if the tokens do not form a grid of rows and columns."""
        _ = self.cells

    def offers(self, verb: Verb) -> bool:
        """Whether an edit with this verb can act here."""
        return verb in self.verbs

    def has(self, part: str) -> bool:
        """Whether the dotted `part` exists inside this place."""
        head, _, rest = part.partition(".")
        return head in self.parts and (not rest or self.parts[head].has(rest))

    def _part(self, name: str, kind: type[PlaceT]) -> PlaceT:
        found = self.parts.get(name)
        if found is None:
            raise MissingPlace(f"{self.name} has no {name!r}. It has: {', '.join(self.parts) or 'no parts'}.")
        if not isinstance(found, kind):
            raise MissingPlace(f"{self.name}.{name} is a {type(found).__name__}, not a {kind.__name__}.")
        return found

    def _edit(self, verb: Verb, **fields: Any) -> Edit:
        if verb not in self.verbs:
            can = ", ".join(sorted(self.verbs)) or "nothing"
            why = f": {self.refusals[verb]}" if verb in self.refusals else ""
            raise MissingPlace(f"{self.name} cannot {verb}{why}; it offers: {can}.")
        return Edit(self, verb, **fields)

    def before(self, layer: nn.Module, *, reads: tuple[Place | Edit, ...] = ()) -> Edit:
        """Replace the input h of this place with layer(h, *reads), of the same shape."""
        return self._edit("before", layer=layer, reads=reads)

    def after(self, layer: nn.Module, *, reads: tuple[Place | Edit, ...] = ()) -> Edit:
        """Replace the output h of this place with layer(h, *reads), of the same shape."""
        return self._edit("after", layer=layer, reads=reads)

    def parallel(self, layer: nn.Module, *, reads: tuple[Place | Edit, ...] = ()) -> Edit:
        """Replace the output with out + layer(in), or with out + layer(*reads) if `reads` is given."""
        return self._edit("parallel", layer=layer, reads=reads)

    def wrap(self, layer: nn.Module, *, reads: tuple[Place | Edit, ...] = ()) -> Edit:
        """Replace the input of this span with layer.enter(h, *reads) and its output with layer.leave(h)."""
        return self._edit("wrap", layer=layer, reads=reads)

    def replace(self, layer: nn.Module, *, reads: tuple[Place | Edit, ...] = ()) -> Edit:
        """Replace the identity shortcut x with layer(x, *reads)."""
        return self._edit("replace", layer=layer, reads=reads)

    def insert_tokens(
        self, layer: nn.Module, lifetime: Lifetime = "span", *, reads: tuple[Place | Edit, ...] = ()
    ) -> Edit:
        """Insert the tokens layer(h, *reads), (B, n, D), after the prefix tokens; remove them at the end of this span.

        With the lifetime "pooled" they are removed after the final norm, and the backbone's mean over the tokens
        includes them. If no such mean follows this span, "pooled" acts as "span".
        """
        return self._edit("insert_tokens", layer=layer, lifetime=lifetime, reads=reads)

    def tap(self, layer: nn.Module, *, reads: tuple[Place | Edit, ...] = ()) -> Edit:
        """Call layer(h, *reads) with the output h of this place and keep h; later edits may read the result."""
        return self._edit("tap", layer=layer, reads=reads)

    def reparametrize(self, layer: nn.Module, *, reads: tuple[Place | Edit, ...] = ()) -> Edit:
        """Replace the weight with layer(weight, *reads). With `reads` it depends on the images and cannot be merged."""
        return self._edit("reparametrize", layer=layer, reads=reads)

    def extend(self, layer: nn.Module, *, reads: tuple[Place | Edit, ...] = ()) -> Edit:
        """Replace q, k, v, each (B, heads, N, head width), with layer(q, k, v, *reads).

        Added keys and values go in front. A layer may also define `scores` or `weights`. Attention is then computed
        step by step and calls `scores(q k^T / sqrt(head width))` before bias and mask, and `weights(softmax(...))`
        before dropout. Both take and return the attention map (B, heads, N, keys).
        """
        return self._edit("extend", layer=layer, reads=reads)

    def unfreeze(self, *parameters: str, keep_original: bool = True) -> Edit:
        """Train the named own parameters of this place, or all of them if none is named.

        Args:
            parameters: names such as `weight` or `attn.proj.bias`.
            keep_original: keep a copy of the frozen values, so that `detach` is exact.
        """
        known = [name for part in self.walk() for name in _own_names(self, part)]
        for name in parameters:
            if name not in known:
                raise MissingPlace(f"{self.name} has no parameter {name!r}. {nearest(name, known)}")
        return self._edit("unfreeze", parameters=parameters or tuple(known), keep_original=keep_original)

    def parameter(self, name: str) -> tuple[nn.Module, str]:
        """Return (module, attribute) of one of this place's own parameters, such as `weight` or `attn.proj.bias`."""
        for part in self.walk():
            for known, target in zip(_own_names(self, part), part.own.values(), strict=True):
                if known == name:
                    return target
        raise MissingPlace(f"{self.name} has no parameter {name!r}.")


PlaceT = TypeVar("PlaceT", bound=Place)


@dataclass(frozen=True, eq=False)
class Edit:
    """One change that a method requests: a place, a verb and a layer.

    Attributes:
        place: where the edit acts.
        verb: how the layer changes the computation there.
        layer: the small trainable module; None for `unfreeze`.
        reads: further inputs of the layer: outputs of other places, or results of earlier edits (of a `tap`; of an
            `insert_tokens`, its tokens at the end of the span). For `parallel` they replace the place's own input; for
            every other verb they follow it.
        lifetime: for `insert_tokens`: "span" removes the tokens at the end of the span, "pooled" after the final norm.
        parameters: for `unfreeze`: names of the place's own parameters that train.
        keep_original: for `unfreeze`: whether a copy of the frozen values is kept, so that `detach` is exact.
    """

    place: Place
    verb: Verb
    layer: nn.Module | None = None
    reads: tuple[Place | Edit, ...] = ()
    lifetime: Lifetime = "span"
    parameters: tuple[str, ...] = ()
    keep_original: bool = True


def _own_names(top: Place, part: Place) -> list[str]:
    inner = ""
    if part is not top:
        # of a tower among several, the name of the whole place begins with the tower's as all others do
        whole = top.name == WHOLE or top.name.endswith(f".{WHOLE}")
        inner = part.name[len(top.name) - len(WHOLE) :] if whole else part.name[len(top.name) + 1 :]
    return [f"{inner}.{name}" if inner else name for name in part.own]


class Site(Place):
    """A place at one tensor: the output of a norm, of attention before its LayerScale, of the pooling."""


@dataclass(eq=False)
class ResidualStream(Site):
    """The sum x + branch(x), before the next layer reads it. It has no module of its own, so it offers `after` only.

    Attributes:
        around: the branch.
    """

    around: Place | None = None


@dataclass(eq=False)
class Span(Place):
    """The computation from one tensor to a later one: a residual branch, a block, a stage, the trunk.

    Attributes:
        steps: the modules of a branch in order, if it is a plain chain; empty otherwise.
        writer: the projection that computes the output of a branch, up to a gain for each channel.
        gain: that gain (LayerScale) as (module, attribute); None if there is none.
    """

    steps: tuple[nn.Module, ...] = ()
    writer: Projection | None = None
    gain: tuple[nn.Module, str] | None = None


def stored_weight(module: nn.Module) -> Tensor:
    """Return the stored weight of a layer, without the change that a reparametrising edit makes to it."""
    found = module._parameters.get("weight")
    if found is None:
        found = module.weight  # type: ignore[assignment]
    assert isinstance(found, Tensor)
    return found


@dataclass(eq=False)
class Projection(Place):
    """A linear or convolution, or the q, k or v rows of a fused one.

    Attributes:
        module: the live layer with `weight` and, in most cases, `bias`.
        rows: the output rows that belong to this place; None for all.
        biases: (module, attribute) of the parameters or buffers that together make the bias of all rows, if the bias
            is not the module's own.
        standardised: whether the module normalises its weight before use; then only changes of the weight can be
            folded in.
        bias_ignored: whether the model ignores rows of the bias (those of the keys); then a shift cannot be folded in.
    """

    module: nn.Module = field(default_factory=nn.Identity)
    rows: Rows | None = None
    biases: tuple[tuple[nn.Module, str], ...] = ()
    standardised: bool = False
    bias_ignored: bool = False

    @property
    def is_conv(self) -> bool:
        return isinstance(self.module, (nn.Conv2d, nn.Conv3d))

    @property
    def weight(self) -> Tensor:
        """The rows of the weight that belong to this place: (out, in), or (out, in / groups, [kt,] kh, kw)."""
        whole = stored_weight(self.module)
        return whole if self.rows is None else self.rows.take(whole, 0)

    @property
    def bias(self) -> Tensor | None:
        """The entries of the bias that belong to this place, (out,); None if the model has no bias here."""
        if self.biases:
            whole: Tensor = torch.cat([getattr(module, attribute) for module, attribute in self.biases])
        else:
            found = self.module._parameters.get("bias")
            if found is None:
                return None
            whole = found
        return whole if self.rows is None else self.rows.take(whole, 0)


@dataclass(eq=False)
class Attention(Place):
    """The computation between q, k, v and the attention's output.

    Attributes:
        heads: number of heads.
        head_width: channels per head.
        per_window: True if the batch axis holds windows of images, (B * windows, heads, N, head width).
        reduced: True if there are fewer keys and values than queries.
        cells_in_windows: (rows, columns) of a map -> where each of its cells, row by row, stands among the tokens of
            all windows of one image; None where that is not told.
    """

    heads: int = 1
    head_width: int = 0
    per_window: bool = False
    reduced: bool = False
    cells_in_windows: Callable[[int, int], Tensor] | None = None


class Norm(Site):
    """A normalisation layer with its own scale and shift."""
