"""The places of a backbone where an edit can act, and what each offers.

A place knows its name, width, layout, grid, stride and prefix tokens. These belong to the place and not to the model:
in Swin the attention branch sees (B, H, W, D) and the MLP branch of the same block sees (B, H*W, D). Names are
canonical: the same for every library, so that an adapter file outlives renames upstream.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor, nn

from ..errors import VpeftError, nearest
from .edits import Edit, Lifetime, Verb

WHOLE = "backbone"
SHORT = ("attn.", "mlp.", "")  # where a projection's short name is looked for


class MissingPlace(VpeftError):
    """A method asked for a place, or for a verb at a place, that this backbone does not have."""


class Layout(Enum):
    """How a tensor at a place is laid out. Layers see channels last unless they declare `channels_first = True`."""

    TOKENS = "B,N,D"
    MAP = "B,H,W,D"
    CHANNELS_FIRST = "B,D,H,W"
    VECTOR = "B,D"


@dataclass(frozen=True, eq=False)
class Point:
    """One end of a module's execution, where a tensor can be read or replaced.

    Attributes:
        module: the live module.
        side: "input" or "output".
        item: position or keyword of the tensor among the inputs, or its position in a tuple of outputs.
    """

    module: nn.Module
    side: Literal["input", "output"]
    item: int | str = 0


class TokenCarrier:
    """How extra tokens travel through a span. This one is for plain sequences (B, N, D): they join after the prefix."""

    def __init__(self, prefix: int) -> None:
        self.prefix = prefix

    def enter(self, hidden: Tensor, tokens: Tensor) -> Tensor:
        """(B, P + N, D) and (B, n, D) -> (B, P + n + N, D)."""
        return torch.cat([hidden[:, : self.prefix], tokens, hidden[:, self.prefix :]], dim=1)

    def reset(self) -> None:
        """Forget what an interrupted forward pass left behind."""

    def carried(self, hidden: Tensor, count: int) -> Tensor:
        """The tokens that travel with the sequence, (B, P + n + N, D) -> (B, n, D)."""
        return hidden[:, self.prefix : self.prefix + count]

    def leave(self, hidden: Tensor, count: int, pooled: bool) -> Tensor:
        """(B, P + n + N, D) -> (B, P + N, D); with `pooled` a later mean over the N tokens equals one over n + N."""
        start, stop = self.prefix, self.prefix + count
        kept = hidden[:, stop:]
        if pooled:
            kept = spread_mean(kept, hidden[:, start:stop])
        return torch.cat([hidden[:, :start], kept], dim=1)


def spread_mean(kept: Tensor, leaving: Tensor) -> Tensor:
    """Change `kept` so that its mean over the tokens is the mean over `kept` and `leaving` together.

    kept: (B, ..., D) with N tokens in between, leaving: (B, n, D). Exact for any linear pooling by average.
    """
    between = kept.shape[1:-1].numel()
    total = between + leaving.shape[1]
    share = leaving.sum(dim=1) / total
    return kept * (between / total) + share.reshape(share.shape[0], *([1] * (kept.dim() - 2)), share.shape[-1])


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
        grid: height and width of the token or feature grid; None where there is none.
        prefix: tokens before the grid (class token, registers).
        stride: pixels per grid cell.
        own: the place's own parameters: name -> (module, attribute).
        rewrites: for each verb that hooks cannot express, the modules whose class is re-expressed while it is in use.
        consumers: projections that alone read this place's output, so that a linear map here can merge into them.
        carrier: how inserted tokens travel, where `insert_tokens` is offered.
        pooled: where tokens leave that a mean over the sequence shall see: after the final norm. None where no mean
            over the tokens follows this place directly.
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
    prefix: int = 0
    stride: int = 1
    own: dict[str, tuple[nn.Module, str]] = field(default_factory=dict)
    rewrites: Rewrites = field(default_factory=dict)
    consumers: tuple[Projection, ...] = ()
    carrier: TokenCarrier | None = None
    pooled: Point | None = None
    parts: dict[str, Place] = field(default_factory=dict)
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
            prefix=self.prefix,
            stride=self.stride,
            nesting=self.nesting,
        )

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
            raise MissingPlace(f"{self.name} cannot {verb}; it offers: {can}.")
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

    def wrap(self, layer: nn.Module) -> Edit:
        """h -> layer.enter(h) before this span, h -> layer.leave(h) after it."""
        return self._edit("wrap", layer=layer)

    def replace(self, layer: nn.Module) -> Edit:
        """The identity shortcut x becomes layer(x)."""
        return self._edit("replace", layer=layer)

    def insert_tokens(self, layer: nn.Module, lifetime: Lifetime = "span") -> Edit:
        """layer(h) -> (B, n, D) joins the sequence after the prefix tokens, and leaves it where this span ends.

        With the lifetime "pooled" it leaves after the final norm, and the backbone's mean over the tokens includes it,
        if such a mean follows this span; if none does, it is as "span".
        """
        return self._edit("insert_tokens", layer=layer, lifetime=lifetime)

    def tap(self, layer: nn.Module, *, reads: tuple[Place | Edit, ...] = ()) -> Edit:
        """layer(h, *reads) is called with what leaves this place; h goes on as it is, later edits may read the result."""
        return self._edit("tap", layer=layer, reads=reads)

    def reparametrize(self, layer: nn.Module) -> Edit:
        """weight -> layer(weight)."""
        return self._edit("reparametrize", layer=layer)

    def extend(self, layer: nn.Module) -> Edit:
        """q, k, v -> layer(q, k, v), each (B, heads, N, head width); further keys and values go in front."""
        return self._edit("extend", layer=layer)

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


def _own_names(top: Place, part: Place) -> list[str]:
    inner = ""
    if part is not top:
        inner = part.name if top.name == WHOLE else part.name[len(top.name) + 1 :]
    return [f"{inner}.{name}" if inner else name for name in part.own]


class Site(Place):
    """A tensor: the output of a norm, of attention inside its LayerScale, of the pooling."""


@dataclass(eq=False)
class Stream(Site):
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
    """

    steps: tuple[nn.Module, ...] = ()


