"""The places of a backbone where an edit can act, what each offers, and the edit that it makes.

A place knows its name, width, layout, grid, stride and prefix tokens. These belong to the place and not to the model:
in Swin the attention branch sees (B, H, W, D) and the MLP branch of the same block sees (B, H*W, D). Names are
canonical: the same for every library, so that an adapter file outlives renames upstream.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

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
        enter: where the tensor that goes in can be reached; None if it cannot.
        exit: where the tensor that comes out can be reached; None if it cannot.
        verbs: what can be done here.
        depth: order in the forward pass: -1 before the first block, the block's index, or the number of blocks.
        width_in: channels of the tensor at the enter.
        grid: rows and columns of the tokens or the map for inputs of the backbone's own size; None without a grid.
        local: whether the grid is that of a window or of a pooled map, which does not grow with the image.
        frames: steps of time before the rows and columns, for clips of the backbone's own length; None without time.
        prefix: tokens before the grid (class token, registers).
        stride: pixels per grid cell.
        own: the place's own parameters: name -> (module, attribute).
        rewrites: for each verb that hooks cannot express, the modules whose class is re-expressed while it is in use.
        consumers: projections that alone read this place's output, so that a linear map here can merge into them.
        carrier: how inserted tokens travel, where `insert_tokens` is offered.
        pooled: where tokens leave that a mean over the sequence shall see: after the final norm. None where no mean
            over the tokens follows this place directly.
        refusals: why a verb is not offered, for messages.
        scale: what the grids of the whole backbone are measured by; `Backbone` sets it.
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
    local: bool = False
    frames: int | None = None
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
    nesting: int = 4  # 0 trunk, 1 stage, 2 block, 3 branch, 4 site: outer spans enter first and leave last

    def __post_init__(self) -> None:
        self.width_in = self.width_in or self.width

    def walk(self) -> Iterator[Place]:
        """This place and everything inside it, in a fixed order."""
        yield self
        for part in self.parts.values():
            yield from part.walk()

    @property
    def input(self) -> Site:
        """What enters this place, as something to read."""
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
            prefix=self.prefix,
            stride=self.stride,
            scale=self.scale,
            nesting=self.nesting,
        )

    @property
    def cells(self) -> tuple[int, int]:
        """Rows and columns for the backbone's own size of inputs.

        Raises:
            MissingPlace: the tokens lie on no grid (a clip, windows out of order).
        """
        if self.grid is None:
            raise MissingPlace(
                f"The tokens of {self.name} lie on no grid of rows and columns, and this method needs one."
            )
        return self.grid

    def grid_at(self, size: tuple[int, ...], count: int | None = None) -> tuple[int, ...] | None:
        """Rows and columns of this place in a run: (H, W), with steps of time in front (T, H, W); None without a grid.

        Args:
            size: height and width of the images of the run in pixels, or frames, height and width of its clips.
            count: tokens that a layer sees here without prefix tokens. It decides where the size alone leaves several
                grids, as with images whose sides are no multiple of the stride.

        Raises:
            MissingPlace: no grid of images of this size has so many tokens, or none can be computed.
        """
        if self.grid is None:
            return None
        if len(size) not in (2, 3):
            raise MissingPlace(f"{self.name} was asked for its grid on inputs of the size {size}; (H, W) is a size.")
        spatial = size[-2:]
        grids = [self.grid] if self.local or self.scale is None else self.scale.grids(spatial, self.stride, self.grid)
        whole: list[tuple[int, ...]] = list(grids)
        if self.frames is not None:
            timed = len(size) == 3 and self.scale is not None
            steps = self.scale.times(size[0], self.frames) if timed and self.scale is not None else self.frames
            whole = [(steps, *grid) for grid in grids]
        found = fitting(whole, count)
        if found is None:
            own = self.scale.size if self.scale is not None else spatial
            can = " or ".join(" x ".join(map(str, grid)) for grid in whole) or "nothing that its stride explains"
            raise MissingPlace(
                f"{self.name} has no grid of {count if count is not None else 'any'} tokens for inputs of"
                f" {' x '.join(map(str, size))}: the grid can be {can}. For {own[0]} x {own[1]} pixels it is"
                f" {self.grid[0]} x {self.grid[1]}."
            )
        return found

    def require_grid(self) -> None:
        """Raise `MissingPlace` where the tokens lie on no grid of rows and columns."""
        _ = self.cells

    def offers(self, verb: Verb) -> bool:
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
        """h -> layer(h, *reads) enters this place."""
        return self._edit("before", layer=layer, reads=reads)

    def after(self, layer: nn.Module, *, reads: tuple[Place | Edit, ...] = ()) -> Edit:
        """h -> layer(h, *reads) leaves this place."""
        return self._edit("after", layer=layer, reads=reads)

    def parallel(self, layer: nn.Module, *, reads: tuple[Place | Edit, ...] = ()) -> Edit:
        """out -> out + layer(in); with `reads`, out + layer(*reads)."""
        return self._edit("parallel", layer=layer, reads=reads)

    def wrap(self, layer: nn.Module, *, reads: tuple[Place | Edit, ...] = ()) -> Edit:
        """h -> layer.enter(h, *reads) before this span, h -> layer.leave(h) after it."""
        return self._edit("wrap", layer=layer, reads=reads)

    def replace(self, layer: nn.Module, *, reads: tuple[Place | Edit, ...] = ()) -> Edit:
        """The identity shortcut x becomes layer(x, *reads)."""
        return self._edit("replace", layer=layer, reads=reads)

    def insert_tokens(
        self, layer: nn.Module, lifetime: Lifetime = "span", *, reads: tuple[Place | Edit, ...] = ()
    ) -> Edit:
        """layer(h, *reads) -> (B, n, D) joins the sequence after the prefix tokens, and leaves it where this span ends.

        With the lifetime "pooled" it leaves after the final norm, and the backbone's mean over the tokens includes it,
        if such a mean follows this span; if none does, it is as "span".
        """
        return self._edit("insert_tokens", layer=layer, lifetime=lifetime, reads=reads)

    def tap(self, layer: nn.Module, *, reads: tuple[Place | Edit, ...] = ()) -> Edit:
        """layer(h, *reads) is called with what leaves this place; h goes on unchanged, later edits may read that."""
        return self._edit("tap", layer=layer, reads=reads)

    def reparametrize(self, layer: nn.Module, *, reads: tuple[Place | Edit, ...] = ()) -> Edit:
        """weight -> layer(weight, *reads); with `reads` it depends on the images and cannot merge."""
        return self._edit("reparametrize", layer=layer, reads=reads)

    def extend(self, layer: nn.Module, *, reads: tuple[Place | Edit, ...] = ()) -> Edit:
        """q, k, v -> layer(q, k, v, *reads), each (B, heads, N, head width); further keys and values go in front.

        A layer that has `scores` or `weights` also sees the attention map, (B, heads, N, keys), and the attention is
        then computed step by step: `scores(q k^T / sqrt(head width))` before bias and mask, `weights(softmax(...))`
        before dropout; each returns the same shape.
        """
        return self._edit("extend", layer=layer, reads=reads)

    def unfreeze(self, *parameters: str, keep_original: bool = True) -> Edit:
        """The named own parameters of this place train; all of them when none is named."""
        known = [name for part in self.walk() for name in _own_names(self, part)]
        for name in parameters:
            if name not in known:
                raise MissingPlace(f"{self.name} has no parameter {name!r}. {nearest(name, known)}")
        return self._edit("unfreeze", parameters=parameters or tuple(known), keep_original=keep_original)

    def parameter(self, name: str) -> tuple[nn.Module, str]:
        """The live module and attribute behind one of this place's own parameters, `weight` or `attn.proj.bias`."""
        for part in self.walk():
            for known, target in zip(_own_names(self, part), part.own.values(), strict=True):
                if known == name:
                    return target
        raise MissingPlace(f"{self.name} has no parameter {name!r}.")


