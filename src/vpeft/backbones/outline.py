"""A block of given parts, and what stands around the blocks: the pixels, the embedding, the stages and the trunk."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from torch import nn

from .blocks import Block, Stage
from .builders import Where, branch, norm, skip, span_verbs, stream, token_rewrites
from .places import Norm, Place, Projection, Rewrites, Site, Span
from .points import Layout, Point
from .tokens import TokenCarrier

Pairs = tuple[tuple[nn.Module, type[nn.Module]], ...]


def _carrying(parts: Sequence[Place], more: Pairs = ()) -> Rewrites:
    """What all of `parts` need re-expressed when tokens are inserted, each module once."""
    pairs = (pair for part in parts for pair in part.rewrites.get("insert_tokens", ()))
    return token_rewrites(tuple(dict.fromkeys((*pairs, *more))))


def pixels(enter: Point, channels: int) -> Site:
    """The images (B, channels, H, W), or clips (B, channels, T, H, W), where the model first sees them."""
    return Site(
        name="pixels",
        width=channels,
        enter=enter,
        exit=None,
        verbs=frozenset({"before", "tap"}),
        layout=Layout.CHANNELS_FIRST,
        depth=-1,
    )


def clips(enter: Point, channels: int) -> Site:
    """The clips (B, channels, T, H, W), before their frames pass one by one."""
    return Site(
        name="clips",
        width=channels,
        enter=enter,
        exit=None,
        verbs=frozenset({"before", "tap"}),
        layout=Layout.CHANNELS_FIRST,
        depth=-1,
    )


def embedding(
    exit: Point | None, where: Where, width: int, own: dict[str, tuple[nn.Module, str]] | None = None, nesting: int = 4
) -> Site:
    """What enters the first block; `own` are its own parameters, such as the class token and the positions."""
    return Site(
        name="embedding",
        width=width,
        enter=None,
        exit=exit,
        verbs=frozenset({"after", "tap", "unfreeze"}) if own else frozenset({"after", "tap"}),
        own=own or {},
        nesting=nesting,
        **where.shared(),
    )


def block(
    index: int,
    module: nn.Module,
    parts: dict[str, Place],
    where: Where,
    width: int,
    *,
    carrier: TokenCarrier | None = None,
    drop_path: float = 0.0,
    stage: int = 0,
) -> Block:
    """The block that `module` is, made of `parts`; it owns the parameters that none of them does."""
    made = Block(
        name=f"blocks.{index}",
        width=width,
        enter=Point(module, "input"),
        exit=Point(module, "output"),
        verbs=span_verbs(carrier),
        nesting=2,
        carrier=carrier,
        parts=parts,
        index=index,
        stage=stage,
        drop_path=drop_path,
        **where.shared(),
    )
    made.own.update(leftovers(module, made))
    return made


@dataclass(frozen=True)
class Residual:
    """One of the two residual branches of a block: x + branch(x).

    Attributes:
        inner: its attention or its MLP.
        enter, exit: where the branch begins and ends.
        norm: its normalisation, before or behind `inner`, as a module or a place; None for none.
        reads: the projections that alone read that norm.
        writer, gain, steps: see `Span`.
        where: how the branch is laid out, if not as the block.
    """

    inner: Site
    enter: Point
    exit: Point
    norm: nn.Module | Norm | None = None
    reads: tuple[Projection, ...] = ()
    writer: Projection | None = None
    gain: tuple[nn.Module, str] | None = None
    steps: tuple[nn.Module, ...] = ()
    where: Where | None = None


def residual_pair(
    index: int,
    module: nn.Module,
    halves: Sequence[Residual],
    where: Where,
    width: int,
    *,
    carrier: TokenCarrier | None = None,
    rewrites: Rewrites | None = None,
    drop_path: float = 0.0,
    stage: int = 0,
) -> Block:
    """A block of two residual branches, that of attention and that of the MLP, under the names of every family."""
    name = f"blocks.{index}"
    parts: dict[str, Place] = {}
    own: dict[str, tuple[nn.Module, str]] = {}
    for number, (kind, half) in enumerate(zip(("attn", "mlp"), halves, strict=True), start=1):
        here = half.where or where
        around = branch(f"{name}.{kind}_branch", half.enter, half.exit, here, width, half.steps)
        around.writer, around.gain = half.writer, half.gain
        if isinstance(half.norm, Norm):
            parts[f"norm{number}"] = half.norm
        elif half.norm is not None:
            parts[f"norm{number}"] = norm(f"{name}.norm{number}", half.norm, here, width, half.reads)
        parts[kind] = half.inner
        parts[f"{kind}_branch"] = around
        parts[f"skip{number}"] = skip(f"{name}.skip{number}", around, here)
        parts[f"stream{number}"] = stream(f"{name}.stream{number}", around, here)
        if half.gain is not None:
            own[f"ls{number}.gamma"] = half.gain
    return Block(
        name=name,
        width=width,
        enter=Point(module, "input"),
        exit=Point(module, "output"),
        verbs=span_verbs(carrier),
        nesting=2,
        carrier=carrier,
        rewrites=rewrites or {},
        own=own,
        parts=parts,
        index=index,
        stage=stage,
        drop_path=drop_path,
        **where.shared(),
    )


def leftovers(module: nn.Module, place: Place) -> dict[str, tuple[nn.Module, str]]:
    """Parameters of `module` that no place inside `place` owns, under the library's own names."""
    owned = {id(owner._parameters[attribute]) for part in place.walk() for owner, attribute in part.own.values()}
    return {
        f"{prefix}.{attribute}" if prefix else attribute: (owner, attribute)
        for prefix, owner in module.named_modules()
        for attribute, parameter in cast(Any, owner)._parameters.items()
        if parameter is not None and id(parameter) not in owned
    }