@dataclass(eq=False)
class Projection(Place):
    """A linear or convolution, or the q, k or v rows of a fused one.

    Attributes:
        module: the live layer that holds `weight` and perhaps `bias`.
        rows: the output rows that belong to this place; None for all.
    """

    module: nn.Module = field(default_factory=nn.Identity)
    rows: tuple[int, int] | None = None

    @property
    def is_conv(self) -> bool:
        return isinstance(self.module, nn.Conv2d)

    @property
    def weight(self) -> Tensor:
        """The weight that belongs to this place: (out, in) or (out, in / groups, kh, kw)."""
        whole: Tensor = self.module.weight  # type: ignore[assignment]
        return whole if self.rows is None else whole[self.rows[0] : self.rows[1]]


@dataclass(eq=False)
class Attention(Place):
    """The space between q, k, v and the attention's output.

    Attributes:
        heads: number of heads.
        head_width: channels per head.
        per_window: True where the batch axis holds windows of images, (B * windows, heads, N, head width).
    """

    heads: int = 1
    head_width: int = 0
    per_window: bool = False


class AttentionSite(Site):
    """Attention as a whole: its input and output inside LayerScale and drop path, and its projections."""

    @property
    def qkv(self) -> Projection:
        """The fused projection, where the model has one."""
        return self._part("qkv", Projection)

    @property
    def q(self) -> Projection:
        return self._part("q", Projection)

    @property
    def k(self) -> Projection:
        return self._part("k", Projection)

    @property
    def v(self) -> Projection:
        return self._part("v", Projection)

    @property
    def proj(self) -> Projection:
        return self._part("proj", Projection)

    @property
    def core(self) -> Attention:
        return self._part("core", Attention)

    @property
    def inputs(self) -> tuple[Projection, ...]:
        """The projections that make q, k and v as the model stores them: one fused, or three."""
        if "qkv" in self.parts:
            return (self._part("qkv", Projection),)
        return (self.q, self.k, self.v)


class MlpSite(Site):
    """The MLP as a whole, inside LayerScale and drop path, and its projections."""

    @property
    def fc1(self) -> Projection:
        return self._part("fc1", Projection)

    @property
    def fc2(self) -> Projection:
        return self._part("fc2", Projection)


@dataclass(eq=False)
class Block(Span):
    """A residual block. `index` counts through the whole backbone, `stage` says where it belongs."""

    index: int = 0
    stage: int = 0
    drop_path: float = 0.0

    @property
    def dim(self) -> int:
        return self.width

    @property
    def attn_branch(self) -> Span:
        return self._part("attn_branch", Span)

    @property
    def mlp_branch(self) -> Span:
        return self._part("mlp_branch", Span)

    @property
    def attn(self) -> AttentionSite:
        return self._part("attn", AttentionSite)

    @property
    def mlp(self) -> MlpSite:
        return self._part("mlp", MlpSite)

    @property
    def norm1(self) -> Site:
        return self._part("norm1", Site)

    @property
    def norm2(self) -> Site:
        return self._part("norm2", Site)

    @property
    def skip1(self) -> Site:
        return self._part("skip1", Site)

    @property
    def skip2(self) -> Site:
        return self._part("skip2", Site)

    @property
    def stream1(self) -> Stream:
        return self._part("stream1", Stream)

    @property
    def stream2(self) -> Stream:
        return self._part("stream2", Stream)

    @property
    def norms(self) -> list[Site]:
        """The normalisations of this block, in the order of execution."""
        return [part for part in self.walk() if isinstance(part, Norm)]

    def projection(self, target: str) -> Projection:
        """The projection that papers call by this short name: q, k, v, qkv, proj, fc1, fc2 or conv.

        Raises:
            MissingPlace: this block has no such projection; the message lists those that it has.
        """
        for part in self.walk():
            if isinstance(part, Projection) and part.name in (f"{self.name}.{inner}{target}" for inner in SHORT):
                return part
        have = [part.name.rpartition(".")[2] for part in self.walk() if isinstance(part, Projection)]
        raise MissingPlace(f"{self.name} has no projection {target!r}. It has: {', '.join(have) or 'none'}.")

    @property
    def projections(self) -> list[Projection]:
        """The linears and convolutions of this block as the model stores them (a fused qkv counts once)."""
        found = [part for part in self.walk() if isinstance(part, Projection)]
        return [part for part in found if part.rows is None]


class Norm(Site):
    """A normalisation layer with its own scale and shift."""


@dataclass(eq=False)
class Stage(Span):
    """Blocks of one resolution, with the downsampling before them, if there is one.

    Attributes:
        downsample: the module that takes the previous stage's output, in its layout, to this stage's input.
    """

    index: int = 0
    downsample: nn.Module | None = None
    blocks: list[Block] = field(default_factory=list)