PlaceT = TypeVar("PlaceT", bound=Place)


@dataclass(frozen=True, eq=False)
class Edit:
    """What a method asks for at one place.

    Attributes:
        place: where.
        verb: how the layer joins the computation there.
        layer: the small trainable module; None for `unfreeze`.
        reads: what else the layer receives: outputs of other places, or what an earlier edit made (the result of a
            `tap`, the tokens of an `insert_tokens` as they leave). For `parallel` they replace the place's own input;
            for every other verb they follow it.
        lifetime: for `insert_tokens`: "span" takes the tokens out where the span ends, "pooled" lets a mean over the
            sequence see them first.
        parameters: for `unfreeze`: which of the place's own parameters train.
        keep_original: for `unfreeze`: whether the frozen values are kept, so that detaching is exact.
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
    """A tensor: the output of a norm, of attention inside its LayerScale, of the pooling."""


@dataclass(eq=False)
class ResidualStream(Site):
    """The residual stream just after a branch was added, before anything reads it: x + branch(x).

    Attributes:
        around: the branch. The stream has no module of its own, so nothing can be read here, only changed.
    """

    around: Place | None = None


@dataclass(eq=False)
class Span(Place):
    """From one tensor to a later one: a residual branch, a block, a stage, the trunk.

    Attributes:
        steps: for a branch that is a plain chain, the modules that run one after the other; empty otherwise.
        writer: for a branch, the projection whose output is the branch's, but for a gain of each channel.
        gain: that gain (LayerScale), as module and attribute; None where there is none.
    """

    steps: tuple[nn.Module, ...] = ()
    writer: Projection | None = None
    gain: tuple[nn.Module, str] | None = None


def stored_weight(module: nn.Module) -> Tensor:
    """The weight of a layer, never what an edit makes of it on the way to its use."""
    found = module._parameters.get("weight")
    if found is None:
        found = module.weight  # type: ignore[assignment]
    assert isinstance(found, Tensor)
    return found


@dataclass(eq=False)
class Projection(Place):
    """A linear or convolution, or the q, k or v rows of a fused one.

    Attributes:
        module: the live layer that holds `weight` and perhaps `bias`.
        rows: the output rows that belong to this place; None for all.
        biases: where the bias of all rows of `module` lives, in pieces, if it is not the module's own `bias`:
            parameters or buffers, as module and attribute.
        standardised: whether the module normalises its weight before use, so that only changes of the weight fold in.
        bias_ignored: whether the model leaves out rows of the bias (the keys'), so that no shift folds into it.
    """

    module: nn.Module = field(default_factory=nn.Identity)
    rows: Rows | None = None
    biases: tuple[tuple[nn.Module, str], ...] = ()
    standardised: bool = False
    bias_ignored: bool = False

    @property
    def is_conv(self) -> bool:
        return isinstance(self.module, nn.Conv2d)

    @property
    def weight(self) -> Tensor:
        """The weight that belongs to this place: (out, in) or (out, in / groups, kh, kw)."""
        whole = stored_weight(self.module)
        return whole if self.rows is None else self.rows.take(whole, 0)


@dataclass(eq=False)
class Attention(Place):
    """The space between q, k, v and the attention's output.

    Attributes:
        heads: number of heads.
        head_width: channels per head.
        per_window: True where the batch axis holds windows of images, (B * windows, heads, N, head width).
        reduced: True where keys and values come from fewer cells than queries.
    """

    heads: int = 1
    head_width: int = 0
    per_window: bool = False
    reduced: bool = False


class Norm(Site):
    """A normalisation layer with its own scale and shift."""
