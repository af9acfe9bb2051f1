"""Builders of places for the families: projections, norms, sites and branches from live modules.

A `Where` holds what the places of a block share (depth, layout, grid, prefix, stride), so a family states it once.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TypedDict, TypeVar

from torch import nn

from .places import Attention, Norm, Place, Projection, ResidualStream, Rewrites, Site, Span, stored_weight
from .points import Layout, Point
from .rewrites import STANDARDISED, weight_rewrite
from .rows import Rows
from .tokens import TokenCarrier
from .verbs import Verb

HIDDEN: frozenset[Verb] = frozenset({"before", "after", "parallel", "tap"})


class _Shared(TypedDict):
    layout: Layout
    depth: int
    grid: tuple[int, int] | None
    local: bool
    frames: int | None
    prefix: int
    stride: int


@dataclass(frozen=True)
class Where:
    """The fields that the places of one block or stage share; see `Place`."""

    depth: int
    layout: Layout
    grid: tuple[int, int] | None = None
    prefix: int = 0
    stride: int = 1
    local: bool = False
    frames: int | None = None

    def shared(self, layout: Layout | None = None) -> _Shared:
        return _Shared(
            layout=layout or self.layout,
            depth=self.depth,
            grid=self.grid,
            local=self.local,
            frames=self.frames,
            prefix=self.prefix,
            stride=self.stride,
        )

    def but(self, layout: Layout, prefix: int | None = None) -> Where:
        """Return a copy with another layout, and other prefix tokens if given."""
        return replace(self, layout=layout, prefix=self.prefix if prefix is None else prefix)

    def within(self, grid: tuple[int, int], layout: Layout | None = None) -> Where:
        """Return a copy for places inside a window or after a pooling to `grid`, which does not depend on the image."""
        return replace(self, grid=grid, layout=layout or self.layout, prefix=0, local=True)


def own_parameters(module: nn.Module) -> dict[str, tuple[nn.Module, str]]:
    """Return a module's direct parameters as own parameters of a place: name -> (module, attribute)."""
    return {name: (module, name) for name, value in module._parameters.items() if value is not None}


def inner_parameters(prefix: str, module: nn.Module) -> dict[str, tuple[nn.Module, str]]:
    """Return all parameters inside a small network as own parameters of a place, under `prefix` and dotted names."""
    return {
        f"{prefix}.{path}.{name}" if path else f"{prefix}.{name}": target
        for path, inner in module.named_modules()
        for name, target in own_parameters(inner).items()
    }


def projection(
    name: str, module: nn.Module, where: Where, rows: Rows | tuple[int, int] | None = None, width_in: int = 0
) -> Projection:
    """Return the place of a linear or convolution that the model calls as a module; with `rows`, of some outputs."""
    weight = stored_weight(module)
    groups = module.groups if isinstance(module, (nn.Conv2d, nn.Conv3d)) else 1
    rewrite, rows = weight_rewrite(module), Rows(*rows) if isinstance(rows, tuple) else rows
    verbs: set[Verb] = {"after", "parallel", "tap"}
    if rows is None:
        verbs |= {"before", "unfreeze"}
    if rewrite:
        verbs.add("reparametrize")
    return Projection(
        name=name,
        width=weight.shape[0] if rows is None else rows.count,
        width_in=width_in or weight.shape[1] * groups,
        enter=Point(module, "input"),
        exit=Point(module, "output"),
        verbs=frozenset(verbs),
        own=own_parameters(module) if rows is None else {},
        rewrites={"reparametrize": rewrite},
        module=module,
        rows=rows,
        standardised=type(module) in STANDARDISED,
        **where.shared(),
    )


def norm(name: str, module: nn.Module, where: Where, width: int, consumers: tuple[Projection, ...] = ()) -> Norm:
    """Return the place of a normalisation layer; `consumers` are its readers if all of them are projections."""
    return Norm(
        name=name,
        width=width,
        enter=Point(module, "input"),
        exit=Point(module, "output"),
        verbs=HIDDEN | {"unfreeze"},
        own=own_parameters(module),
        consumers=consumers,
        **where.shared(),
    )


SiteT = TypeVar("SiteT", bound=Site)


def site(
    name: str,
    kind: type[SiteT],
    enter: Point,
    exit: Point,
    where: Where,
    width: int,
    parts: Mapping[str, Place],
    own: dict[str, tuple[nn.Module, str]] | None = None,
    consumers: tuple[Projection, ...] = (),
) -> SiteT:
    """Return the place of a sub-layer (attention or MLP) from its input to its output, with its parts."""
    return kind(
        name=name,
        width=width,
        enter=enter,
        exit=exit,
        verbs=HIDDEN | {"unfreeze"},
        own=own or {},
        parts=dict(parts),
        consumers=consumers,
        **where.shared(),
    )


def attention_core(
    name: str,
    module: nn.Module,
    edited: type[nn.Module],
    where: Where,
    width: int,
    heads: int,
    *,
    per_window: bool = False,
) -> Attention:
    """Return the place between q, k, v and the output; `module` gets the class `edited` while an edit acts there.

    Args:
        width: channels of all heads together.
        per_window: whether the batch axis holds windows of images.
    """
    return Attention(
        name=name,
        width=width,
        enter=None,
        exit=None,
        verbs=frozenset({"extend"}),
        rewrites={"extend": ((module, edited),)},
        heads=heads,
        head_width=width // heads,
        per_window=per_window,
        **where.shared(),
    )


def branch(name: str, enter: Point, exit: Point, where: Where, width: int, steps: tuple[nn.Module, ...] = ()) -> Span:
    """Return the place of a residual branch, from its norm to its output after LayerScale and drop path."""
    return Span(
        name=name,
        width=width,
        enter=enter,
        exit=exit,
        verbs=HIDDEN | {"wrap"},
        nesting=3,
        steps=steps,
        **where.shared(),
    )


def skip(name: str, around: Span, where: Where) -> Site:
    """Return the place of the identity shortcut beside a branch."""
    return Site(
        name=name,
        width=around.width,
        enter=around.enter,
        exit=around.exit,
        verbs=frozenset({"replace"}),
        nesting=3,
        **where.shared(),
    )


def stream(name: str, around: Span, where: Where) -> ResidualStream:
    """Return the place of the sum after a branch was added to the residual stream."""
    return ResidualStream(
        name=name,
        width=around.width,
        enter=None,
        exit=None,
        verbs=frozenset({"after"}),
        nesting=3,
        around=around,
        **where.shared(),
    )


def span_verbs(carrier: TokenCarrier | None) -> frozenset[Verb]:
    """Return the verbs of a block, a stage or the trunk; `insert_tokens` needs a carrier."""
    verbs: set[Verb] = {"before", "after", "wrap", "tap", "unfreeze"}
    if carrier is not None:
        verbs.add("insert_tokens")
    return frozenset(verbs)


def token_rewrites(pairs: tuple[tuple[nn.Module, type[nn.Module]], ...]) -> Rewrites:
    """Return the rewrites that inserted tokens need."""
    return {"insert_tokens": pairs} if pairs else {}