def stage(
    index: int,
    blocks: Sequence[Block],
    where: Where,
    before: Mapping[str, Place] | None = None,
    downsample: nn.Module | None = None,
    pooled: Point | None = None,
) -> Stage:
    """Blocks of one resolution, from the first one's input to the last one's output.

    Args:
        before: the places of the downsampling, which belongs to the stage that it leads to.
        pooled: where inserted tokens leave that are to be part of the backbone's mean over the tokens.
    """
    carrier = blocks[0].carrier
    return Stage(
        name=f"stages.{index}",
        width=blocks[0].width,
        enter=blocks[0].enter,
        exit=blocks[-1].exit,
        verbs=span_verbs(carrier) - {"unfreeze"},
        nesting=1,
        carrier=carrier,
        pooled=pooled,
        rewrites=_carrying(blocks),
        parts={**(before or {}), **{block.name: block for block in blocks}},
        index=index,
        downsample=downsample,
        blocks=list(blocks),
        **where.shared(),
    )


def trunk(
    stages: Sequence[Stage],
    width_in: int = 0,
    width: int = 0,
    where: Where | None = None,
    enter: Point | None = None,
    exit: Point | None = None,
    pooled: Point | None = None,
    between: Pairs = (),
) -> Span:
    """All stages, laid out as the first one unless `where` says otherwise.

    A backbone whose blocks were not recognised has no stages: `width_in`, `width`, `where`, `enter`, `exit` tell then.

    Args:
        width_in, width: of what enters and leaves, where the first and the last stage do not tell.
        enter, exit: where the trunk begins before the first block, or ends behind the last one.
        between: what is re-expressed between the stages for tokens to pass.
    """
    if stages:
        first, last = stages[0], stages[-1]
        where = where or Where(0, first.layout, first.grid, first.prefix, first.stride, frames=first.frames)
        width_in, width = width_in or first.width, width or last.width
        enter, exit = enter or first.enter, exit or last.exit
    assert where is not None
    carrier = stages[0].carrier if stages else None
    return Span(
        name="trunk",
        width=width,
        width_in=width_in,
        enter=enter,
        exit=exit,
        verbs=span_verbs(carrier) - {"unfreeze"},
        nesting=0,
        carrier=carrier,
        pooled=pooled,
        rewrites=_carrying(stages, between),
        **where.shared(),
    )


def tower(blocks: Sequence[Block], where: Where, pooled: Point | None = None) -> tuple[Span, Stage]:
    """The trunk and its only stage; `pooled` is where tokens leave that a mean behind the blocks is to include."""
    blocks[-1].pooled = pooled
    only = stage(0, blocks, where, pooled=pooled)
    return trunk([only], where=where, pooled=pooled), only
