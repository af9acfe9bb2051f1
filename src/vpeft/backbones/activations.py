"""The activations inside the blocks, as places: found by what they compute, so that no library is named."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .backbone import Backbone
from .blocks import Block
from .places import Site
from .points import Layout, Point

SHAPES: dict[str, tuple[Callable[[Tensor], Tensor], ...]] = {
    "gelu": (F.gelu, lambda x: F.gelu(x, approximate="tanh")),
    "silu": (F.silu,),
}
"""by name, the functions that count as it"""


def activations(backbone: Backbone) -> list[tuple[str, Site]]:
    """Each GELU and SiLU that is a module inside a block, with its name; those that write in place are left out."""
    return [found for block in backbone.blocks for found in _inside(block)]


def _inside(block: Block) -> Iterator[tuple[str, Site]]:
    if block.exit is None:
        return
    number = 0
    for module in block.exit.module.modules():
        kind = _kind(module)
        if kind is None:
            continue
        site = Site(
            name=f"{block.name}.act{number or ''}",
            width=block.width,
            layout=Layout.TOKENS,  # layers are given the tensor as the module has it: an activation has no axes
            enter=Point(module, "input"),
            exit=Point(module, "output"),
            verbs=frozenset({"before", "after", "tap"}),
            depth=block.depth,
            frames=block.frames,
            scale=block.scale,
        )
        number += 1
        yield kind, site


def _kind(module: nn.Module) -> str | None:
    """What a module computes, tried on a few numbers; None for anything but an activation that makes a new tensor."""
    named = next((kind for kind in SHAPES if kind in type(module).__name__.lower()), None)
    if named is None or getattr(module, "inplace", False) or next(module.children(), None) is not None:
        return None
    with torch.no_grad():
        x = torch.linspace(-4.0, 4.0, 17, device="cpu")
        same = any(torch.allclose(module.forward(x), function(x), atol=1e-5) for function in SHAPES[named])
    return named if same else None
