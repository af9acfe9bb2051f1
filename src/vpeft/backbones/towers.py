"""Equal pre-norm blocks over one sequence, whatever the library calls their modules: blocks, stage and trunk."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor, nn

from . import outline
from .blocks import AttentionSite, Block, MlpSite
from .builders import Where, norm, projection, site
from .places import Place
from .points import Point
from .tokens import TokenCarrier

Gain = tuple[nn.Module, str] | None


@dataclass(frozen=True)
class Parts:
    """The modules of one block x + A(LN(x)), then x + M(LN(x)).

    Attributes:
        block: the whole.
        norm1, norm2: what opens the branches.
        attn: the attention, a module.
        attn_end: what closes the attention branch (drop path, LayerScale, dropout).
        mlp: the MLP as one module, and its projections by their canonical names, `fc1` and `fc2` at least.
        mlp_end: what closes the MLP branch.
        between: what runs between the attention and `attn_end`, and between the MLP and `mlp_end`.
        gains: LayerScale of the two branches.
        drop_path: the rate at which branches are dropped in training.
    """

    block: nn.Module
    norm1: nn.Module
    attn: nn.Module
    attn_end: nn.Module
    norm2: nn.Module
    mlp: nn.Module
    projections: Mapping[str, nn.Module]
    mlp_end: nn.Module
    between: tuple[tuple[nn.Module, ...], tuple[nn.Module, ...]] = ((), ())
    gains: tuple[Gain, Gain] = (None, None)
    drop_path: float = 0.0
    more: Mapping[str, nn.Module] = field(default_factory=dict)  # norms inside the MLP


def mlp_site(name: str, parts: Parts, where: Where, width: int) -> MlpSite:
    """The MLP and its projections; `fc2` writes, all others read."""
    inside: dict[str, Place] = {
        key: projection(f"{name}.{key}", module, where) for key, module in parts.projections.items()
    }
    for key, module in parts.more.items():
        assert isinstance(module.weight, Tensor)
        inside[key] = norm(f"{name}.{key}", module, where, len(module.weight))
    readers = tuple(part for key, part in inside.items() if key in parts.projections and key != "fc2")
    ends = Point(parts.mlp, "input"), Point(parts.mlp, "output")
    return site(name, MlpSite, *ends, where, width, inside, None, readers)  # type: ignore[arg-type]


def pre_norm_block(index: int, parts: Parts, attn: AttentionSite, where: Where, carrier: TokenCarrier | None) -> Block:
    """One block; `attn` is the attention's place, made by who knows its class."""
    name, width = f"blocks.{index}", attn.width
    mlp = mlp_site(f"{name}.mlp", parts, where, width)
    chains = (
        (parts.norm1, parts.attn, *parts.between[0], *_other(parts.attn_end, parts.attn)),
        (parts.norm2, parts.mlp, *parts.between[1], *_other(parts.mlp_end, parts.mlp)),
    )
    end = Point(parts.attn_end, "output", 0) if parts.attn_end is parts.attn else Point(parts.attn_end, "output")
    mlp_end = Point(parts.mlp_end, "output")
    halves = [
        outline.Residual(inner, Point(around, "input"), leaves, around, inner.consumers, writer, gain, chain)
        for inner, around, leaves, writer, gain, chain in (
            (attn, parts.norm1, end, attn.proj, parts.gains[0], chains[0]),
            (mlp, parts.norm2, mlp_end, mlp.fc2, parts.gains[1], chains[1]),
        )
    ]
    return outline.residual_pair(index, parts.block, halves, where, width, carrier=carrier, drop_path=parts.drop_path)


def _other(end: nn.Module, inner: nn.Module) -> tuple[nn.Module, ...]:
    return () if end is inner else (end,)
